package projections

import (
	"fmt"
	"net/netip"

	"github.com/varve-net/varve/bpf/abi"
)

// PolicyRow is a row of the policy table.
type PolicyRow = Row[abi.PolicyKey, abi.PolicyValue]

// Question asks what one direction of an endpoint's policy says of a connection.
type Question struct {
	Endpoint  uint32 // id of an endpoint of this node
	Direction abi.Direction
	// Peer is the other side: what PeerOf gave for its address, or a reserved
	// identity.
	Peer     uint64
	Protocol uint8  // IP protocol number
	Port     uint16 // destination port; the type for ICMP and ICMPv6
	// Learned are the classes of names by which the endpoint knows the peer's address
	// at that moment (Tables.Opens). They count for a peer in the world.
	Learned []uint64
}

// Answer is the verdict and the rows that made it.
type Answer struct {
	Verdict abi.Verdict // allow or deny, never none
	// Default tells that no row decided: the direction's default did.
	Default bool
	// Audited tells that audit mode lets it pass: the verdict is allow and would be
	// deny. Default and Row say what would deny it.
	Audited bool
	// Row decided; nil for a default. Its Cause names rules and events.
	Row   *PolicyRow
	Table uint64 // the policy table asked; 0: the endpoint has no rule there
	Class uint64 // the class found for the peer: of the scope, or its base class
	// ByName tells that nothing but what the endpoint has learned of the address could
	// allow what is denied otherwise: the rows of Question.Learned were looked at.
	ByName bool
}

// PeerOf resolves an address as the programs do: the exact address, then the
// longest prefix, then the world.
func (t *Tables) PeerOf(a netip.Addr) uint64 {
	addr := abi.AddrFrom(a)
	for bits := 128; bits >= 0; bits-- {
		if row, ok := t.IPCache.Get(Prefix{PrefixLen: uint32(bits), Addr: maskAddr(addr, bits)}); ok {
			return row.Value.Peer
		}
	}
	if a.Unmap().Is4() {
		return uint64(abi.IdentityWorldIPv4)
	}
	return uint64(abi.IdentityWorldIPv6)
}

// Verdict walks the tables as the programs do on the first packet of a flow. It
// does not know the one exception they make before any policy: an endpoint
// always reaches itself. ErrUnknownEndpoint if the endpoint is not of this node.
func (t *Tables) Verdict(q Question) (Answer, error) {
	ep, ok := t.Endpoints.Get(EndpointKey{ID: q.Endpoint})
	if !ok {
		return Answer{}, fmt.Errorf("endpoint %d: %w", q.Endpoint, ErrUnknownEndpoint)
	}
	ref := ep.Value.Egress
	peer := q.Peer
	if q.Direction == abi.Ingress {
		ref = ep.Value.Ingress
		peer = ingressPeer(peer)
	}
	class := t.classOf(ref.Scope, peer)
	a := Answer{Verdict: abi.VerdictAllow, Table: ref.Table, Class: class}

	var own, base *PolicyRow
	if abi.IsOwnClass(class) {
		own = t.longest(ref.Table, class, ref.ClassLens, q.Protocol, q.Port)
	}
	if b := abi.BaseOf(class); b != abi.ClassAny {
		base = t.longest(ref.Table, b, ref.BaseLens, q.Protocol, q.Port)
	}
	any := t.longest(ref.Table, abi.ClassAny, ref.AnyLens, q.Protocol, q.Port)
	rows := []*PolicyRow{own, base, any}
	a.judge(rows, ref.Flags)
	if a.ByName = a.Default && q.Direction == abi.Egress && ref.Flags&abi.PolicyFQDN != 0 &&
		ref.Flags&(abi.PolicyEnforced|abi.PolicyAuditDefault) != 0 && isWorld(abi.BaseOf(class)); a.ByName {
		for _, learned := range q.Learned {
			rows = append(rows, t.longest(ref.Table, learned, ref.ClassLens, q.Protocol, q.Port))
		}
		a.Default = false
		a.judge(rows, ref.Flags)
	}
	a.audit(rows, ref.Flags)
	return a, nil
}

func isWorld(base uint64) bool { return base == baseWorldIPv4 || base == baseWorldIPv6 }

// judge finds what policies other than those in audit mode say.
func (a *Answer) judge(rows []*PolicyRow, flags uint32) {
	for _, want := range []abi.Verdict{abi.VerdictDeny, abi.VerdictAllow} {
		for _, row := range rows {
			if row != nil && row.Value.Verdict == want {
				a.Verdict, a.Row = want, row
				return
			}
		}
	}
	a.Default = true
	if flags&abi.PolicyEnforced != 0 {
		a.Verdict = abi.VerdictDeny
	}
}

// audit turns the answer into what would be denied, were nothing in audit mode.
func (a *Answer) audit(rows []*PolicyRow, flags uint32) {
	if a.Verdict == abi.VerdictDeny {
		if flags&abi.PolicyAudit != 0 {
			a.Verdict, a.Audited = abi.VerdictAllow, true
		}
		return
	}
	for _, row := range rows {
		if row != nil && row.Value.Flags&abi.PolicyAudited != 0 {
			a.Audited, a.Row, a.Default = true, row, false
			return
		}
	}
	a.Audited = a.Default && flags&abi.PolicyAuditDefault != 0
}

// classOf is the peer's class within a scope: its row, else what its number says.
// The programs take the world's class of a CIDR peer from the packet's family,
// which is that of its number.
func (t *Tables) classOf(scope, peer uint64) uint64 {
	if row, ok := t.Classes.Get(abi.ClassKey{Scope: scope, Peer: peer}); ok {
		return row.Value.Class
	}
	switch identity := uint32(peer); {
	case peer&abi.PeerCIDR != 0 && peer&abi.PeerCIDRv6 != 0:
		return baseWorldIPv6
	case peer&abi.PeerCIDR != 0:
		return baseWorldIPv4
	case identity >= abi.IdentityFirstDynamic:
		return abi.ClassPod
	case uint64(identity) < abi.ClassPod:
		return uint64(identity)
	}
	return abi.ClassAny
}

// longest finds the row with the most port bits, and after all of the protocol's
// own rows that of every protocol.
func (t *Tables) longest(table, class uint64, lens uint32, protocol uint8, port uint16) *PolicyRow {
	for bits := 16; bits >= 0; bits-- {
		if lens&(1<<bits) == 0 {
			continue
		}
		if row, ok := t.Policy.Get(policyKey(table, class, node{protocol, uint8(bits), maskPort(port, bits)})); ok {
			return row
		}
	}
	if lens&abi.LensAllProtocols != 0 {
		if row, ok := t.Policy.Get(policyKey(table, class, node{})); ok {
			return row
		}
	}
	return nil
}

// ingressPeer is the peer as ingress scopes know it: named ports of the source
// play no part there.
func ingressPeer(peer uint64) uint64 {
	if peer&abi.PeerCIDR != 0 {
		return peer
	}
	return uint64(uint32(peer))
}

func maskAddr(a abi.Addr, bits int) abi.Addr {
	for i := range a {
		switch keep := bits - 8*i; {
		case keep >= 8:
		case keep <= 0:
			a[i] = 0
		default:
			a[i] &= 0xff << (8 - keep)
		}
	}
	return a
}
