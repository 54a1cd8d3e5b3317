package bpf

import (
	"testing"

	"github.com/varve-net/varve/bpf/abi"
)

// audit gives one direction of p a table as policy does, with more flags for the
// direction, and for the rows whose number (from 1) is given that of audit mode.
func (w *world) audit(p *pod, d abi.Direction, flags uint32, rows []row, audited ...uint64) {
	w.t.Helper()
	w.policy(p, d, false, rows...)
	ref := &p.value.Egress
	if d == abi.Ingress {
		ref = &p.value.Ingress
	}
	ref.Flags |= flags
	w.put(w.o.Endpoints, abi.EndpointKey{Ifindex: p.ifindex}, p.value)
	for _, i := range audited {
		r := rows[i-1]
		w.put(w.o.Policy, abi.PolicyKey{Table: w.table, Class: r.class, PortBE: [2]byte(be16(r.port)), Protocol: r.proto, PortBits: r.bits},
			abi.PolicyValue{Row: i, Verdict: r.verdict, Flags: abi.PolicyAudited})
	}
}

// audited fails unless the packet passed and was told of once, with this reason and row.
func (r result) audited(t testing.TB, reason abi.Reason, d abi.Direction, row uint64) {
	t.Helper()
	if r.verdict != passed && r.verdict != redirected {
		t.Errorf("verdict %d: does not pass", r.verdict)
	}
	if len(r.events) != 1 {
		t.Fatalf("%d events, want 1: %+v", len(r.events), r.events)
	}
	if n := r.counters[counterName(reason, d)+" audited"]; n != 1 {
		t.Errorf("counters %v, want one audited", r.counters)
	}
	e := r.events[0]
	if e.Type != abi.EventAudited || e.Reason != reason || e.Direction != d || e.Row != row {
		t.Errorf("event type %d reason %q direction %d row %d, want audited, %q, %d, %d", e.Type, e.Reason, e.Direction, e.Row, reason, d, row)
	}
}

// TestAudit: what enforced policy says is done; what that in audit mode says is told.
func TestAudit(t *testing.T) {
	const port = 80
	pods := func(v abi.Verdict) row { return row{abi.ClassPod, tcp, port, 16, v} }
	any := func(v abi.Verdict) row { return row{abi.ClassAny, tcp, 0, 0, v} }
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		f := v.out(w.a, v.of(w.b), tcp, 40000, port, syn)
		for _, tt := range []struct {
			name    string
			flags   uint32
			rows    []row
			audited []uint64
			reason  abi.Reason // 0: passes, and nothing is told
			row     uint64
			drops   bool
		}{
			{"the endpoint, by default", abi.PolicyEnforced | abi.PolicyAudit, nil, nil, abi.PolicyDefaultDeny, 0, false},
			{"the endpoint, by a deny", abi.PolicyAudit, []row{pods(abi.VerdictDeny)}, nil, abi.PolicyDenied, 1, false},
			{"the endpoint, allowed", abi.PolicyEnforced | abi.PolicyAudit, []row{pods(abi.VerdictAllow)}, nil, 0, 0, false},
			{"a policy, by default", abi.PolicyAuditDefault, nil, nil, abi.PolicyDefaultDeny, 0, false},
			{"a policy, allowed", abi.PolicyAuditDefault, []row{any(abi.VerdictAllow)}, nil, 0, 0, false},
			{"another isolates as well", abi.PolicyEnforced | abi.PolicyAuditDefault, nil, nil, abi.PolicyDefaultDeny, 0, true},
			{"a deny of a policy", 0, []row{pods(abi.VerdictNone)}, []uint64{1}, abi.PolicyDenied, 1, false},
			{"a deny of a policy, over an allow", abi.PolicyEnforced, []row{pods(abi.VerdictAllow)}, []uint64{1}, abi.PolicyDenied, 1, false},
			{"a deny of a policy, over an allow of everyone", abi.PolicyEnforced, []row{pods(abi.VerdictNone), any(abi.VerdictAllow)}, []uint64{1}, abi.PolicyDenied, 1, false},
			{"a deny of a policy of everyone, over an allow", abi.PolicyEnforced, []row{pods(abi.VerdictAllow), any(abi.VerdictNone)}, []uint64{2}, abi.PolicyDenied, 2, false},
			{"a deny of a policy, and nothing allows", abi.PolicyEnforced, []row{pods(abi.VerdictNone)}, []uint64{1}, abi.PolicyDefaultDeny, 0, true},
			{"a deny of a policy, and another denies", 0, []row{pods(abi.VerdictNone), any(abi.VerdictDeny)}, []uint64{1}, abi.PolicyDenied, 2, true},
			{"both, the endpoint too", abi.PolicyAudit, []row{pods(abi.VerdictNone), any(abi.VerdictDeny)}, []uint64{1}, abi.PolicyDenied, 2, false},
		} {
			t.Run(tt.name, func(t *testing.T) {
				for _, d := range []abi.Direction{abi.Egress, abi.Ingress} {
					w.forget()
					w.policy(&w.a, abi.Egress, false)
					w.policy(&w.b, abi.Ingress, false)
					subject := &w.a
					if d == abi.Ingress {
						subject = &w.b
					}
					w.audit(subject, d, tt.flags, tt.rows, tt.audited...)
					r := w.from(w.a, f)
					switch {
					case tt.drops:
						r.refused(t, tt.reason, d)
						if e := r.events[0]; e.Row != tt.row {
							t.Errorf("row %d, want %d", e.Row, tt.row)
						}
					case tt.reason != 0:
						r.audited(t, tt.reason, d, tt.row)
						again := w.from(w.a, f)
						again.accepted(t, redirected, abi.Egress, abi.Ingress)
						if len(again.events) != 0 {
							t.Errorf("the flow is told of again: %+v", again.events)
						}
					default:
						r.accepted(t, redirected, abi.Egress, abi.Ingress)
						if len(r.events) != 0 {
							t.Errorf("events %+v", r.events)
						}
					}
				}
			})
		}
	})
}

// TestAuditEnds: a flow that audit mode let pass is judged again when that ends, and
// told of again as long as it does not.
func TestAuditEnds(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		w.policy(&w.b, abi.Ingress, false)
		f := v.out(w.a, v.of(w.b), tcp, 40000, 80, syn)
		w.audit(&w.a, abi.Egress, abi.PolicyEnforced|abi.PolicyAudit, nil)
		w.from(w.a, f).audited(t, abi.PolicyDefaultDeny, abi.Egress, 0)
		w.o.BumpAllGenerations()
		w.from(w.a, f).audited(t, abi.PolicyDefaultDeny, abi.Egress, 0)
		w.audit(&w.a, abi.Egress, abi.PolicyEnforced, nil)
		w.o.BumpAllGenerations()
		w.from(w.a, f).refused(t, abi.PolicyRevoked, abi.Egress)
	})
}

// TestAuditBothEnds: what the first direction lets pass in audit mode is told, and the
// second still drops.
func TestAuditBothEnds(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		f := v.out(w.a, v.of(w.b), tcp, 40000, 80, syn)
		for _, ingress := range []struct {
			flags uint32
			check func(result)
		}{
			{0, func(r result) { r.audited(t, abi.PolicyDefaultDeny, abi.Egress, 0) }},
			{abi.PolicyEnforced | abi.PolicyAudit, func(r result) { r.audited(t, abi.PolicyDefaultDeny, abi.Egress, 0) }},
			{abi.PolicyEnforced, func(r result) { r.refused(t, abi.PolicyDefaultDeny, abi.Ingress) }},
		} {
			w.forget()
			w.audit(&w.a, abi.Egress, abi.PolicyAuditDefault, nil)
			w.audit(&w.b, abi.Ingress, ingress.flags, nil)
			r := w.from(w.a, f)
			ingress.check(r)
			if e := r.events[0]; e.Type == abi.EventAudited && (e.Endpoint != w.a.value.ID || e.Table != w.a.value.Egress.Table) {
				t.Errorf("event of endpoint %d, table %d", e.Endpoint, e.Table)
			}
		}
	})
}
