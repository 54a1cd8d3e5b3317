package projections

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/varve-net/varve/policy"
)

// item is one thing that a scope tells peers apart by: a selector, a CIDR with
// its exceptions, or a named port of the peers of a selector (of all peers, if
// peer is nil).
type item struct {
	peer     *policy.Peer
	name     string // of a port; empty for a plain selector or CIDR
	protocol uint8
}

func (it item) key() string {
	key := "any"
	if it.peer != nil {
		key = it.peer.Key()
	}
	if it.name == "" {
		return key
	}
	return key + " port " + it.name + "/" + policy.ProtocolName(it.protocol)
}

// match is a peer that an item matches, and for a named port its number.
type match struct {
	peer int // index in the universe
	port uint16
}

// matches is the peers that an item matches, in the order of the universe. It
// depends on nothing but the item and the peers.
func (u *universe) matches(it item) []match {
	if it.peer != nil && it.peer.CIDR.IsValid() {
		return u.inCIDR(it.peer.CIDR, it.peer.Except)
	}
	var out []match
	for _, g := range u.groups {
		if it.peer != nil && !it.peer.Selector.Matches(g.labels) {
			continue
		}
		for i := g.first; i < g.last; i++ {
			if it.name == "" {
				out = append(out, match{peer: i})
				continue
			}
			for _, p := range u.peers[i].ports {
				if p.Name == it.name && p.Protocol == it.protocol {
					out = append(out, match{i, p.Port})
				}
			}
		}
	}
	return out
}

// inCIDR is the prefixes inside cidr and in none of its exceptions, found from
// cidr's own place in their order: wider ones stand before it. Since the
// exceptions are prefixes of the universe as well, no prefix is in part inside
// one that matters: an address there resolves to the narrower.
func (u *universe) inCIDR(cidr netip.Prefix, except []netip.Prefix) []match {
	var out []match
	start, _ := slices.BinarySearchFunc(u.cidrs, cidr, comparePrefixes)
	for _, p := range u.cidrs[start:] {
		if !cidr.Contains(p.Addr()) {
			break
		}
		if !slices.ContainsFunc(except, func(e netip.Prefix) bool {
			return p.Bits() >= e.Bits() && e.Contains(p.Addr())
		}) {
			out = append(out, match{peer: u.index[p]})
		}
	}
	return out
}

// token is what a class holds: an item that matches, with the number of its
// named port.
type token struct {
	item string
	port uint16
}

func (t token) String() string {
	if t.port == 0 {
		return t.item
	}
	return t.item + "=" + strconv.Itoa(int(t.port))
}

func joinTokens(tokens []token) string {
	var b strings.Builder
	for i, t := range tokens {
		if i > 0 {
			b.WriteString(" & ")
		}
		b.WriteString(t.String())
	}
	return b.String()
}
