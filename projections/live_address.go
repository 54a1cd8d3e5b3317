package projections

import (
	"cmp"
	"net/netip"
	"slices"
)

// Ranks of those who claim an address: the least has it.
const (
	rankLocalEndpoint uint8 = iota
	rankRemoteEndpoint
	rankLocalNode
	rankRemoteNode
	rankCIDR
	// rankDefault keeps an IPv4 address from ever resolving to an IPv6 prefix
	// that holds ::ffff:0:0/96, where the map has IPv4.
	rankDefault
)

// claimant is one who says that a prefix is its own.
type claimant struct {
	rank  uint8
	name  string // tells claimants of a rank apart, and orders them
	peer  uint64
	cause Cause
}

func compareClaimants(a, b claimant) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.name, b.name))
}

func (x *live) claim(p netip.Prefix, c claimant) {
	key := PrefixFrom(p)
	all := x.claims[key]
	at, known := slices.BinarySearchFunc(all, c, compareClaimants)
	if known {
		all[at] = c
	} else {
		x.claims[key] = slices.Insert(all, at, c)
	}
	x.dirtyPrefixes[key] = struct{}{}
}

func (x *live) unclaim(p netip.Prefix, rank uint8, name string) {
	key := PrefixFrom(p)
	all := slices.DeleteFunc(x.claims[key], func(c claimant) bool { return c.rank == rank && c.name == name })
	if len(all) == 0 {
		delete(x.claims, key)
	} else {
		x.claims[key] = all
	}
	x.dirtyPrefixes[key] = struct{}{}
}

func (x *live) settlePrefix(p Prefix) {
	all := x.claims[p]
	if len(all) == 0 {
		x.ipcache.remove(p)
		return
	}
	row, ok := x.ipcache.get(p)
	if value := ipcacheValue(all[0].peer); !ok || row.Value != value {
		x.ipcache.set(p, value, all[0].cause)
	} else {
		x.ipcache.recause(p, all[0].cause)
	}
}

func sameCause(a, b Cause) bool {
	return slices.Equal(a.Events, b.Events) && slices.Equal(a.Rules, b.Rules)
}

// cidr is a prefix that rules of local subjects name.
type cidr struct {
	prefix netip.Prefix
	number uint64
	tables map[*liveTable]struct{}
	placed bool
}

func (x *live) useCIDR(p netip.Prefix, t *liveTable) {
	c, ok := x.cidrs[p]
	if !ok {
		c = &cidr{prefix: p, tables: make(map[*liveTable]struct{})}
		x.cidrs[p] = c
	}
	c.tables[t] = struct{}{}
	x.dirtyCIDRs[p] = struct{}{}
}

func (x *live) unuseCIDR(p netip.Prefix, t *liveTable) {
	delete(x.cidrs[p].tables, t)
	x.dirtyCIDRs[p] = struct{}{}
}

// settleCIDR makes a prefix a peer, or none any more.
func (x *live) settleCIDR(p netip.Prefix) {
	c := x.cidrs[p]
	switch used := len(c.tables) > 0; {
	case used && !c.placed:
		c.placed, c.number = true, x.ids.cidrPeer(p)
		x.name(c.number, p.String())
		x.placeCIDR(c)
	case !used && c.placed:
		c.placed = false
		x.removeCIDR(c)
		x.name(c.number, "")
		x.ids.release("cidr", c.number)
	}
}

// claimCIDR gives a prefix its row in the ipcache.
func (x *live) claimCIDR(p netip.Prefix) {
	c := x.cidrs[p]
	if !c.placed {
		delete(x.cidrs, p)
		x.unclaim(p, rankCIDR, "")
		return
	}
	var cause Cause
	//purity:ordered join sorts
	for t := range c.tables {
		cause = join(cause, t.prefixes[p])
	}
	x.claim(p, claimant{rank: rankCIDR, peer: c.number, cause: cause})
}
