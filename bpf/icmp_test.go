package bpf

import (
	"net/netip"
	"testing"

	"github.com/varve-net/varve/bpf/abi"
)

func (v family) echo(f frame, kind uint8, id uint16) frame {
	f.proto, f.icmpType, f.id, f.payload = v.icmp, kind, id, []byte("payload!")
	return f
}

func TestEcho(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		ping := allow(abi.ClassAny, v.icmp, uint16(v.request))
		w.enforce(&w.a, abi.Egress, ping)
		w.enforce(&w.b, abi.Ingress, ping)
		w.enforce(&w.b, abi.Egress)
		ab, ba := v.out(w.a, v.of(w.b), 0, 0, 0, 0), v.out(w.b, v.of(w.a), 0, 0, 0, 0)

		w.from(w.b, v.echo(ba, v.reply, 7)).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		w.from(w.a, v.echo(ab, v.request, 7)).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.from(w.b, v.echo(ba, v.reply, 7)).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.o.BumpAllGenerations() // a reply is judged as the request it answers
		w.from(w.b, v.echo(ba, v.reply, 7)).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.from(w.b, v.echo(ba, v.reply, 8)).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		r := w.from(w.b, v.echo(ba, v.request, 7)) // the same id, but b asks
		r.refused(t, abi.PolicyDefaultDeny, abi.Egress)
		if e := r.events[0]; e.SrcPortBE != [2]byte{0, v.request} || e.Protocol != v.icmp {
			t.Errorf("event has type %v protocol %d", e.SrcPortBE, e.Protocol)
		}
		// Nothing is enforced: a stray reply passes and opens nothing.
		w.forget()
		w.policy(&w.a, abi.Ingress, false)
		w.policy(&w.b, abi.Egress, false)
		w.from(w.b, v.echo(ba, v.reply, 9)).accepted(t, redirected, abi.Egress, abi.Ingress)
		if n := w.flows(); n != 0 {
			t.Errorf("%d flows, want 0", n)
		}
	})
}

// TestOtherICMP: messages that are neither echo nor error have no flow.
func TestOtherICMP(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		const kind = 160 // unassigned in both
		f := v.echo(v.out(w.a, v.of(w.b), 0, 0, 0, 0), kind, 0)
		w.enforce(&w.a, abi.Egress)
		w.from(w.a, f).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		w.enforce(&w.a, abi.Egress, allow(abi.ClassPod, v.icmp, kind))
		w.from(w.a, f).accepted(t, redirected, abi.Egress, abi.Ingress)
		if n := w.flows(); n != 0 {
			t.Errorf("%d flows, want 0", n)
		}
		w.policy(&w.a, abi.Egress, false)
	})
}

// TestICMPErrors: an error passes if it is about a live flow and comes from where
// such an error may come from.
func TestICMPErrors(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		kinds, router := []uint8{3, 11, 12}, netip.MustParseAddr("192.0.2.1")
		if v.icmp == icmp6 {
			kinds, router = []uint8{1, 2, 3, 4}, netip.MustParseAddr("2001:db8:ffff::1")
		}
		err := func(f frame, kind uint8, about frame) frame {
			f.proto, f.icmpType, f.payload = v.icmp, kind, about.packet()
			return f
		}
		w.enforce(&w.a, abi.Ingress)
		defer w.policy(&w.a, abi.Ingress, false)
		for _, kind := range kinds {
			for _, cited := range []frame{
				v.out(w.a, v.outside, udp, 1000, 53, 0),
				v.out(w.a, v.outside, tcp, 1000, 53, syn),
				v.out(w.a, v.outside, sctp, 1000, 53, 0),
				v.echo(v.out(w.a, v.outside, 0, 0, 0, 0), v.request, 5),
			} {
				w.forget()
				in := err(v.in(router, w.a, 0, 0, 0, 0), kind, cited)
				w.to(w.a, in).refused(t, abi.ICMPUnsolicited, abi.Ingress)
				w.from(w.a, cited).accepted(t, passed, abi.Egress)
				was := w.flow()
				w.to(w.a, in).accepted(t, passed, abi.Ingress)
				if w.flow() != was {
					t.Errorf("an error changed the flow it is about: %+v, was %+v", w.flow(), was)
				}
				w.o.BumpAllGenerations()
				w.to(w.a, in).accepted(t, passed, abi.Ingress)
				w.editFlow(func(ct *abi.CTValue) { ct.Flags |= abi.CTDenied })
				w.to(w.a, in).refused(t, abi.PolicyRevoked, abi.Ingress)
				w.editFlow(func(ct *abi.CTValue) { ct.ExpiresSeconds = 1 })
				w.to(w.a, in).refused(t, abi.ICMPUnsolicited, abi.Ingress)
			}
		}
		// Between two pods, without the host's stack.
		w.forget()
		request := v.out(w.a, v.of(w.b), udp, 1000, 53, 0)
		w.from(w.a, request).accepted(t, redirected, abi.Egress, abi.Ingress)
		refusal := err(v.out(w.b, v.of(w.a), 0, 0, 0, 0), kinds[0], request)
		r := w.from(w.b, refusal)
		r.accepted(t, redirected, abi.Egress, abi.Ingress)
		if mac(r.out[:6]) != w.a.mac {
			t.Errorf("goes to %x, want %x", r.out[:6], w.a.mac)
		}
		forged := request
		forged.src = v.remote
		w.from(w.b, err(v.out(w.b, v.of(w.a), 0, 0, 0, 0), kinds[0], forged)).refused(t, abi.ICMPUnsolicited, abi.Egress)
		// About a packet that the receiver never sent, or that the reporter never got.
		w.from(w.b, err(v.out(w.b, v.remote, 0, 0, 0, 0), kinds[0], request)).refused(t, abi.ICMPUnsolicited, abi.Egress)
		elsewhere := v.out(w.a, v.outside, udp, 1000, 53, 0)
		w.from(w.a, elsewhere).accepted(t, passed, abi.Egress)
		w.from(w.b, err(v.out(w.b, v.of(w.a), 0, 0, 0, 0), kinds[0], elsewhere)).refused(t, abi.ICMPUnsolicited, abi.Egress)
		// What cannot be understood.
		for _, cited := range []frame{
			{src: v.of(w.a), dst: v.of(w.b), proto: gre},
			v.echo(v.out(w.a, v.of(w.b), 0, 0, 0, 0), 160, 1),
		} {
			w.from(w.b, err(v.out(w.b, v.of(w.a), 0, 0, 0, 0), kinds[0], cited)).refused(t, abi.ICMPUnsolicited, abi.Egress)
		}
		cut := err(v.out(w.b, v.of(w.a), 0, 0, 0, 0), kinds[0], request)
		cut.payload = cut.payload[:12]
		w.from(w.b, cut).refused(t, abi.Malformed, abi.Egress)
	})
}
