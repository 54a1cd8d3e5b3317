package bpf

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
)

// learned puts an address under classes that expire so many seconds from now. As where
// the proxy does it, no generation is raised.
func (w *world) learned(p pod, a netip.Addr, seconds int, classes ...uint64) {
	w.t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		w.t.Fatal(err)
	}
	var v abi.FQDNValue
	for i, c := range classes {
		v.Class[i], v.ExpiresSeconds[i] = c, uint32(int(now.Sec)+seconds)
	}
	if err := w.o.FQDN.Put(abi.FQDNKey{Endpoint: p.value.ID, Addr: abi.AddrFrom(a)}, v); err != nil {
		w.t.Fatal(err)
	}
}

// byName gives p an egress policy whose rows hold for classes of names.
func (w *world) byName(p *pod, rows ...row) {
	w.t.Helper()
	w.enforce(p, abi.Egress, rows...)
	p.value.Egress.Flags |= abi.PolicyFQDN
	w.put(w.o.Endpoints, abi.EndpointKey{Ifindex: p.ifindex}, p.value)
}

// TestLearned: an address in the world is open to who learned it, for as long as it
// holds, and on the ports of the rules that name it.
func TestLearned(t *testing.T) {
	const api, other = abi.PeerCIDR | 0x11, abi.PeerCIDR | 0x22 // any classes of the class map
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		defer w.forget()
		try := func(p pod, dst netip.Addr, port uint16) result {
			t.Helper()
			w.forget()
			return w.from(p, v.out(p, dst, tcp, 40000, port, syn))
		}
		w.byName(&w.a, allow(api, tcp, 443))
		w.byName(&w.b, allow(api, tcp, 443))
		try(w.a, v.outside, 443).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		w.learned(w.a, v.outside, 100, other, api)
		try(w.a, v.outside, 443).accepted(t, passed, abi.Egress)
		if ct := w.flow(); ct.Row != 1 {
			t.Errorf("conntrack names row %d", ct.Row)
		}
		try(w.a, v.outside, 444).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		try(w.a, v.cidr, 443).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		try(w.b, v.outside, 443).refused(t, abi.PolicyDefaultDeny, abi.Egress)

		// Only what is in the world is known by name: a CIDR is, a pod or a host is not.
		for _, a := range []netip.Addr{v.cidr, v.remote, v.host, v.of(w.b)} {
			w.learned(w.a, a, 100, api)
		}
		try(w.a, v.cidr, 443).accepted(t, passed, abi.Egress)
		for _, a := range []netip.Addr{v.remote, v.host, v.of(w.b)} {
			try(w.a, a, 443).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		}

		// A rule that denies beats it, whatever its class.
		for _, deny := range []row{
			{v.world, tcp, 443, 16, abi.VerdictDeny}, {abi.ClassAny, tcp, 443, 16, abi.VerdictDeny},
		} {
			w.byName(&w.a, allow(api, tcp, 443), deny)
			try(w.a, v.outside, 443).refused(t, abi.PolicyDenied, abi.Egress)
		}
	})
}

// TestLearnedExpires: a name's end stops new flows and no other.
func TestLearnedExpires(t *testing.T) {
	const api = abi.PeerCIDR | 0x11
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		w.byName(&w.a, allow(api, tcp, 443))
		w.learned(w.a, v.outside, 100, api)
		w.from(w.a, v.out(w.a, v.outside, tcp, 40000, 443, syn)).accepted(t, passed, abi.Egress)
		w.learned(w.a, v.outside, -1, api)
		again := v.out(w.a, v.outside, tcp, 40000, 443, ack)
		back := v.in(v.outside, w.a, tcp, 443, 40000, ack)
		another := v.out(w.a, v.outside, tcp, 40001, 443, syn)
		w.from(w.a, again).accepted(t, passed, abi.Egress)
		w.from(w.a, another).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		w.o.BumpAllGenerations()
		w.to(w.a, back).accepted(t, passed, abi.Ingress)
		w.from(w.a, again).accepted(t, passed, abi.Egress)
		w.from(w.a, another).refused(t, abi.PolicyDefaultDeny, abi.Egress)

		// The policy no longer names it: then the flow ends, both ways.
		w.byName(&w.a, allow(api+1, tcp, 443))
		w.o.BumpAllGenerations()
		w.to(w.a, back).refused(t, abi.PolicyRevoked, abi.Egress)
		w.from(w.a, again).refused(t, abi.PolicyRevoked, abi.Egress)
	})
}
