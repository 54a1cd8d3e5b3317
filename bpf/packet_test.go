package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

type mac = [6]byte

// Ethertypes, protocols, TCP flags and ICMP types as they are on the wire.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherIPv6 = 0x86dd

	icmp4 = 1
	tcp   = 6
	udp   = 17
	gre   = 47
	icmp6 = 58
	sctp  = 132

	fin, syn, rst, ack = 1, 2, 4, 16
)

// A frame is a packet in the making. Zero fields are filled in with what makes
// the packet whole.
type frame struct {
	srcMAC, dstMAC   mac
	etherType        uint16
	src, dst         netip.Addr
	proto            uint8
	srcPort, dstPort uint16
	flags            uint8 // TCP
	icmpType, code   uint8
	id               uint16 // of an ICMP echo
	chunk            uint8  // type of the first of SCTP; 0 is data
	options          []byte // of IPv4, padded to 4 bytes, or IPv6 extension headers
	next             uint8  // protocol of the first extension header
	hops             uint8
	payload          []byte         // after the L4 header
	raw              []byte         // after the Ethernet header, in place of everything
	edit             func(b []byte) // last, after all checksums
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// bytes is the frame as it is on the wire.
func (f frame) bytes() []byte {
	var l3 []byte
	etherType := f.etherType
	switch {
	case f.raw != nil:
		l3 = f.raw
	case f.src.Is4():
		l3, etherType = f.ipv4(f.l4()), or(etherType, etherIPv4)
	default:
		l3, etherType = f.ipv6(f.l4()), or(etherType, etherIPv6)
	}
	b := slices.Concat(f.dstMAC[:], f.srcMAC[:], be16(etherType), l3)
	if f.edit != nil {
		f.edit(b)
	}
	return b
}

// packet is the frame from the IP header on.
func (f frame) packet() []byte { return f.bytes()[14:] }

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

func (f frame) l4() []byte {
	switch f.proto {
	case tcp:
		b := make([]byte, 20)
		copy(b, slices.Concat(be16(f.srcPort), be16(f.dstPort)))
		b[12], b[13] = 5<<4, f.flags
		b = append(b, f.payload...)
		binary.BigEndian.PutUint16(b[16:], f.l4Checksum(b))
		return b
	case udp:
		b := slices.Concat(be16(f.srcPort), be16(f.dstPort), be16(uint16(8+len(f.payload))), be16(0), f.payload)
		binary.BigEndian.PutUint16(b[6:], f.l4Checksum(b))
		return b
	case sctp:
		return slices.Concat(be16(f.srcPort), be16(f.dstPort), make([]byte, 8), []byte{f.chunk, 0, 0, 4}, f.payload)
	case icmp4:
		b := slices.Concat([]byte{f.icmpType, f.code, 0, 0}, be16(f.id), be16(1), f.payload)
		binary.BigEndian.PutUint16(b[2:], ^sum(b, 0))
		return b
	case icmp6:
		b := slices.Concat([]byte{f.icmpType, f.code, 0, 0}, be16(f.id), be16(1), f.payload)
		binary.BigEndian.PutUint16(b[2:], f.l4Checksum(b))
		return b
	}
	return append(make([]byte, 8), f.payload...)
}

func (f frame) ipv4(l4 []byte) []byte {
	src, dst := f.src.As4(), f.dst.As4()
	length := 20 + len(f.options)
	h := slices.Concat([]byte{0x40 | uint8(length/4), 0}, be16(uint16(length+len(l4))), []byte{0, 1, 0x40, 0, or(f.hops, 64), f.proto, 0, 0},
		src[:], dst[:], f.options)
	binary.BigEndian.PutUint16(h[10:], ^sum(h, 0))
	return append(h, l4...)
}

func (f frame) ipv6(l4 []byte) []byte {
	src, dst := f.src.As16(), f.dst.As16()
	next := f.proto
	if f.options != nil {
		next = f.next
	}
	return slices.Concat([]byte{0x60, 0, 0, 0}, be16(uint16(len(f.options)+len(l4))), []byte{next, or(f.hops, 64)},
		src[:], dst[:], f.options, l4)
}

// l4Checksum is the checksum over the pseudo-header and b.
func (f frame) l4Checksum(b []byte) uint16 {
	pseudo := slices.Concat(f.src.AsSlice(), f.dst.AsSlice(), []byte{0, f.proto}, be16(uint16(len(b))))
	return ^sum(b, uint32(sum(pseudo, 0)))
}

// sum is the ones' complement sum of RFC 1071.
func sum(b []byte, start uint32) uint16 {
	s := start
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// arp is an ARP packet for IPv4 over Ethernet.
func arp(op uint16, senderMAC mac, sender netip.Addr, targetMAC mac, target netip.Addr) []byte {
	s, t := sender.As4(), target.As4()
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4}, be16(op), senderMAC[:], s[:], targetMAC[:], t[:])
}

// solicitation is the payload of a neighbour solicitation or advertisement, after
// the first 8 bytes: the target, and a link-layer address option unless m is zero.
func solicitation(target netip.Addr, option uint8, m mac) []byte {
	t := target.As16()
	if m == (mac{}) {
		return t[:]
	}
	return slices.Concat(t[:], []byte{option, 1}, m[:])
}
