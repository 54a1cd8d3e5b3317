package abi

import "strconv"

// Reason says why a packet was dropped. Numbers are stable: add, never renumber.
type Reason uint8

// Reasons, as in enum reason of abi.h.
const (
	Forwarded          Reason = 0
	PolicyDefaultDeny  Reason = 1
	PolicyDenied       Reason = 2
	PolicyRevoked      Reason = 3
	SpoofedMAC         Reason = 4
	SpoofedAddress     Reason = 5
	UnknownEtherType   Reason = 6
	Malformed          Reason = 7
	Fragment           Reason = 8
	ExtensionHeader    Reason = 9
	UnknownProtocol    Reason = 10
	NoEndpoint         Reason = 11
	CTFull             Reason = 12
	ICMPUnsolicited    Reason = 13
	Multicast          Reason = 14
	IPv4Options        Reason = 15
	DisabledFamily     Reason = 16
	NeighbourUnhandled Reason = 17
	FragmentTiny       Reason = 18
	FragmentHeld       Reason = 19 // no drop: it comes again, and is counted again, after its first

	ProxyMissing  Reason = 20 // for the DNS proxy, which does not listen
	ProxyBypassed Reason = 21 // to or from a server around the DNS proxy

	// ReasonCount is one more than the highest reason.
	ReasonCount = 22
)

var reasonNames = [ReasonCount]string{
	"forwarded", "policy default deny", "policy denied", "policy revoked",
	"spoofed MAC", "spoofed address", "unknown ethertype", "malformed packet",
	"fragment", "extension header", "unknown protocol", "no endpoint",
	"conntrack full", "unsolicited ICMP", "multicast", "IPv4 options",
	"disabled address family", "neighbour request",
	"tiny or overlapping fragment", "fragment held", "DNS proxy missing", "around the DNS proxy",
}

// String is the reason as people read it.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "reason " + strconv.Itoa(int(r))
}
