package dataplane

import (
	"maps"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
)

// A transition carries the maps over a change of endpoints' policy and of peers
// at once, e.g. when a namespace gets another label, or a policy another CIDR.
// Neither can go first: an old scope has no class for a new peer, nor a new scope
// for an old one, and a peer without class may be allowed what both the old and
// the new policy deny it.
//
// So each prefix that moves gets an alias, a peer number that stands for exactly
// this move and nothing else:
//
//	                  old scopes                new scopes
//	alias of a move   class of the old peer     class of the new peer
//
// First the prefixes turn to their aliases, which changes no verdict; then each
// endpoint to its new policy, which takes it from its old verdicts to its new
// ones; then the prefixes to their new peers, which again changes none. An
// endpoint whose policy stays goes over with the prefixes.
//
// The identity in an endpoint's row is a peer number too, the one by which other
// endpoints' ingress policy knows it, and gets an alias in the same way.
//
// A scope that is an old and a new one would need both classes for an alias:
// endpoints that turn to it are given a copy of it until the end.
type transition struct {
	prefixes map[prefix]abi.IPCacheValue     // moved ones, with alias
	classes  map[abi.ClassKey]abi.ClassValue // rows of aliases and of copies
	// renamed are the rows, as they are, of endpoints whose identity changes,
	// with alias.
	renamed map[abi.EndpointKey]abi.EndpointValue
	// turned are the wanted rows of endpoints whose policy changes, with aliases
	// and copied scopes.
	turned map[abi.EndpointKey]abi.EndpointValue
	// settled are the renamed endpoints' rows with their new identity in place
	// of the alias, but the scopes that turned gave them: their aliases must be
	// gone before anyone turns from a copy of a scope to the scope itself.
	settled map[abi.EndpointKey]abi.EndpointValue
}

// newTransition is nil if c needs none.
func newTransition(c *change) *transition {
	if !c.mixed() {
		return nil
	}
	b := newTransitionBuilder(c)
	b.aliasPrefixes()
	b.aliasIdentities()
	b.oldClasses()
	b.turnEndpoints()
	b.settleIdentities()
	return b.t
}

// enter writes everything up to the point where all that moves has aliases and
// all endpoints their new policy.
func (w *writer) enter(t *transition) error {
	if err := w.putClasses(t.classes); err != nil {
		return err
	}
	if err := w.putEndpoints(t.renamed); err != nil {
		return err
	}
	if err := w.putPrefixes(t.prefixes); err != nil {
		return err
	}
	if err := w.quiesce(); err != nil {
		return err
	}
	if err := w.putEndpoints(t.turned); err != nil {
		return err
	}
	return w.quiesce()
}

type transitionBuilder struct {
	c       *change
	t       *transition
	aliases map[uint64]move // by their number
	// idOf has the alias of an endpoint's identity. Only ingress scopes meet it.
	idOf   map[abi.EndpointKey]uint32
	idOnly map[uint64]bool
	inUse  map[uint64]abi.Direction // scopes of endpoints that stay
	copies [2]map[uint64]uint64     // stand-ins for scopes, by direction and scope
	taken  map[uint64]bool          // numbers that mean something already
	next   uint32
}

func newTransitionBuilder(c *change) *transitionBuilder {
	b := &transitionBuilder{
		c: c,
		t: &transition{
			prefixes: make(map[prefix]abi.IPCacheValue, len(c.moved)),
			classes:  make(map[abi.ClassKey]abi.ClassValue),
			renamed:  make(map[abi.EndpointKey]abi.EndpointValue),
			turned:   make(map[abi.EndpointKey]abi.EndpointValue),
			settled:  make(map[abi.EndpointKey]abi.EndpointValue),
		},
		aliases: make(map[uint64]move, len(c.moved)),
		idOf:    make(map[abi.EndpointKey]uint32),
		idOnly:  make(map[uint64]bool),
		inUse:   make(map[uint64]abi.Direction),
		copies:  [2]map[uint64]uint64{make(map[uint64]uint64), make(map[uint64]uint64)},
		taken:   make(map[uint64]bool),
	}
	for _, r := range []*rows{c.have, c.want} {
		for _, v := range r.prefixes {
			b.taken[v.Peer] = true
			b.taken[uint64(uint32(v.Peer))] = true
		}
		for k := range r.classes {
			b.taken[k.Peer], b.taken[k.Scope] = true, true
		}
		for _, v := range r.endpoints {
			b.taken[v.Egress.Scope], b.taken[v.Ingress.Scope] = true, true
			b.taken[uint64(v.Identity)] = true
		}
	}
	return b
}

// fresh is a number with the upper half of like that means nothing yet.
func (b *transitionBuilder) fresh(like uint64) uint64 {
	for {
		b.next++
		n := like&^0xffffffff | uint64(^b.next)
		if !b.taken[n] {
			b.taken[n] = true
			return n
		}
	}
}

// alias is a new peer number for m, with the base class of one of the two peers
// where that can be, so that few class rows are needed. Those of pods carry no
// named ports: both directions know them by the same number.
func (b *transitionBuilder) alias(p prefix, m move) uint64 {
	n := uint64(0)
	for _, peer := range []uint64{m.before, m.after} {
		switch {
		case n != 0:
		case peer&abi.PeerCIDR != 0:
			n = b.fresh(peer)
		case baseClass(peer) == abi.ClassPod:
			n = b.fresh(0)
		}
	}
	if n == 0 && isIPv4(p) {
		n = b.fresh(abi.PeerCIDR)
	} else if n == 0 {
		n = b.fresh(abi.PeerCIDR | abi.PeerCIDRv6)
	}
	b.aliases[n] = m
	return n
}

func (b *transitionBuilder) aliasPrefixes() {
	ps := slices.Collect(maps.Keys(b.c.moved))
	longestFirst(ps)
	for _, p := range ps {
		v, ok := b.c.want.prefixes[p]
		if !ok {
			v = b.c.have.prefixes[p]
		}
		v.Peer = b.alias(p, b.c.moved[p])
		b.t.prefixes[p] = v
	}
}

func (b *transitionBuilder) aliasIdentities() {
	for _, k := range sorted(b.c.renamed) {
		v, want := b.c.have.endpoints[k], b.c.want.endpoints[k]
		n := b.fresh(0)
		b.aliases[n] = move{uint64(v.Identity), uint64(want.Identity)}
		b.idOnly[n] = true
		b.idOf[k] = uint32(n)
		v.Identity = uint32(n)
		b.t.renamed[k] = v
	}
}

// oldClasses gives every alias its old class in the scopes in use.
func (b *transitionBuilder) oldClasses() {
	for k, v := range b.c.have.endpoints {
		if _, stays := b.c.want.endpoints[k]; stays {
			for d, ref := range refs(&v) {
				b.inUse[ref.Scope] = abi.Direction(d)
			}
		}
	}
	for scope, d := range b.inUse {
		b.rows(scope, d, func(m move) uint64 { return b.c.have.classOf(scope, m.before, d) })
	}
}

// turnEndpoints gives every alias its new class in the scopes that endpoints turn
// to or, if these are in use, in a copy of them.
func (b *transitionBuilder) turnEndpoints() {
	added := make(map[uint64]abi.Direction)
	for _, k := range sorted(b.c.turned) {
		old, v := b.c.have.endpoints[k], b.c.want.endpoints[k]
		if id, ok := b.idOf[k]; ok {
			v.Identity = id
		}
		oldRefs := refs(&old)
		for d, ref := range refs(&v) {
			if *ref == *oldRefs[d] {
				continue
			}
			if _, inUse := b.inUse[ref.Scope]; inUse {
				ref.Scope = b.copyOf(ref.Scope, d)
			} else {
				added[ref.Scope] = abi.Direction(d)
			}
		}
		b.t.turned[k] = v
	}
	for scope, d := range added {
		b.rows(scope, d, func(m move) uint64 { return b.c.want.classOf(scope, m.after, d) })
	}
	for k, v := range b.c.want.classes {
		for d := range b.copies {
			if stand, ok := b.copies[d][k.Scope]; ok {
				b.t.classes[abi.ClassKey{Scope: stand, Peer: k.Peer}] = v
			}
		}
	}
	for d, copies := range b.copies {
		for scope, stand := range copies {
			d := abi.Direction(d)
			b.rows(stand, d, func(m move) uint64 { return b.c.want.classOf(scope, m.after, d) })
		}
	}
}

func (b *transitionBuilder) settleIdentities() {
	for _, k := range b.c.renamed {
		v, ok := b.t.turned[k]
		if !ok {
			v = b.c.want.endpoints[k]
		}
		v.Identity = b.c.want.endpoints[k].Identity
		b.t.settled[k] = v
	}
}

func (b *transitionBuilder) copyOf(scope uint64, d int) uint64 {
	stand, ok := b.copies[d][scope]
	if !ok {
		stand = b.fresh(abi.PeerCIDR)
		b.copies[d][scope] = stand
	}
	return stand
}

// rows gives the aliases their class in a scope. Scope 0 belongs to both
// directions, which see the same classes there: a peer's base class.
func (b *transitionBuilder) rows(scope uint64, d abi.Direction, class func(move) uint64) {
	for alias, m := range b.aliases {
		if b.idOnly[alias] && d == abi.Egress && scope != 0 {
			continue
		}
		if c := class(m); c != baseClass(alias) {
			b.t.classes[abi.ClassKey{Scope: scope, Peer: alias}] = abi.ClassValue{Class: c}
		}
	}
}
