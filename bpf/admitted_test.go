package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
)

// TestAdmittedUntilRaised: the second flow between two addresses is admitted by what
// the first came to, and not a moment longer than the generation of both stands.
func TestAdmittedUntilRaised(t *testing.T) {
	w := newWorld(t, smallSizes())
	w.config(func(c *abi.Config) { c.NewFlowEvents = true })
	families(t, func(t *testing.T, v family) {
		for _, raised := range []netip.Addr{v.of(w.a), v.of(w.b)} {
			w.forget()
			w.unraised = false
			w.enforce(&w.a, abi.Egress, allow(abi.ClassPod, tcp, 80))
			w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, tcp, 80))
			w.unraised = true
			syns := v.out(w.a, v.of(w.b), tcp, 40000, 80, syn)
			first := w.from(w.a, syns)
			first.accepted(t, redirected, abi.Egress, abi.Ingress)

			// Only what was judged is the same: the next of it tells of the same rows.
			w.enforce(&w.b, abi.Ingress)
			syns.srcPort++
			second := w.from(w.a, syns)
			second.accepted(t, redirected, abi.Egress, abi.Ingress)
			if a, b := first.events[0], second.events[0]; a.Row != b.Row || a.Table != b.Table || a.SrcPeer != b.SrcPeer || a.DstPeer != b.DstPeer || a.Endpoint != b.Endpoint {
				t.Errorf("the second flow has event %+v, the first %+v", b, a)
			}
			w.enforce(&w.b, abi.Egress)
			w.from(w.b, v.out(w.b, v.of(w.a), tcp, 40000, 80, syn)).refused(t, abi.PolicyDefaultDeny, abi.Egress)
			w.from(w.a, v.out(w.a, v.of(w.b), sctp, 40000, 80, 0)).refused(t, abi.PolicyDefaultDeny, abi.Egress)
			w.noneIsOpen(t, v.out(w.a, v.of(w.b), tcp, 40000, 0, syn), 1000, 3000)
			w.from(w.a, syns)

			w.o.BumpGenerations(abi.AddrFrom(raised))
			syns.srcPort++
			w.from(w.a, syns).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
			// What was refused is judged each time.
			w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, tcp, 80))
			w.from(w.a, syns).accepted(t, redirected, abi.Egress, abi.Ingress)
		}
	})
}

// noneIsOpen sends f of a to each of these ports, of which some have the place that the
// port of the flow before has.
func (w *world) noneIsOpen(t *testing.T, f frame, from, to uint16) {
	t.Helper()
	err := w.ns.Do(func() error {
		if err := onOneCPU(); err != nil {
			return err
		}
		for f.dstPort = from; f.dstPort < to; f.dstPort++ {
			verdict, err := w.o.FromContainer.Run(&ebpf.RunOptions{Data: f.bytes(), Context: skbContext{Ifindex: w.a.ifindex}})
			if err != nil {
				return err
			}
			if verdict != dropped {
				return fmt.Errorf("port %d: verdict %d", f.dstPort, verdict)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.events() // one of each
}

// TestAdmittedIsJudged compares flow after flow with the model while tables change,
// each change with its generations.
func TestAdmittedIsJudged(t *testing.T) {
	sizes := smallSizes()
	sizes["policy"] = 1 << 16 // of all tables that there ever were
	w := newWorld(t, sizes)
	families(t, func(t *testing.T, v family) {
		rapid.Check(t, func(rt *rapid.T) { w.flowAfterFlow(rt, v) })
	})
}

func (w *world) flowAfterFlow(rt *rapid.T, v family) {
	tables := map[abi.Direction][]row{}
	change := func(rt *rapid.T, d abi.Direction, p *pod) {
		var rows []row
		for i, port := range []uint16{80, 81} {
			if verdict := rapid.SampledFrom([]abi.Verdict{abi.VerdictNone, abi.VerdictAllow, abi.VerdictDeny}).Draw(rt, "verdict"); verdict != abi.VerdictNone {
				rows = append(rows, row{[]uint64{abi.ClassPod, abi.ClassAny}[i], tcp, port, 16, verdict})
			}
		}
		tables[d] = rows
		w.enforce(p, d, rows...)
	}
	change(rt, abi.Egress, &w.a)
	change(rt, abi.Ingress, &w.b)
	w.enforce(&w.b, abi.Egress)
	srcPort := uint16(40000)
	rt.Repeat(map[string]func(*rapid.T){
		"egress":  func(rt *rapid.T) { change(rt, abi.Egress, &w.a) },
		"ingress": func(rt *rapid.T) { change(rt, abi.Ingress, &w.b) },
		"flow": func(rt *rapid.T) {
			port := rapid.SampledFrom([]uint16{80, 81}).Draw(rt, "port")
			srcPort++
			r := w.from(w.a, v.out(w.a, v.of(w.b), tcp, srcPort, port, syn))
			reason, ok := model(tables[abi.Egress], abi.ClassPod, true, tcp, port)
			d := abi.Egress
			if ok {
				reason, ok = model(tables[abi.Ingress], abi.ClassPod, true, tcp, port)
				d = abi.Ingress
			}
			if passed := r.verdict == redirected; passed != ok {
				rt.Fatalf("port %d of %v: verdict %d, want admitted %v", port, tables, r.verdict, ok)
			}
			if !ok && (len(r.events) != 1 || r.events[0].Reason != reason || r.events[0].Direction != d) {
				rt.Fatalf("port %d of %v: events %+v, want one of %v %v", port, tables, r.events, reason, d)
			}
		},
	})
	w.forget()
}
