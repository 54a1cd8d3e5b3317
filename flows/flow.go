// Package flows keeps a node's flow record: who spoke with whom, what the policy in
// force said, by which row and rules, when first and last, and how often. Events of
// the ring buffer are added up in memory and appended, every few seconds, to
// segment files of bounded size and age.
//
//	ring buffer --Observe--> counts in memory --every 5 s--> block --> segment file
//	                              |
//	                              +--> followers, at once
//
// A killed process loses what is in memory, 5 s at most; a crash of the machine
// also what the kernel had not written back. What was not seen is told (Gap).
package flows

import (
	"net/netip"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log"
)

// Verdict is what became of a flow's packets.
type Verdict uint8

// Verdicts. They stand in files: never renumber.
const (
	Forwarded Verdict = 1 // a flow that policy admitted
	Dropped   Verdict = 2 // packets that were dropped, for Key.Reason
	Audited   Verdict = 3 // policy denies it, but it passes: audit mode
)

// String is the verdict as Hubble names it.
func (v Verdict) String() string {
	switch v {
	case Forwarded:
		return "FORWARDED"
	case Dropped:
		return "DROPPED"
	case Audited:
		return "AUDIT"
	}
	return "UNKNOWN"
}

// Key is what flows that are counted together have in common.
type Key struct {
	Src, Dst netip.Addr // the zero Addr: the packet is of no IP
	// SrcName and DstName are the endpoints, "namespace/name", that had the
	// addresses when it was seen; empty: none had.
	SrcName, DstName         string
	SrcIdentity, DstIdentity uint32
	Protocol                 uint8
	Port                     uint16 // of the destination; the type for ICMP and ICMPv6
	Verdict                  Verdict
	Reason                   abi.Reason // of a drop
	Direction                abi.Direction
	Row                      uint64 // of the policy that decided; 0: none did
}

// Flow is a Key with what was counted over some time.
type Flow struct {
	Key
	Rules           []string // behind Row, "cnp/default/web ingress[0]"
	FirstNS, LastNS int64    // nanoseconds since the Unix epoch
	// Count is how many flows were opened, or packets dropped.
	Count uint64
	// FirstRevision and LastRevision of the log were in force at FirstNS and LastNS.
	FirstRevision, LastRevision log.Revision
}

// Gap is a time about which the record does not know all.
type Gap struct {
	FromNS, ToNS int64
	// Lost and Overflowed events are missing in it: the ring buffer had no room, or
	// there were too many distinct flows. If both are 0, nobody watched at all.
	Lost, Overflowed uint64
	Damaged          string // what is wrong with the file that should know
}
