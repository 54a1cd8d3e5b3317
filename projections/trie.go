package projections

import (
	"cmp"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/policy"
)

// node is a node of the tree of ports: the root is every protocol, below it are
// the protocols, below each the binary tree of its ports.
//
//	{0, 0, 0} -> {6, 0, 0} -> {6, 1, 0x8000} -> ... -> {6, 16, 0x8050}
type node struct {
	protocol uint8  // 0: every protocol, then the rest is zero
	bits     uint8  // of port that count, 0 to 16
	port     uint16 // the other bits are zero
}

// parent of a node other than the root.
func (n node) parent() node {
	if n.bits == 0 {
		return node{}
	}
	return node{n.protocol, n.bits - 1, maskPort(n.port, int(n.bits)-1)}
}

func (n node) isRoot() bool { return n == node{} }

// depth orders ancestors before descendants.
func (n node) depth() int {
	if n.protocol == 0 {
		return 0
	}
	return 1 + int(n.bits)
}

// lens is the node's bit in a lens mask.
func (n node) lens() uint32 {
	if n.protocol == 0 {
		return abi.LensAllProtocols
	}
	return 1 << n.bits
}

func compareNodes(a, b node) int {
	return cmp.Or(
		cmp.Compare(a.depth(), b.depth()),
		cmp.Compare(a.protocol, b.protocol),
		cmp.Compare(a.port, b.port),
	)
}

func maskPort(port uint16, bits int) uint16 { return port &^ (0xffff >> bits) }

// rangeNodes is the fewest nodes, at most 30, that cover the ports first to last
// of a protocol and no others.
func rangeNodes(protocol uint8, first, last uint16) []node {
	var out []node
	for lo, hi := uint32(first), uint32(last); lo <= hi; {
		bits, size := 16, uint32(1)
		for bits > 0 && lo&(2*size-1) == 0 && lo+2*size-1 <= hi {
			bits--
			size *= 2
		}
		out = append(out, node{protocol, uint8(bits), uint16(lo)})
		lo += size
	}
	return out
}

func policyKey(table, class uint64, n node) abi.PolicyKey {
	return abi.PolicyKey{
		Table: table, Class: class, Protocol: n.protocol, PortBits: n.bits,
		PortBE: [2]byte{byte(n.port >> 8), byte(n.port)},
	}
}

// claim is what one rule says of one node and all below it.
type claim struct {
	node  node
	deny  bool
	audit bool // a deny drops nothing
	rule  int  // index in the table's rules
}

// decision is a row before it has a key.
type decision struct {
	node    node
	verdict abi.Verdict // none only if audited
	// audited says that a deny of a policy in audit mode covers the node, which is not
	// denied.
	audited bool
	rules   []int // ascending: all rules of this verdict that cover the node, and the audited
	// dns, if set, says that what is allowed are DNS questions for these names. Only
	// a single port has it.
	dns *policy.DNSRules
}

func (d *decision) flags() (f uint8) {
	if d.audited {
		f |= abi.PolicyAudited
	}
	return f
}

// resolve turns claims into rows of which the longest match is final: a node is
// denied if any claim on it or above it denies, else it is allowed. A node of which
// the nearest row above it says the same has no row, unless dnsAt says that DNS
// questions there are looked at.
func resolve(claims []claim, dnsAt func(node) *policy.DNSRules) []decision {
	byNode := make(map[node][]claim, len(claims))
	nodes := make([]node, 0, len(claims))
	for _, c := range claims {
		if _, ok := byNode[c.node]; !ok {
			nodes = append(nodes, c.node)
		}
		byNode[c.node] = append(byNode[c.node], c)
	}
	slices.SortFunc(nodes, compareNodes)

	type state struct {
		verdict abi.Verdict
		audited bool
	}
	var out []decision
	states := make(map[node]state, len(nodes))
	for _, n := range nodes {
		var allow, deny, audit []int
		var above state
		found := false
		for at := n; ; at = at.parent() {
			for _, c := range byNode[at] {
				switch {
				case c.deny && c.audit:
					audit = append(audit, c.rule)
				case c.deny:
					deny = append(deny, c.rule)
				default:
					allow = append(allow, c.rule)
				}
			}
			if !found && at != n {
				above, found = states[at]
			}
			if at.isRoot() {
				break
			}
		}
		d := decision{node: n}
		switch {
		case len(deny) > 0:
			d.verdict, d.rules = abi.VerdictDeny, deny
		case len(allow) > 0:
			d.verdict, d.audited, d.dns = abi.VerdictAllow, len(audit) > 0, dnsAt(n)
			d.rules = append(allow, audit...)
		default:
			d.audited, d.rules = true, audit
		}
		states[n] = state{d.verdict, d.audited}
		if states[n] == above && d.dns == nil {
			continue
		}
		slices.Sort(d.rules)
		d.rules = slices.Compact(d.rules)
		out = append(out, d)
	}
	return out
}
