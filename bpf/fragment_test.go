package bpf

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/varve-net/varve/bpf/abi"
)

// split cuts f's packet into fragments that begin at these offsets, in bytes, of
// what follows the IP header (and, in IPv6, the extension headers).
func (f frame) split(id uint16, offsets ...int) []frame {
	l4 := f.l4()
	var out []frame
	for i, from := range offsets {
		to, more := len(l4), 0
		if i+1 < len(offsets) {
			to, more = offsets[i+1], 1
		}
		out = append(out, f.fragment(id, from, more == 1, l4[from:to]))
	}
	return out
}

// fragment is data at offset of the datagram of which f has the header.
func (f frame) fragment(id uint16, offset int, more bool, data []byte) frame {
	var l3 []byte
	flag := uint16(0)
	if f.src.Is4() {
		l3 = f.ipv4(data)
		if more {
			flag = 0x2000
		}
		binary.BigEndian.PutUint16(l3[4:], id)
		binary.BigEndian.PutUint16(l3[6:], uint16(offset/8)|flag)
		binary.BigEndian.PutUint16(l3[10:], 0)
		header := int(l3[0]&15) * 4
		binary.BigEndian.PutUint16(l3[10:], ^sum(l3[:header], 0))
		return frame{srcMAC: f.srcMAC, dstMAC: f.dstMAC, etherType: etherIPv4, raw: l3}
	}
	if more {
		flag = 1
	}
	h := slices.Concat([]byte{f.proto, 0}, be16(uint16(offset)|flag), be16(0), be16(id))
	next := uint8(fragmented)
	if f.options != nil {
		next = f.next
	}
	// Extension headers of f are those of each fragment; the last one names 44.
	f.options, f.next = slices.Concat(f.options, h), next
	return frame{srcMAC: f.srcMAC, dstMAC: f.dstMAC, etherType: etherIPv6, raw: f.ipv6(data)}
}

// TestFragments: each fragment of an allowed packet passes, of a denied one none.
func TestFragments(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		for i, proto := range []uint8{tcp, udp, sctp, v.icmp} {
			w.forget()
			w.policy(&w.a, abi.Ingress, false)
			w.policy(&w.a, abi.Egress, false)
			w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, proto, 80), allow(abi.ClassPod, v.icmp, uint16(v.request)))
			f := v.out(w.a, v.of(w.b), proto, 40000, 80, 0)
			f.icmpType, f.id, f.payload = v.request, 9, make([]byte, 400)
			id := uint16(100 + i*10)
			for range 2 { // the first time as a new flow
				for _, part := range f.split(id, 0, 128, 256) {
					r := w.from(w.a, part)
					r.accepted(t, redirected, abi.Egress, abi.Ingress)
					if mac(r.out[:6]) != w.b.mac {
						t.Errorf("goes to %x, want %x", r.out[:6], w.b.mac)
					}
				}
			}
			if n := w.flows(); n != 1 {
				t.Errorf("%d flows, want 1", n)
			}
			// Revoked at any fragment.
			parts := f.split(id, 0, 128, 256)
			w.enforce(&w.b, abi.Ingress)
			w.o.BumpAllGenerations()
			w.from(w.a, parts[1]).refused(t, abi.PolicyRevoked, abi.Ingress)
			w.from(w.a, parts[0]).refused(t, abi.PolicyRevoked, abi.Egress)
			w.from(w.a, parts[2]).refused(t, abi.PolicyRevoked, abi.Egress)
			// A flow that is denied from the start.
			w.forget()
			for _, part := range f.split(id+1, 0, 128, 256) {
				w.from(w.a, part).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
			}
			// From the host's stack; the same identifier at another hook is another datagram.
			w.forget()
			in := v.in(v.remote, w.a, proto, 40000, 80, 0)
			in.icmpType, in.id, in.payload = v.request, 9, make([]byte, 400)
			for _, part := range in.split(id, 0, 128, 256) {
				w.to(w.a, part).accepted(t, passed, abi.Ingress)
			}
		}
	})
}

// TestFragmentsWithoutFlow: what opens no flow is judged fragment by fragment.
func TestFragmentsWithoutFlow(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		f := v.out(w.a, v.of(w.b), v.icmp, 0, 0, 0)
		f.icmpType, f.payload = 160, make([]byte, 400)
		for _, part := range f.split(1, 0, 128) {
			w.from(w.a, part).accepted(t, redirected, abi.Egress, abi.Ingress)
		}
		w.enforce(&w.b, abi.Ingress)
		for _, part := range f.split(2, 0, 128) {
			w.from(w.a, part).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
		}
		w.policy(&w.b, abi.Ingress, false)
	})
}

// TestFragmentOfOpening: only the first fragment of a SYN opens a flow.
func TestFragmentOfOpening(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		f := v.out(w.a, v.of(w.b), tcp, 40000, 80, syn)
		f.payload = make([]byte, 400)
		parts := f.split(1, 0, 128)
		w.from(w.a, parts[0]).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.from(w.b, v.out(w.b, v.of(w.a), tcp, 80, 40000, rst|ack)).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.from(w.a, parts[1]).accepted(t, redirected, abi.Egress, abi.Ingress)
		if ct := w.flow(); ct.Flags&abi.CTSeenReply == 0 {
			t.Errorf("flags %d: a later fragment opened the flow anew", ct.Flags)
		}
	})
}

// TestFragmentAttacks: fragments that cut, overwrite or hide a transport header.
func TestFragmentAttacks(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		for i, tt := range []struct {
			proto uint8
			cut   int // the longest first fragment without all of the header
			over  int // the last offset that the header reaches, 0: none
		}{{tcp, 16, 16}, {sctp, 8, 8}, {udp, 0, 0}} {
			f := v.out(w.a, v.of(w.b), tt.proto, 40000, 80, 0)
			f.payload = make([]byte, 400)
			id, l4 := uint16(10*i), f.l4()
			w.forget()
			if tt.cut > 0 {
				w.from(w.a, f.fragment(id, 0, true, l4[:tt.cut])).refused(t, abi.FragmentTiny, abi.Egress)
			}
			w.from(w.a, f.fragment(id, 0, true, l4[:128])).accepted(t, redirected, abi.Egress, abi.Ingress)
			if tt.over > 0 && v.icmp == icmp4 { // known without its first
				w.from(w.a, f.fragment(id+4, 8, true, l4[8:128])).refused(t, abi.FragmentTiny, abi.Egress)
			}
			for offset := 8; offset <= tt.over; offset += 8 {
				w.from(w.a, f.fragment(id, offset, true, l4[offset:128])).refused(t, abi.FragmentTiny, abi.Egress)
			}
			w.from(w.a, f.fragment(id, 128, true, l4[128:129])).refused(t, abi.Malformed, abi.Egress)
			w.from(w.a, f.fragment(id, 128, false, nil)).refused(t, abi.Malformed, abi.Egress)
			w.from(w.a, f.fragment(id, 65528, false, l4[:16])).refused(t, abi.Malformed, abi.Egress)
			w.from(w.a, f.fragment(id, 0, true, nil)).refused(t, abi.Malformed, abi.Egress)
			w.from(w.a, f.fragment(id, 128, false, l4[128:])).accepted(t, redirected, abi.Egress, abi.Ingress)
			// Padding of the frame is not the packet's.
			padded := f.fragment(id+1, 0, true, l4[:8])
			padded.raw = append(padded.raw, l4[8:64]...)
			if tt.proto != udp {
				w.from(w.a, padded).refused(t, abi.FragmentTiny, abi.Egress)
			}
			long := f.fragment(id+2, 0, true, l4[:128])
			long.raw = long.raw[:len(long.raw)-8] // says more than there is
			w.from(w.a, long).refused(t, abi.Malformed, abi.Egress)
			// The port of the first one that came is not that of the flow of another.
			other := f
			other.dstPort = 81
			w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, tt.proto, 80))
			w.from(w.a, other.fragment(id+3, 0, true, other.l4()[:128])).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
			w.from(w.a, f.fragment(id+3, 128, false, l4[128:])).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
			w.policy(&w.b, abi.Ingress, false)
		}
		// An error in fragments cannot be judged by what it cites.
		about := v.in(v.of(w.a), w.b, udp, 1, 2, 0)
		about.payload = make([]byte, 400)
		e := v.out(w.b, v.of(w.a), v.icmp, 0, 0, 0)
		e.icmpType, e.payload = 3, about.packet()
		w.from(w.b, e.split(77, 0, 128)[0]).refused(t, abi.Fragment, abi.Egress)
	})
}

// TestFragmentHeld: a fragment that comes before its first is neither judged nor
// lost, and takes room only of who may send it.
func TestFragmentHeld(t *testing.T) {
	w := newWorld(t, smallSizes())
	held := func(r result) {
		t.Helper()
		if r.verdict != dropped || len(r.events) != 0 || fmt.Sprint(r.counters) != fmt.Sprint(map[string]uint64{"fragment held egress": 1}) {
			t.Errorf("verdict %d, counters %v, %d events, want a held fragment", r.verdict, r.counters, len(r.events))
		}
	}
	families(t, func(t *testing.T, v family) {
		w.forget()
		f := v.out(w.a, v.of(w.b), udp, 1, 2, 0)
		f.payload = make([]byte, 400)
		parts := f.split(500, 0, 128, 256)
		spoofed := parts[1]
		spoofed.srcMAC = w.b.mac
		w.from(w.a, spoofed).refused(t, abi.SpoofedMAC, abi.Egress)
		w.from(w.b, spoofed).refused(t, abi.SpoofedAddress, abi.Egress)
		nowhere := w.a
		nowhere.ifindex = 1
		w.from(nowhere, parts[1]).refused(t, abi.NoEndpoint, abi.Egress)
		held(w.from(w.a, parts[2]))
		held(w.from(w.a, parts[1]))
		held(w.from(w.a, parts[0])) // it comes again, with the others after it
		w.from(w.a, parts[0]).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.from(w.a, parts[1]).accepted(t, redirected, abi.Egress, abi.Ingress)
		// The first of another's datagram is none of theirs.
		held(w.from(w.a, f.split(501, 0, 128)[1]))
		// As many as a datagram can have find room, and no more than there is.
		// No look at each: they are to come within what one is held for.
		before := w.counters()
		for i := range 70 {
			w.send(w.o.FromContainer, w.a, f.fragment(502, 128+8*i, true, make([]byte, 8)), make([]byte, 2048))
		}
		after := w.counters()
		w.events()
		refused := after["fragment egress"] - before["fragment egress"]
		if kept := after["fragment held egress"] - before["fragment held egress"]; kept+refused != 70 {
			t.Errorf("%d of 70 held and %d refused", kept, refused)
		}
		if refused < 6 || refused > 20 {
			t.Errorf("%d of 70 found no room, want those beyond 64", refused)
		}
	})
}
