// Package abi holds the keys and values of every BPF map, laid out as the
// kernel sees them. bpf/include/abi.h is the same in C and carries the meaning
// of each field; a test in package bpf compares the two through BTF.
//
// Multi-byte fields are in host order unless their name ends in BE.
package abi

import "net/netip"

// Layout is the version of all layouts in this package. It names the directory
// of the pins, so that programs of another layout never open these maps.
const Layout = 1

// Reserved identities, numbered as in Cilium.
const (
	IdentityUnknown       uint32 = 0
	IdentityHost          uint32 = 1
	IdentityWorld         uint32 = 2
	IdentityUnmanaged     uint32 = 3
	IdentityHealth        uint32 = 4
	IdentityInit          uint32 = 5
	IdentityRemoteNode    uint32 = 6
	IdentityKubeAPIServer uint32 = 7
	IdentityIngress       uint32 = 8
	IdentityWorldIPv4     uint32 = 9
	IdentityWorldIPv6     uint32 = 10
	IdentityFirstDynamic  uint32 = 256
)

// Classes of peers that have no row in the class map. A reserved identity is its
// own class; a managed endpoint is ClassPod. Class hashes have their top bit set,
// so the two never meet.
const (
	ClassAny uint64 = 0
	ClassPod uint64 = 16

	// classOwn marks a class of the class map; its base class stands below.
	classOwn       uint64 = 1 << 63
	classBaseShift        = 58
	classBaseMask  uint64 = 31
)

// PeerCIDR marks a peer that is a CIDR prefix.
const PeerCIDR uint64 = 1 << 63

// PeerCIDRv6 is set beside PeerCIDR for an IPv6 prefix and clear for an IPv4 one,
// so that the number alone tells a prefix's base class.
const PeerCIDRv6 uint64 = 1 << 62

// Flags of PolicyRef.
const (
	PolicyEnforced uint32 = 1 << 0
	// PolicyFQDN says that the table has rows of classes that hold addresses by
	// what the endpoint learned (see FQDNValue).
	PolicyFQDN uint32 = 1 << 1
	// PolicyAsks says that the table has rows with PolicyDNS.
	PolicyAsks uint32 = 1 << 2
	// PolicyAudit lets pass, and reports, what policy would drop.
	PolicyAudit uint32 = 1 << 3
	// PolicyAuditDefault says that a policy in audit mode would have what no row
	// decides denied.
	PolicyAuditDefault uint32 = 1 << 4
)

// LensAllProtocols is the bit of a lens mask that says that a row with protocol
// 0 exists; bit n (0 to 16) says that rows with n port bits exist.
const LensAllProtocols uint32 = 1 << 17

// GenerationSlots is the number of policy generation counters.
const GenerationSlots = 4096

// Verdict of a policy row.
type Verdict uint8

// Verdicts. A deny beats every allow, wherever either was found.
const (
	VerdictNone  Verdict = 0
	VerdictAllow Verdict = 1
	VerdictDeny  Verdict = 2
)

// Direction in which a packet passes a container's interface.
type Direction uint8

// Directions.
const (
	Egress  Direction = 0
	Ingress Direction = 1
)

// ClassOf is the class of the class map that is part of a base class and has this
// hash, of which the upper bits are not used.
func ClassOf(base, hash uint64) uint64 {
	return classOwn | base&classBaseMask<<classBaseShift | hash&(1<<classBaseShift-1)
}

// BaseOf is the base class that a class is part of; a base class is part of itself.
// A class of the class map does not repeat the rows of its base class.
func BaseOf(class uint64) uint64 {
	if !IsOwnClass(class) {
		return class
	}
	return class >> classBaseShift & classBaseMask
}

// IsOwnClass tells whether a class is one of the class map.
func IsOwnClass(class uint64) bool { return class&classOwn != 0 }

// Addr is an address as the maps hold it: 16 bytes, IPv4 as ::ffff:a.b.c.d.
type Addr [16]byte

// AddrFrom converts a valid address.
func AddrFrom(a netip.Addr) Addr { return a.As16() }

// Addr converts back; IPv4 comes out as IPv4.
func (a Addr) Addr() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// IsZero tells whether a is the unset address.
func (a Addr) IsZero() bool { return a == Addr{} }

// GenerationSlot is the generation counter that a owns. The same computation
// stands in bpf/include/conntrack.h.
func (a Addr) GenerationSlot() uint32 {
	var h uint32
	for i := 0; i < 16; i += 4 {
		h ^= uint32(a[i]) | uint32(a[i+1])<<8 | uint32(a[i+2])<<16 | uint32(a[i+3])<<24
	}
	return (h * 0x9E3779B1) >> 20
}

// IPCacheKey is an exact address.
type IPCacheKey struct {
	Addr Addr
}

// IPCacheLPMKey is a prefix; PrefixLen counts from the start of the 16 bytes, so
// it is 96 + n for IPv4.
type IPCacheLPMKey struct {
	PrefixLen uint32
	Addr      Addr
}

// IPCacheValue says who owns an address.
type IPCacheValue struct {
	Peer uint64
	// Ifindex of the host side if the endpoint is local, else 0. Bound by
	// package dataplane; always 0 in a desired table.
	Ifindex uint32
	Flags   uint32
}

// PolicyRef is one direction of an endpoint's policy.
type PolicyRef struct {
	Table     uint64
	Scope     uint64
	ClassLens uint32 // of classes of the scope
	AnyLens   uint32
	Flags     uint32
	BaseLens  uint32 // of base classes
}

// EndpointKey is the host side's interface; local to this boot, so a desired
// table has the endpoint's id in its place.
type EndpointKey struct {
	Ifindex uint32
}

// EndpointValue is all the programs know of a local endpoint.
type EndpointValue struct {
	ID       uint32
	Identity uint32
	Egress   PolicyRef
	Ingress  PolicyRef
	IPv4     [4]byte
	MAC      [6]byte
	Flags    uint16
	IPv6     [16]byte
	_        uint32
}

// ClassKey asks for a peer's class within a scope.
type ClassKey struct {
	Scope uint64
	Peer  uint64
}

// ClassValue is the answer.
type ClassValue struct {
	Class uint64
}

// PolicyKey addresses one policy row.
type PolicyKey struct {
	Table    uint64
	Class    uint64
	PortBE   [2]byte
	Protocol uint8
	PortBits uint8
	_        uint32
}

// PolicyDNS, a flag of an allowing PolicyValue: what is sent there goes to the DNS
// proxy and nowhere else.
const PolicyDNS uint8 = 1 << 0

// PolicyAudited, a flag of a PolicyValue whose verdict is allow or none: a deny rule
// of a policy in audit mode covers the row as well.
const PolicyAudited uint8 = 1 << 1

// PolicyValue is one policy row.
type PolicyValue struct {
	Row     uint64
	Verdict Verdict
	Flags   uint8
	_       [6]uint8
}

// FQDNPairs is how many classes an address can have for one endpoint.
const FQDNPairs = 8

// FQDNKey is an address that an endpoint learned by asking for a name.
type FQDNKey struct {
	Endpoint uint32 // id
	Addr     Addr
}

// FQDNValue is the classes whose rows hold for the address, and until when a new
// flow may use each. A class of 0 is none.
type FQDNValue struct {
	Class          [FQDNPairs]uint64
	ExpiresSeconds [FQDNPairs]uint32 // of CLOCK_MONOTONIC
}

// Proxy is the only element of the proxy map: where the DNS proxy listens. The
// proxy writes it; zero sends nothing to it.
type Proxy struct {
	PortBE [2]byte // UDP and TCP, the wildcard address of both families
	_      [6]uint8
}

// Marks of packets and sockets, below MarkMask, and the routing table that takes
// what has MarkToProxy to the local host. As in Cilium.
const (
	MarkMask      = 0xf00
	MarkToProxy   = 0x200
	MarkFromProxy = 0xb00
	ProxyTable    = 2004
)

// CT4Key and CT6Key are a flow; side 0 compares lower.
type CT4Key struct {
	Addr     [2][4]byte
	PortBE   [2][2]byte
	Protocol uint8
	_        [3]uint8
}

// CT6Key is CT4Key for IPv6.
type CT6Key struct {
	Addr     [2][16]byte
	PortBE   [2][2]byte
	Protocol uint8
	_        [3]uint8
}

// Flags of CTSide.TCP.
const (
	TCPSyn  uint8 = 1
	TCPFin  uint8 = 2
	TCPRst  uint8 = 4
	TCPData uint8 = 8
)

// CTSide is what conntrack knows of one end of a flow.
type CTSide struct {
	Ifindex uint32
	MAC     [6]byte
	TCP     uint8
	_       uint8
}

// Flags of CTValue. The lowest bit is the index of the side that opened the flow.
const (
	CTOrigin    uint32 = 1
	CTDenied    uint32 = 2
	CTSeenReply uint32 = 4
	CTProxy     uint32 = 8 // the DNS proxy is the other end, whatever the address says
)

// CTValue is one flow.
type CTValue struct {
	Row            uint64
	Generation     uint32
	Flags          uint32
	ExpiresSeconds uint32 // of CLOCK_MONOTONIC
	SrcIdentity    uint32
	Side           [2]CTSide
}

// Generations is the only element of the generations map.
type Generations struct {
	Slot [GenerationSlots]uint32
}

// Config is the only element of the config map. The zero Config, which a new map
// holds, lets nothing through.
type Config struct {
	GatewayMAC            [6]byte // of the host side of every veth pair
	EnableIPv4            bool
	EnableIPv6            bool
	NewFlowEvents         bool // an EventNewFlow for each flow admitted
	Handover              bool // what would be dropped goes on to the hook's next program: Objects.Migrate only
	_                     [2]uint8
	TCPEstablishedSeconds uint32 // TCP: also SCTP
	TCPSynSeconds         uint32 // nothing has come back yet
	TCPClosingSeconds     uint32 // RST, or FIN from both sides
	OtherSeconds          uint32
}

// DefaultConfig is both families on, with the lifetimes that Cilium has.
func DefaultConfig(gatewayMAC [6]byte) Config {
	return Config{
		GatewayMAC:            gatewayMAC,
		EnableIPv4:            true,
		EnableIPv6:            true,
		TCPEstablishedSeconds: 8000,
		TCPSynSeconds:         60,
		TCPClosingSeconds:     10,
		OtherSeconds:          60,
	}
}

// FragmentKey is a datagram that arrives in fragments at one hook.
type FragmentKey struct {
	Src       Addr
	Dst       Addr
	ID        uint32 // bytes as on the wire
	Ifindex   uint32
	Protocol  uint8 // 0 for IPv6
	Direction Direction
	_         uint16
}

// FragmentValue is what its first fragment said, if Known is not 0.
type FragmentValue struct {
	ExpiresSeconds uint32 // of CLOCK_MONOTONIC
	SrcPortBE      [2]byte
	DstPortBE      [2]byte
	PolicyPortBE   [2]byte
	Protocol       uint8
	Flags          uint8
	ICMPType       uint8
	ICMPCode       uint8
	Known          uint8
	_              uint8
}

// HeldSlots is the size of the held map, and HeldBytes that of the longest frame
// it takes.
const (
	HeldSlots uint32 = 256
	HeldBytes uint32 = 9216
)

// HeldValue is a fragment that came before its first.
type HeldValue struct {
	State          uint32 // 0 free, 1 busy, 2 full
	ExpiresSeconds uint32
	Length         uint32
	_              uint32
	Key            FragmentKey
	_              uint32
	Frame          [HeldBytes]byte
}

// Clock is the only element of the clock map.
type Clock struct {
	MonotonicSeconds uint32
	Jiffy            uint32 // when they were read
}

// Device is the MAC of an interface of the node, by its index, so that a packet can
// be put before it as if it had come in there.
type Device struct {
	MAC [6]byte
	_   [2]uint8
}

// CounterSlots is the size of the counters map, and CounterLostEvents the index
// whose packets are the events the ring buffer had no room for.
const (
	CounterSlots      uint32 = 512
	CounterLostEvents uint32 = 510
	counterAudited    uint32 = 496
)

// CounterIndex is the element of the counters map for r and d.
func CounterIndex(r Reason, d Direction) uint32 { return uint32(r)*2 + uint32(d) }

// AuditedIndex is the element that counts first packets let pass by audit mode; r is
// PolicyDefaultDeny or PolicyDenied.
func AuditedIndex(r Reason, d Direction) uint32 { return counterAudited + CounterIndex(r, d) }

// CounterValue is one CPU's share of a counter.
type CounterValue struct {
	Packets uint64
	Bytes   uint64
}

// EventType tells ring buffer records apart.
type EventType uint8

// Event types.
const (
	EventDrop    EventType = 1
	EventNewFlow EventType = 2
	EventClosed  EventType = 3
	EventAudited EventType = 4 // let pass by audit mode; the reason is that of the drop
)

// Event is one ring buffer record.
type Event struct {
	TimeNS      uint64 // boot clock
	Row         uint64
	Table       uint64
	SrcPeer     uint64
	DstPeer     uint64
	Src         Addr
	Dst         Addr
	SrcPortBE   [2]byte
	DstPortBE   [2]byte
	Length      uint32
	Endpoint    uint32
	Ifindex     uint32
	Type        EventType
	Direction   Direction
	Protocol    uint8
	Reason      Reason
	EtherTypeBE [2]byte
	_           uint16
}
