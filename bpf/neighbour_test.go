package bpf

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/varve-net/varve/bpf/abi"
)

var broadcast = mac{255, 255, 255, 255, 255, 255}

func TestARP(t *testing.T) {
	w := newWorld(t, smallSizes())
	a, b, zero := w.a.v4, w.b.v4, netip.MustParseAddr("0.0.0.0")
	ask := func(raw []byte) frame {
		return frame{srcMAC: w.a.mac, dstMAC: broadcast, etherType: etherARP, raw: raw}
	}
	for _, target := range []netip.Addr{b, remote4, outside4, netip.MustParseAddr("169.254.1.1")} {
		r := w.from(w.a, ask(arp(1, w.a.mac, a, mac{}, target)))
		r.accepted(t, redirected, abi.Egress)
		want := frame{srcMAC: gateway, dstMAC: w.a.mac, etherType: etherARP, raw: arp(2, gateway, target, w.a.mac, a)}
		if !bytes.Equal(r.out, want.bytes()) {
			t.Errorf("answer for %s\n%x, want\n%x", target, r.out, want.bytes())
		}
		w.to(w.a, want).accepted(t, passed, abi.Ingress) // the answer meets the other hook
	}
	w.from(w.a, ask(arp(2, w.a.mac, a, gateway, host4))).accepted(t, passed, abi.Egress)
	w.to(w.a, frame{srcMAC: gateway, dstMAC: broadcast, etherType: etherARP, raw: arp(1, gateway, host4, mac{}, a)}).accepted(t, passed, abi.Ingress)

	wrong := ask(arp(1, w.a.mac, a, mac{}, b))
	wrong.srcMAC = w.b.mac
	for _, tt := range []struct {
		name   string
		f      frame
		reason abi.Reason
	}{
		{"probe", ask(arp(1, w.a.mac, zero, mac{}, b)), abi.NeighbourUnhandled},
		{"gratuitous", ask(arp(1, w.a.mac, a, mac{}, a)), abi.NeighbourUnhandled},
		{"RARP", ask(arp(3, w.a.mac, a, mac{}, b)), abi.NeighbourUnhandled},
		{"frame of another MAC", wrong, abi.SpoofedMAC},
		{"sender of another MAC", ask(arp(1, w.b.mac, a, mac{}, b)), abi.SpoofedMAC},
		{"sender of another address", ask(arp(1, w.a.mac, b, mac{}, remote4)), abi.SpoofedAddress},
		{"reply of another address", ask(arp(2, w.a.mac, b, gateway, host4)), abi.SpoofedAddress},
		{"cut", ask(arp(1, w.a.mac, a, mac{}, b)[:27]), abi.Malformed},
		{"not Ethernet", ask(append([]byte{0, 2}, arp(1, w.a.mac, a, mac{}, b)[2:]...)), abi.Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) { w.from(w.a, tt.f).refused(t, tt.reason, abi.Egress) })
	}
	t.Run("no endpoint", func(t *testing.T) {
		p := w.a
		p.ifindex = 1
		w.from(p, ask(arp(1, w.a.mac, a, mac{}, b))).refused(t, abi.NoEndpoint, abi.Egress)
	})
	t.Run("IPv4 off", func(t *testing.T) {
		w.config(func(c *abi.Config) { c.EnableIPv4 = false })
		w.from(w.a, ask(arp(1, w.a.mac, a, mac{}, b))).refused(t, abi.DisabledFamily, abi.Egress)
	})
}

func TestNeighbourDiscovery(t *testing.T) {
	w := newWorld(t, smallSizes())
	a, b := w.a.v6, w.b.v6
	multicast := netip.MustParseAddr("ff02::1:ff00:2")
	ask := func(src, dst, target netip.Addr, option mac) frame {
		return frame{srcMAC: w.a.mac, dstMAC: mac{0x33, 0x33, 0xff, 0, 0, 2}, src: src, dst: dst, proto: icmp6, icmpType: 135,
			hops: 255, payload: solicitation(target, 1, option), edit: clearReserved}
	}
	for _, tt := range []struct {
		name             string
		src, dst, target netip.Addr
		option           mac
		more             []byte
	}{
		{"multicast", a, multicast, b, w.a.mac, nil},
		{"unicast", a, b, b, w.a.mac, nil},
		{"outside", a, multicast, outside6, w.a.mac, nil},
		{"link-local gateway", a, multicast, netip.MustParseAddr("fe80::1"), w.a.mac, nil},
		{"from link-local", link6, multicast, b, w.a.mac, nil},
		{"without option", a, b, b, mac{}, nil},
		{"with a nonce", a, multicast, b, w.a.mac, []byte{14, 1, 1, 2, 3, 4, 5, 6}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := ask(tt.src, tt.dst, tt.target, tt.option)
			f.payload = append(f.payload, tt.more...)
			r := w.from(w.a, f)
			r.accepted(t, redirected, abi.Egress)
			want := frame{srcMAC: gateway, dstMAC: w.a.mac, src: tt.target, dst: tt.src, proto: icmp6, icmpType: 136, hops: 255,
				id: 0xe000, payload: solicitation(tt.target, 2, gateway), edit: clearReserved}
			if !bytes.Equal(r.out, want.bytes()) {
				t.Errorf("answer\n%x, want\n%x", r.out, want.bytes())
			}
			w.to(w.a, want).accepted(t, passed, abi.Ingress)
		})
	}
	advert := ask(a, host6, a, w.a.mac)
	advert.icmpType = 136
	w.from(w.a, advert).accepted(t, passed, abi.Egress)
	question := frame{srcMAC: gateway, dstMAC: mac{0x33, 0x33, 0xff, 0, 0, 1}, src: host6, dst: netip.MustParseAddr("ff02::1:ff00:1"),
		proto: icmp6, icmpType: 135, hops: 255, payload: solicitation(a, 1, gateway)}
	w.to(w.a, question).accepted(t, passed, abi.Ingress)

	with := func(f frame, change func(*frame)) frame { change(&f); return f }
	good := ask(a, multicast, b, w.a.mac)
	for _, tt := range []struct {
		name   string
		f      frame
		reason abi.Reason
	}{
		{"duplicate address detection", ask(netip.IPv6Unspecified(), multicast, a, mac{}), abi.NeighbourUnhandled},
		{"own address", ask(a, multicast, a, w.a.mac), abi.NeighbourUnhandled},
		{"own link-local", ask(link6, multicast, link6, w.a.mac), abi.NeighbourUnhandled},
		{"another MAC", with(good, func(f *frame) { f.srcMAC = w.b.mac }), abi.SpoofedMAC},
		{"another address", ask(b, multicast, remote6, w.a.mac), abi.SpoofedAddress},
		{"from afar", with(good, func(f *frame) { f.hops = 64 }), abi.Malformed},
		{"code", with(good, func(f *frame) { f.code = 1 }), abi.Malformed},
		{"multicast target", ask(a, multicast, multicast, w.a.mac), abi.Malformed},
		{"cut", with(good, func(f *frame) { f.payload = f.payload[:12] }), abi.Malformed},
		{"advertises to all", with(advert, func(f *frame) { f.dst = netip.MustParseAddr("ff02::1") }), abi.NeighbourUnhandled},
		{"advertises another's", with(advert, func(f *frame) { f.payload = solicitation(b, 2, w.a.mac) }), abi.SpoofedAddress},
	} {
		t.Run(tt.name, func(t *testing.T) { w.from(w.a, tt.f).refused(t, tt.reason, abi.Egress) })
	}
	t.Run("into a pod from afar", func(t *testing.T) {
		w.to(w.a, with(question, func(f *frame) { f.hops = 64 })).refused(t, abi.Malformed, abi.Ingress)
	})
	t.Run("into a pod, cut", func(t *testing.T) {
		w.to(w.a, with(question, func(f *frame) { f.payload = nil })).refused(t, abi.Malformed, abi.Ingress)
	})
}

// clearReserved zeroes the sequence number that the echo layout puts into the
// reserved bits of ND, and mends the checksum.
func clearReserved(b []byte) {
	const l4 = 14 + 40
	b[l4+6], b[l4+7], b[l4+2], b[l4+3] = 0, 0, 0, 0
	pseudo := slices.Concat(b[22:54], []byte{0, icmp6}, be16(uint16(len(b)-l4)))
	copy(b[l4+2:], be16(^sum(b[l4:], uint32(sum(pseudo, 0)))))
}
