package bpf

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/varve-net/varve/bpf/abi"
)

// IPv6 extension headers.
const (
	hopByHop    = 0
	routing     = 43
	fragmented  = 44
	auth        = 51
	noNext      = 59
	destination = 60
)

// TestIPv4Options: options are skipped, but not those that route.
func TestIPv4Options(t *testing.T) {
	w := newWorld(t, smallSizes())
	w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, tcp, 80), allow(abi.ClassPod, udp, 80), allow(abi.ClassPod, sctp, 80), allow(abi.ClassPod, icmp4, 8))
	const accept = abi.Forwarded
	for _, tt := range []struct {
		name    string
		options []byte
		want    abi.Reason
	}{
		{"none that count", []byte{1, 1, 1, 0}, accept},
		{"router alert", []byte{148, 4, 0, 0}, accept},
		{"record route", append([]byte{7, 39, 4}, make([]byte, 37)...), accept},
		{"time stamp after padding", slices.Concat([]byte{1, 1, 68, 8, 5, 0, 0, 0, 0, 0}, []byte{0, 0}), accept},
		{"forty without effect", bytes.Repeat([]byte{1}, 40), accept},
		{"after the end", []byte{0, 131, 3, 4}, accept},
		{"loose source route", []byte{131, 7, 4, 10, 1, 0, 3, 0}, abi.IPv4Options},
		{"strict source route", []byte{137, 7, 4, 10, 1, 0, 3, 0}, abi.IPv4Options},
		{"source route behind another", slices.Concat([]byte{148, 4, 0, 0, 1}, []byte{131, 7, 4, 10, 1, 0, 3}), abi.IPv4Options},
		{"source route at the end", append(bytes.Repeat([]byte{1}, 39), 131), abi.IPv4Options},
		{"longer than the header", []byte{148, 5, 0, 0}, abi.Malformed},
		{"without length", []byte{148, 0, 0, 0}, abi.Malformed},
		{"of one byte", []byte{148, 1, 0, 0}, abi.Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, proto := range []uint8{tcp, udp, sctp, icmp4} {
				w.forget()
				f := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v4, dst: w.b.v4, proto: proto, srcPort: 1, dstPort: 80, icmpType: 8, options: tt.options}
				if tt.want != accept {
					w.from(w.a, f).refused(t, tt.want, abi.Egress)
					continue
				}
				w.from(w.a, f).accepted(t, redirected, abi.Egress, abi.Ingress)
				f.dstPort, f.icmpType = 81, 160
				w.from(w.a, f).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
			}
		})
	}
	cut := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v4, dst: w.b.v4, proto: udp}
	cut.edit = func(b []byte) { b[14] = 0x4f } // says 60 bytes of header, and has 28
	w.from(w.a, cut).refused(t, abi.Malformed, abi.Egress)
}

// ext is an extension header of 8 bytes, without options but padding.
func ext(next uint8, rest ...byte) []byte {
	h := make([]byte, 8)
	h[0] = next
	if len(rest) == 0 {
		rest = []byte{0, 1, 4}
	}
	copy(h[1:], rest)
	return h
}

func TestExtensionHeaders(t *testing.T) {
	w := newWorld(t, smallSizes())
	w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, tcp, 80), allow(abi.ClassPod, udp, 80), allow(abi.ClassPod, sctp, 80), allow(abi.ClassPod, icmp6, 128))
	const accept = abi.Forwarded
	const L4 = 255 // stands for the protocol
	repeat := func(n int) (h []byte) {
		for range n - 1 {
			h = append(h, ext(destination)...)
		}
		return append(h, ext(L4)...)
	}
	for _, tt := range []struct {
		name  string
		first uint8
		ext   []byte
		want  abi.Reason
	}{
		{"hop-by-hop", hopByHop, ext(L4), accept},
		{"jumbo payload", hopByHop, ext(L4, 0, 0xc2, 4, 0, 1, 0, 0), accept},
		{"destination options", destination, ext(L4), accept},
		{"of 24 bytes", destination, slices.Concat([]byte{L4, 2, 1, 20}, make([]byte, 20)), accept},
		{"routing, used up", routing, ext(L4, 0, 3, 0), accept},
		{"all of them", hopByHop, slices.Concat(ext(destination), ext(routing), ext(destination, 0, 4, 0), ext(L4)), accept},
		{"a fragment alone", fragmented, ext(L4, 0, 0, 0), accept},
		{"a fragment alone behind others", hopByHop, slices.Concat(ext(fragmented), ext(destination, 0, 0, 0), ext(L4)), accept},
		{"seven", destination, repeat(7), accept},
		{"eight", destination, repeat(8), abi.ExtensionHeader},
		{"hop-by-hop not first", destination, slices.Concat(ext(hopByHop), ext(L4)), abi.ExtensionHeader},
		{"routing of type 0", routing, ext(L4, 0, 0, 0), abi.ExtensionHeader},
		{"routing, one to go", routing, ext(L4, 0, 4, 1), abi.ExtensionHeader},
		{"two fragments", fragmented, slices.Concat(ext(fragmented, 0, 0, 0), ext(L4, 0, 0, 0)), abi.ExtensionHeader},
		{"authentication", auth, ext(L4), abi.ExtensionHeader},
		{"mobility", 135, ext(L4), abi.ExtensionHeader},
		{"host identity", 139, ext(L4), abi.ExtensionHeader},
		{"shim6", 140, ext(L4), abi.ExtensionHeader},
		{"nothing next", destination, ext(noNext), abi.UnknownProtocol},
		{"GRE next", destination, ext(gre), abi.UnknownProtocol},
		{"ICMP of IPv4 next", destination, ext(icmp4), abi.UnknownProtocol},
		{"longer than the packet", destination, ext(L4, 200), abi.Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, proto := range []uint8{tcp, udp, sctp, icmp6} {
				w.forget()
				f := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v6, dst: w.b.v6, proto: proto, srcPort: 1, dstPort: 80, icmpType: 128, next: tt.first}
				f.options = bytes.ReplaceAll(slices.Clone(tt.ext), []byte{L4}, []byte{proto})
				if tt.want != accept {
					w.from(w.a, f).refused(t, tt.want, abi.Egress)
					continue
				}
				w.from(w.a, f).accepted(t, redirected, abi.Egress, abi.Ingress)
				f.dstPort, f.icmpType = 81, 160
				w.from(w.a, f).refused(t, abi.PolicyDefaultDeny, abi.Ingress)
			}
		})
	}
	// Neighbour discovery must not hide: its sender's address would go unchecked.
	for kind := uint8(133); kind <= 137; kind++ {
		f := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v6, dst: w.b.v6, proto: icmp6, icmpType: kind, next: destination, options: ext(icmp6)}
		w.from(w.a, f).refused(t, abi.ExtensionHeader, abi.Egress)
	}
	cut := frame{srcMAC: w.a.mac, dstMAC: gateway, etherType: etherIPv6, src: w.a.v6}
	cut.raw = frame{src: w.a.v6, dst: w.b.v6, next: hopByHop, options: ext(tcp), proto: 1}.packet()[:44]
	w.from(w.a, cut).refused(t, abi.Malformed, abi.Egress)
}

// TestCitedOptions: an ICMP error belongs to its flow also if the packet that it
// cites has options, extension headers, or is the first fragment of one.
func TestCitedOptions(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		type test struct {
			next    uint8
			options []byte
			edit    func([]byte)
		}
		tests, kind := []test{{options: []byte{148, 4, 0, 0}}, {options: []byte{7, 3, 4, 0}}, {edit: func(b []byte) { b[20] = 0x20 }}}, uint8(3)
		router := netip.MustParseAddr("192.0.2.1")
		if v.icmp == icmp6 {
			kind, router = 2, netip.MustParseAddr("2001:db8:ffff::1")
			tests = []test{{next: hopByHop}, {next: destination}, {next: fragmented, options: ext(0, 0, 0, 1)}}
		}
		w.enforce(&w.a, abi.Ingress)
		defer w.policy(&w.a, abi.Ingress, false)
		for i, tt := range tests {
			for _, proto := range []uint8{tcp, udp, sctp, v.icmp} {
				t.Run(fmt.Sprint(i, "protocol", proto), func(t *testing.T) {
					w.forget()
					plain := v.out(w.a, v.outside, proto, 1000, 53, 0)
					plain.icmpType, plain.id, plain.payload = v.request, 7, make([]byte, 16)
					cited := plain
					cited.next, cited.options, cited.edit = tt.next, slices.Clone(tt.options), tt.edit
					if v.icmp == icmp6 && cited.options == nil {
						cited.options = ext(proto)
					}
					if v.icmp == icmp6 {
						cited.options[0] = proto
					}
					in := v.in(router, w.a, v.icmp, 0, 0, 0)
					in.icmpType, in.payload = kind, cited.packet()
					w.to(w.a, in).refused(t, abi.ICMPUnsolicited, abi.Ingress)
					w.from(w.a, plain).accepted(t, passed, abi.Egress)
					w.to(w.a, in).accepted(t, passed, abi.Ingress)
				})
			}
		}
	})
}
