package policytest

import (
	"encoding/binary"
	"net/netip"

	"github.com/varve-net/varve/policy"
)

// sourcePort is that of every packet; for ICMP the identifier.
const sourcePort = 40000

// packet is an Ethernet frame that opens a flow: a TCP SYN, a UDP datagram, an
// SCTP INIT or an ICMP message whose type is port. Nobody checks its transport
// checksum, which is left out. ok is false if the protocol is not of the family.
func packet(srcMAC, dstMAC [6]byte, src, dst netip.Addr, proto uint8, port uint16) (frame []byte, ok bool) {
	if src.Is4() && proto == policy.ProtoICMPv6 || src.Is6() && proto == policy.ProtoICMP {
		return nil, false
	}
	l4 := transport(proto, port)
	b := make([]byte, 0, 64+len(l4))
	b = append(append(b, dstMAC[:]...), srcMAC[:]...)
	if src.Is4() {
		const header = 20
		b = binary.BigEndian.AppendUint16(b, 0x0800)
		at := len(b)
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(header+len(l4)))
		b = append(b, 0, 1, 0x40, 0, 64, proto, 0, 0)
		b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[at+10:], checksum(b[at:]))
	} else {
		b = binary.BigEndian.AppendUint16(b, 0x86dd)
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(l4)))
		b = append(b, proto, 64)
		b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	}
	return append(b, l4...), true
}

func transport(proto uint8, port uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, sourcePort)
	b = binary.BigEndian.AppendUint16(b, port)
	switch proto {
	case policy.ProtoTCP:
		const offset, syn = 5 << 4, 2
		return append(b, 0, 0, 0, 1, 0, 0, 0, 0, offset, syn, 0xff, 0xff, 0, 0, 0, 0)
	case policy.ProtoUDP:
		return append(b, 0, 8, 0, 0)
	case policy.ProtoSCTP:
		const init, length = 1, 20
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, init, 0, 0, length)
		return append(b, make([]byte, length-4)...)
	}
	return []byte{byte(port), 0, 0, 0, sourcePort >> 8, sourcePort & 0xff, 0, 1}
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}
