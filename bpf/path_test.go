package bpf

import (
	"net/netip"
	"testing"

	"github.com/varve-net/varve/bpf/abi"
)

// families runs a test once for IPv4 and once for IPv6.
func families(t *testing.T, fn func(t *testing.T, v family)) {
	t.Run("IPv4", func(t *testing.T) {
		fn(t, family{remote4, outside4, cidr4, host4, icmp4, 8, 0, uint64(abi.IdentityWorldIPv4), func(p pod) netip.Addr { return p.v4 }})
	})
	t.Run("IPv6", func(t *testing.T) {
		fn(t, family{remote6, outside6, cidr6, host6, icmp6, 128, 129, uint64(abi.IdentityWorldIPv6), func(p pod) netip.Addr { return p.v6 }})
	})
}

type family struct {
	remote, outside, cidr, host netip.Addr
	icmp, request, reply        uint8
	world                       uint64
	of                          func(pod) netip.Addr
}

// out is a packet that p sends.
func (v family) out(p pod, dst netip.Addr, proto uint8, srcPort, dstPort uint16, flags uint8) frame {
	return frame{srcMAC: p.mac, dstMAC: gateway, src: v.of(p), dst: dst, proto: proto, srcPort: srcPort, dstPort: dstPort, flags: flags}
}

// in is a packet that the host's stack sends to p.
func (v family) in(src netip.Addr, p pod, proto uint8, srcPort, dstPort uint16, flags uint8) frame {
	return frame{srcMAC: gateway, dstMAC: p.mac, src: src, dst: v.of(p), proto: proto, srcPort: srcPort, dstPort: dstPort, flags: flags}
}

// TestLocalDelivery: from pod to pod and back without the host's stack.
func TestLocalDelivery(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		for _, proto := range []uint8{tcp, udp, sctp} {
			w.forget()
			f := v.out(w.a, v.of(w.b), proto, 40000, 80, syn)
			r := w.from(w.a, f)
			r.accepted(t, redirected, abi.Egress, abi.Ingress)
			want := f
			want.srcMAC, want.dstMAC = gateway, w.b.mac
			if string(r.out) != string(want.bytes()) {
				t.Errorf("packet out\n%x, want\n%x", r.out, want.bytes())
			}
			ct := w.flow()
			side := 0 // a compares lower
			if ct.Flags != 0 || ct.Side[side].Ifindex != w.a.ifindex || ct.Side[side].MAC != w.a.mac ||
				ct.Side[1-side].Ifindex != w.b.ifindex || ct.Side[1-side].MAC != w.b.mac || ct.SrcIdentity != 257 {
				t.Errorf("conntrack %+v", ct)
			}
			back := w.from(w.b, v.out(w.b, v.of(w.a), proto, 80, 40000, syn|ack))
			back.accepted(t, redirected, abi.Egress, abi.Ingress)
			if mac(back.out[:6]) != w.a.mac {
				t.Errorf("reply goes to %x, want %x", back.out[:6], w.a.mac)
			}
			if ct := w.flow(); ct.Flags != abi.CTSeenReply {
				t.Errorf("flags after a reply %d", ct.Flags)
			}
			if len(r.events)+len(back.events) != 0 {
				t.Error("events though they are off")
			}
		}
	})
}

// TestHostStack: to and from what is not local.
func TestHostStack(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		for _, peer := range []netip.Addr{v.remote, v.outside, v.cidr, v.host} {
			w.forget()
			f := v.out(w.a, peer, tcp, 40000, 443, syn)
			r := w.from(w.a, f)
			r.accepted(t, passed, abi.Egress)
			if string(r.out) != string(f.bytes()) {
				t.Errorf("packet changed")
			}
			w.to(w.a, v.in(peer, w.a, tcp, 443, 40000, syn|ack)).accepted(t, passed, abi.Ingress)
			if ct := w.flow(); ct.Flags&abi.CTSeenReply == 0 {
				t.Errorf("flags after a reply %d", ct.Flags)
			}
			w.forget()
			w.to(w.a, v.in(peer, w.a, udp, 5000, 53, 0)).accepted(t, passed, abi.Ingress)
			w.from(w.a, v.out(w.a, peer, udp, 53, 5000, 0)).accepted(t, passed, abi.Egress)
			if n := w.flows(); n != 1 {
				t.Errorf("%d conntrack entries, want 1", n)
			}
		}
	})
}

// TestThroughHost: a flow that a local pod opened through the host's stack (say,
// to a service address) is answered through it, so that addresses are translated
// back.
func TestThroughHost(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		w.to(w.b, v.in(v.of(w.a), w.b, tcp, 40000, 80, syn)).accepted(t, passed, abi.Ingress)
		w.from(w.b, v.out(w.b, v.of(w.a), tcp, 80, 40000, syn|ack)).accepted(t, passed, abi.Egress)
		w.o.BumpAllGenerations()
		w.from(w.b, v.out(w.b, v.of(w.a), tcp, 80, 40000, ack)).accepted(t, passed, abi.Egress)
	})
}

// TestDropReasons sends what must not pass, for every reason that has no test of
// its own.
func TestDropReasons(t *testing.T) {
	w := newWorld(t, smallSizes())
	v4 := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v4, dst: w.b.v4, proto: udp, srcPort: 1, dstPort: 2}
	v6 := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v6, dst: w.b.v6, proto: udp, srcPort: 1, dstPort: 2}
	in4 := frame{srcMAC: gateway, dstMAC: w.a.mac, src: remote4, dst: w.a.v4, proto: udp, srcPort: 1, dstPort: 2}
	in6 := frame{srcMAC: gateway, dstMAC: w.a.mac, src: remote6, dst: w.a.v6, proto: udp, srcPort: 1, dstPort: 2}
	with := func(f frame, change func(*frame)) frame { change(&f); return f }
	set := func(offset int, b ...byte) func(*frame) {
		return func(f *frame) { f.edit = func(p []byte) { copy(p[offset:], b) } }
	}
	cut := func(n int) func(*frame) {
		return func(f *frame) { et := f.bytes(); f.raw = et[14:n]; f.etherType = uint16(et[12])<<8 | uint16(et[13]) }
	}
	mapped := w.a.v4.As16()
	nowhere := w.a
	nowhere.ifindex = 1 // the loopback: no endpoint

	type test struct {
		name   string
		f      frame
		reason abi.Reason
	}
	both := func(v4, v6 frame) []test {
		return []test{
			{"VLAN", with(v4, func(f *frame) { f.etherType = etherVLAN }), abi.UnknownEtherType},
			{"LLC", with(v4, func(f *frame) { f.etherType = 100 }), abi.UnknownEtherType},
			{"IPv4 ports cut", with(v4, cut(38)), abi.Malformed},
			{"IPv4 TCP cut", with(with(v4, func(f *frame) { f.proto = tcp }), cut(50)), abi.Malformed},
			{"IPv4 ICMP cut", with(with(v4, func(f *frame) { f.proto = icmp4 }), cut(40)), abi.Malformed},
			{"IPv4 version", with(v4, set(14, 0x55)), abi.Malformed},
			{"IPv4 short header", with(v4, set(14, 0x44)), abi.Malformed},
			{"GRE", with(v4, func(f *frame) { f.proto = gre }), abi.UnknownProtocol},
			{"ICMPv6 in IPv4", with(v4, func(f *frame) { f.proto = icmp6 }), abi.UnknownProtocol},
			{"IPv4 multicast", with(v4, func(f *frame) { f.dst = netip.MustParseAddr("224.0.0.251") }), abi.Multicast},
			{"IPv4 broadcast", with(v4, func(f *frame) { f.dst = netip.MustParseAddr("255.255.255.255") }), abi.Multicast},
			{"IGMP", with(v4, func(f *frame) { f.dst, f.proto = netip.MustParseAddr("224.0.0.22"), 2 }), abi.Multicast},
			{"IPv4 to broadcast MAC", with(v4, func(f *frame) { f.dstMAC = mac{255, 255, 255, 255, 255, 255} }), abi.Multicast},
			{"IPv6 ports cut", with(v6, cut(58)), abi.Malformed},
			{"IPv6 ICMP cut", with(with(v6, func(f *frame) { f.proto = icmp6 }), cut(60)), abi.Malformed},
			{"IPv6 ICMP gone", with(with(v6, func(f *frame) { f.proto = icmp6 }), cut(54)), abi.Malformed},
			{"IPv6 version", with(v6, set(14, 0x45)), abi.Malformed},
			{"IPv6 SCTP cut", with(with(v6, func(f *frame) { f.proto = sctp }), cut(66)), abi.Malformed},
			{"IPv4 SCTP cut", with(with(v4, func(f *frame) { f.proto = sctp }), cut(46)), abi.Malformed},
			{"IPv4-mapped source", with(v6, set(22, mapped[:]...)), abi.Malformed},
			{"IPv4-mapped destination", with(v6, set(38, mapped[:]...)), abi.Malformed},
			{"authentication header", with(v6, func(f *frame) { f.proto = 51 }), abi.ExtensionHeader},
			{"no next header", with(v6, func(f *frame) { f.proto = 59 }), abi.UnknownProtocol},
			{"ICMPv4 in IPv6", with(v6, func(f *frame) { f.proto = icmp4 }), abi.UnknownProtocol},
			{"MLD report", with(v6, func(f *frame) { f.dst, f.proto = netip.MustParseAddr("ff02::16"), 0 }), abi.Multicast},
			{"mDNS", with(v6, func(f *frame) { f.dst = netip.MustParseAddr("ff02::fb") }), abi.Multicast},
			{"router solicitation", with(v6, func(f *frame) { f.dst, f.proto, f.icmpType = netip.MustParseAddr("ff02::2"), icmp6, 133 }), abi.NeighbourUnhandled},
			{"router advertisement", with(v6, func(f *frame) { f.proto, f.icmpType = icmp6, 134 }), abi.NeighbourUnhandled},
			{"ICMPv6 redirect", with(v6, func(f *frame) { f.proto, f.icmpType = icmp6, 137 }), abi.NeighbourUnhandled},
			{"ICMP redirect", with(v4, func(f *frame) { f.proto, f.icmpType = icmp4, 5 }), abi.ICMPUnsolicited},
		}
	}
	for _, tt := range both(v4, v6) {
		t.Run("from "+tt.name, func(t *testing.T) { w.from(w.a, tt.f).refused(t, tt.reason, abi.Egress) })
	}
	for _, tt := range both(in4, in6) {
		t.Run("to "+tt.name, func(t *testing.T) { w.to(w.a, tt.f).refused(t, tt.reason, abi.Ingress) })
	}
	for _, tt := range []test{
		{"IPv4 of another MAC", with(v4, func(f *frame) { f.srcMAC = w.b.mac }), abi.SpoofedMAC},
		{"IPv6 of another MAC", with(v6, func(f *frame) { f.srcMAC = w.b.mac }), abi.SpoofedMAC},
		{"IPv4 of another", with(v4, func(f *frame) { f.src = w.b.v4 }), abi.SpoofedAddress},
		{"IPv4 of nobody", with(v4, func(f *frame) { f.src = netip.MustParseAddr("0.0.0.0") }), abi.SpoofedAddress},
		{"IPv6 of another", with(v6, func(f *frame) { f.src = w.b.v6 }), abi.SpoofedAddress},
		{"IPv6 of nobody", with(v6, func(f *frame) { f.src = netip.MustParseAddr("::") }), abi.SpoofedAddress},
		{"IPv6 link-local", with(v6, func(f *frame) { f.src = link6 }), abi.SpoofedAddress},
	} {
		t.Run("from "+tt.name, func(t *testing.T) { w.from(w.a, tt.f).refused(t, tt.reason, abi.Egress) })
	}
	t.Run("from an interface without endpoint", func(t *testing.T) {
		w.from(nowhere, v4).refused(t, abi.NoEndpoint, abi.Egress)
	})
	t.Run("to an interface without endpoint", func(t *testing.T) {
		w.to(nowhere, in6).refused(t, abi.NoEndpoint, abi.Ingress)
	})
	t.Run("to an address the endpoint does not have", func(t *testing.T) {
		w.to(w.b, in4).refused(t, abi.NoEndpoint, abi.Ingress)
	})
	t.Run("IPv4 off", func(t *testing.T) {
		w.config(func(c *abi.Config) { c.EnableIPv4 = false })
		w.from(w.a, v4).refused(t, abi.DisabledFamily, abi.Egress)
		w.to(w.a, in4).refused(t, abi.DisabledFamily, abi.Ingress)
		w.from(w.a, v6).accepted(t, redirected, abi.Egress, abi.Ingress)
	})
	t.Run("IPv6 off", func(t *testing.T) {
		w.config(func(c *abi.Config) { c.EnableIPv6 = false })
		w.from(w.a, v6).refused(t, abi.DisabledFamily, abi.Egress)
		w.to(w.a, in6).refused(t, abi.DisabledFamily, abi.Ingress)
		w.from(w.a, v4).accepted(t, redirected, abi.Egress, abi.Ingress)
	})
}

// TestSpoofOnEstablished: an entry is no licence for others.
func TestSpoofOnEstablished(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		f := v.out(w.a, v.of(w.b), udp, 1000, 53, 0)
		w.from(w.a, f).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.from(w.a, f).accepted(t, redirected, abi.Egress, abi.Ingress)
		spoof := f
		spoof.srcMAC = w.b.mac
		w.from(w.a, spoof).refused(t, abi.SpoofedMAC, abi.Egress)
		w.from(w.b, spoof).refused(t, abi.SpoofedAddress, abi.Egress)
		w.from(w.b, f).refused(t, abi.SpoofedMAC, abi.Egress)
	})
}

// TestZeroConfig: a new config map lets nothing through.
func TestZeroConfig(t *testing.T) {
	w := newWorld(t, smallSizes())
	w.put(w.o.Config, uint32(0), abi.Config{})
	f := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v4, dst: w.b.v4, proto: udp}
	w.from(w.a, f).refused(t, abi.DisabledFamily, abi.Egress)
	if err := w.o.SetConfig(abi.Config{EnableIPv4: true}); err == nil {
		t.Error("SetConfig took lifetimes of 0")
	}
}

// TestEvents checks what a drop and a new flow report.
func TestEvents(t *testing.T) {
	w := newWorld(t, smallSizes())
	w.config(func(c *abi.Config) { c.NewFlowEvents = true })
	families(t, func(t *testing.T, v family) {
		w.forget()
		w.policy(&w.a, abi.Egress, false)
		w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, tcp, 80))
		f := v.out(w.a, v.of(w.b), tcp, 40000, 80, syn)
		r := w.from(w.a, f)
		r.accepted(t, redirected, abi.Egress, abi.Ingress)
		if len(r.events) != 1 {
			t.Fatalf("%d events, want 1", len(r.events))
		}
		got := r.events[0]
		if got.TimeNS == 0 {
			t.Error("no time")
		}
		got.TimeNS = 0
		want := abi.Event{
			Row: 1, Table: w.table, SrcPeer: 257, DstPeer: 258 | namedPorts,
			Src: abi.AddrFrom(v.of(w.a)), Dst: abi.AddrFrom(v.of(w.b)),
			SrcPortBE: [2]byte(be16(40000)), DstPortBE: [2]byte(be16(80)),
			Length: uint32(len(f.bytes())), Endpoint: 12, Ifindex: w.a.ifindex,
			Type: abi.EventNewFlow, Direction: abi.Ingress, Protocol: tcp,
			EtherTypeBE: [2]byte(r.out[12:14]),
		}
		if got != want {
			t.Errorf("new flow\n%+v, want\n%+v", got, want)
		}
		f.dstPort = 81
		r = w.from(w.a, f)
		r.refused(t, abi.PolicyDefaultDeny, abi.Ingress)
		got = r.events[0]
		got.TimeNS = 0
		want.Type, want.Reason, want.Row = abi.EventDrop, abi.PolicyDefaultDeny, 0
		want.DstPortBE = [2]byte(be16(81))
		if got != want {
			t.Errorf("drop\n%+v, want\n%+v", got, want)
		}
	})
}

// TestLostEvents: a full ring buffer costs events, which are counted, not packets.
func TestLostEvents(t *testing.T) {
	sizes := smallSizes()
	sizes["events"] = 4096
	w := newWorld(t, sizes)
	if err := w.ring.Close(); err != nil {
		t.Fatal(err)
	}
	f := frame{srcMAC: w.a.mac, dstMAC: gateway, etherType: 0x9999, raw: make([]byte, 46)}
	err := w.ns.Do(func() error {
		for range 100 {
			if _, _, err := w.o.FromContainer.Test(f.bytes()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c := w.counters()
	if c["unknown ethertype egress"] != 100 || c["lost events"] == 0 || c["lost events"] >= 100 {
		t.Errorf("counters %v", c)
	}
}
