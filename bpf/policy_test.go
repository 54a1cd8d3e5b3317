package bpf

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
)

// TestClasses: which class a peer has in either direction.
func TestClasses(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		for _, tt := range []struct {
			name    string
			peer    netip.Addr
			base    uint64
			egress  uint64 // peer in the class map
			ingress uint64
		}{
			{"host", v.host, uint64(abi.IdentityHost), 1, 1},
			{"pod elsewhere", v.remote, abi.ClassPod, remoteIdentity | namedPorts, remoteIdentity},
			{"outside", v.outside, v.world, v.world, v.world},
			{"CIDR", v.cidr, v.world, cidrPeer, cidrPeer},
		} {
			t.Run(tt.name, func(t *testing.T) {
				own := abi.ClassOf(tt.base, 5) // a class of the scope
				out, in := v.out(w.a, tt.peer, udp, 5000, 53, 0), v.in(tt.peer, w.a, udp, 5001, 53, 0)
				check := func(class uint64, peers bool, ok bool) {
					t.Helper()
					w.forget()
					w.enforce(&w.a, abi.Egress, allow(class, udp, 53))
					w.enforce(&w.a, abi.Ingress, allow(class, udp, 53))
					if peers {
						w.class(&w.a, abi.Egress, tt.egress, own)
						w.class(&w.a, abi.Ingress, tt.ingress, own)
					}
					if !ok {
						w.from(w.a, out).refused(t, abi.PolicyDefaultDeny, abi.Egress)
						w.to(w.a, in).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
						return
					}
					w.from(w.a, out).accepted(t, passed, abi.Egress)
					w.to(w.a, in).accepted(t, passed, abi.Ingress)
				}
				check(tt.base, false, true)
				check(abi.ClassAny, false, true)
				check(uint64(abi.IdentityHealth), false, false)
				check(own, false, false)
				check(own, true, true)
				check(tt.base, true, true) // what holds for the base class holds for its part
				own = abi.ClassOf(uint64(abi.IdentityHealth), 5)
				check(own, true, true)
				check(tt.base, true, false) // the class tells the base class, not the peer's number
				own = tt.base
				check(own, true, true) // a row may lead to a base class
			})
		}
	})
}

// TestBothEnds: both policies of a flow between pods of this node.
func TestBothEnds(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		f := v.out(w.a, v.of(w.b), tcp, 40000, 80, syn)
		http := allow(abi.ClassPod, tcp, 80)
		w.enforce(&w.a, abi.Egress)
		w.enforce(&w.b, abi.Ingress)
		w.forget()
		w.from(w.a, f).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		w.enforce(&w.a, abi.Egress, http)
		w.from(w.a, f).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
		w.enforce(&w.b, abi.Ingress, row{abi.ClassPod, tcp, 80, 16, abi.VerdictDeny})
		r := w.from(w.a, f)
		r.refused(t, abi.PolicyDenied, abi.Ingress)
		if r.events[0].Row != 1 || r.events[0].Table != w.table {
			t.Errorf("row %d table %d, want 1 and %d", r.events[0].Row, r.events[0].Table, w.table)
		}
		if w.flows() != 0 {
			t.Error("a denied packet opened a flow")
		}
		// By the peer's identity alone on ingress, with its named ports on egress.
		own := abi.ClassOf(abi.ClassPod, 5)
		w.enforce(&w.a, abi.Egress, allow(own, tcp, 80))
		w.class(&w.a, abi.Egress, 258|namedPorts, own)
		w.enforce(&w.b, abi.Ingress, allow(own, tcp, 80))
		w.class(&w.b, abi.Ingress, 257, own)
		w.from(w.a, f).accepted(t, redirected, abi.Egress, abi.Ingress)
		// A local destination whose row is gone is not left to the host's stack.
		w.forget()
		if err := w.o.Endpoints.Delete(abi.EndpointKey{Ifindex: w.b.ifindex}); err != nil {
			t.Fatal(err)
		}
		w.o.BumpAllGenerations()
		w.from(w.a, f).refused(t, abi.NoEndpoint, abi.Egress)
		w.policy(&w.b, abi.Ingress, false)
	})
}

// TestToItself: no policy stands between a pod and itself.
func TestToItself(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.enforce(&w.a, abi.Egress)
		w.enforce(&w.a, abi.Ingress)
		w.from(w.a, v.out(w.a, v.of(w.a), tcp, 40000, 80, syn)).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.from(w.a, v.out(w.a, v.of(w.a), tcp, 80, 40000, syn|ack)).accepted(t, redirected, abi.Egress, abi.Ingress)
	})
}

// model is the rule that the programs follow, written without lens masks or hash
// lookups: the row with the longest port prefix counts within a class, one of
// protocol 0 after all others; a class is asked, its base class and CLASS_ANY.
func model(rows []row, class uint64, enforced bool, proto uint8, port uint16) (abi.Reason, bool) {
	find := func(class uint64) abi.Verdict {
		best, verdict := -2, abi.VerdictNone
		for _, r := range rows {
			rank := int(r.bits)
			if r.proto == 0 {
				rank = -1
			} else if r.proto != proto || (port^r.port)>>(16-r.bits) != 0 {
				continue
			}
			if r.class == class && rank > best {
				best, verdict = rank, r.verdict
			}
		}
		return verdict
	}
	said := max(find(class), find(abi.BaseOf(class)), find(abi.ClassAny)) // a deny is the greatest
	switch {
	case said == abi.VerdictDeny:
		return abi.PolicyDenied, false
	case said == abi.VerdictAllow || !enforced:
		return 0, true
	}
	return abi.PolicyDefaultDeny, false
}

// TestRows compares the programs with the model on random tables.
func TestRows(t *testing.T) {
	w := newWorld(t, smallSizes())
	const ownClass = 1<<63 | abi.ClassPod<<58 | 77
	port := rapid.OneOf(rapid.Uint16Range(76, 84), rapid.SampledFrom([]uint16{0, 1 << 15, 1<<15 | 80, 65535}))
	rapid.Check(t, func(rt *rapid.T) {
		seen := make(map[row]bool)
		var rows []row
		for range rapid.IntRange(0, 6).Draw(rt, "rows") {
			r := row{
				class:   rapid.SampledFrom([]uint64{abi.ClassAny, abi.ClassPod, uint64(abi.IdentityHost), ownClass}).Draw(rt, "class"),
				proto:   rapid.SampledFrom([]uint8{0, tcp, tcp, udp}).Draw(rt, "proto"),
				verdict: rapid.SampledFrom([]abi.Verdict{abi.VerdictAllow, abi.VerdictDeny}).Draw(rt, "verdict"),
			}
			if r.proto != 0 {
				r.bits = uint8(rapid.IntRange(0, 16).Draw(rt, "bits"))
				r.port = port.Draw(rt, "port") >> (16 - r.bits) << (16 - r.bits)
			}
			key := r
			key.verdict = 0
			if !seen[key] {
				seen[key] = true
				rows = append(rows, r)
			}
		}
		enforced := rapid.Bool().Draw(rt, "enforced")
		proto := rapid.SampledFrom([]uint8{tcp, udp}).Draw(rt, "probe protocol")
		port := port.Draw(rt, "probe port")
		w.forget()
		w.policy(&w.a, abi.Egress, enforced, rows...)
		class := abi.ClassPod
		if rapid.Bool().Draw(rt, "peer has a class") {
			class = ownClass
			w.class(&w.a, abi.Egress, remoteIdentity|namedPorts, class)
		}
		r := w.from(w.a, frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v4, dst: remote4, proto: proto, srcPort: 9, dstPort: port})
		reason, ok := model(rows, class, enforced, proto, port)
		got := r.verdict == passed
		if got != ok || (!ok && (len(r.events) != 1 || r.events[0].Reason != reason)) {
			rt.Fatalf("rows %+v: verdict %d events %+v, want ok %v reason %s", rows, r.verdict, r.events, ok, reason)
		}
		empty[abi.PolicyKey](w, w.o.Policy)
		empty[abi.ClassKey](w, w.o.Classes)
	})
}
