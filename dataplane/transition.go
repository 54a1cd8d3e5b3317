package dataplane

import (
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
// A scope that is an old and a new one would need both classes for an alias:
// endpoints that turn to it are given a copy of it until the end. Scope 0 has no
// class rows; where the alias's number does not say the old class, scope 0 too is
// replaced by one, for all endpoints.
type transition struct {
	prefixes map[prefix]abi.IPCacheValue     // moved ones, with alias
	classes  map[abi.ClassKey]abi.ClassValue // rows of aliases and of copies
	// lift are endpoint rows as they are, with scope 0 replaced; empty if that
	// is not necessary.
	lift map[abi.EndpointKey]abi.EndpointValue
	// turn are the wanted rows of endpoints, with copied scopes.
	turn map[abi.EndpointKey]abi.EndpointValue
}

// newTransition is nil if c needs none.
func newTransition(c *change) *transition {
	if len(c.turned) == 0 || len(c.moved) == 0 {
		return nil
	}
	b := newTransitionBuilder(c)
	b.aliases()
	b.liftScopeZero()
	b.oldClasses()
	b.turnEndpoints()
	return b.t
}

// enter writes everything up to the point where all prefixes have aliases and
// all endpoints their new policy.
func (w *writer) enter(t *transition) error {
	if err := w.putClasses(t.classes); err != nil {
		return err
	}
	if len(t.lift) > 0 {
		if err := w.putEndpoints(t.lift); err != nil {
			return err
		}
		if err := w.quiesce(); err != nil {
			return err
		}
	}
	if err := w.putPrefixes(t.prefixes); err != nil {
		return err
	}
	if err := w.quiesce(); err != nil {
		return err
	}
	if err := w.putEndpoints(t.turn); err != nil {
		return err
	}
	return w.quiesce()
}

type transitionBuilder struct {
	c     *change
	t     *transition
	alias map[uint64]move // by the alias's number
	// stand-ins for scope 0 and for scopes that are both old and new, by
	// direction and the scope replaced
	zero  [2]uint64
	copy  [2]map[uint64]uint64
	inUse map[uint64]abi.Direction // scopes of endpoints, after the lift
	taken map[uint64]bool          // peers and scopes that mean something already
	next  uint64
}

func newTransitionBuilder(c *change) *transitionBuilder {
	b := &transitionBuilder{
		c: c,
		t: &transition{
			prefixes: make(map[prefix]abi.IPCacheValue, len(c.moved)),
			classes:  make(map[abi.ClassKey]abi.ClassValue),
			lift:     make(map[abi.EndpointKey]abi.EndpointValue),
			turn:     make(map[abi.EndpointKey]abi.EndpointValue),
		},
		alias: make(map[uint64]move, len(c.moved)),
		copy:  [2]map[uint64]uint64{make(map[uint64]uint64), make(map[uint64]uint64)},
		inUse: make(map[uint64]abi.Direction),
		taken: make(map[uint64]bool),
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

// fresh is a number, like the one given in its upper half, that means nothing
// yet.
func (b *transitionBuilder) fresh(like uint64) uint64 {
	for {
		b.next++
		n := like&^0xffffffff | uint64(^uint32(b.next))
		if !b.taken[n] {
			b.taken[n] = true
			return n
		}
	}
}

// aliasFor is a peer number with the base class of one of the two peers, the old
// one's where that can be. Those of pods have no named ports, so that both
// directions know them by the same number.
func (b *transitionBuilder) aliasFor(m move) uint64 {
	for _, peer := range []uint64{m.before, m.after} {
		switch {
		case peer&abi.PeerCIDR != 0:
			return b.fresh(peer)
		case baseClass(peer) == abi.ClassPod:
			return b.fresh(0)
		}
	}
	return b.fresh(abi.PeerCIDR)
}

func (b *transitionBuilder) aliases() {
	ps := make([]prefix, 0, len(b.c.moved))
	for p := range b.c.moved {
		ps = append(ps, p)
	}
	longestFirst(ps)
	for _, p := range ps {
		v, ok := b.c.want.prefixes[p]
		if !ok {
			v = b.c.have.prefixes[p]
		}
		v.Peer = b.aliasFor(b.c.moved[p])
		b.alias[v.Peer] = b.c.moved[p]
		b.t.prefixes[p] = v
	}
}

// liftScopeZero gives endpoints a real scope in place of 0 if some alias would
// not have its old class there.
func (b *transitionBuilder) liftScopeZero() {
	needed := false
	for alias, m := range b.alias {
		needed = needed || baseClass(alias) != baseClass(m.before)
	}
	if needed {
		b.zero = [2]uint64{b.fresh(abi.PeerCIDR), b.fresh(abi.PeerCIDR)}
	}
	for k, old := range b.c.have.endpoints {
		if _, stays := b.c.want.endpoints[k]; !stays {
			continue
		}
		v := old
		for d, ref := range refs(&v) {
			if ref.Scope == 0 {
				ref.Scope = b.zero[d]
			}
			b.inUse[ref.Scope] = abi.Direction(d)
		}
		if v != old {
			b.t.lift[k] = v
		}
	}
}

// oldClasses gives every alias its old class in the scopes in use.
func (b *transitionBuilder) oldClasses() {
	for scope, d := range b.inUse {
		if scope == 0 {
			continue // by their number, since there is no lift
		}
		for alias, m := range b.alias {
			b.row(scope, alias, b.c.have.classOf(scope, m.before, d))
		}
	}
}

// turnEndpoints gives every alias its new class in the scopes that endpoints turn
// to, or in a copy of them.
func (b *transitionBuilder) turnEndpoints() {
	fresh := make(map[uint64]abi.Direction) // new scopes that are not in use
	for _, k := range sorted(b.c.turned) {
		v := b.c.want.endpoints[k]
		current := b.c.have.endpoints[k]
		if lifted, ok := b.t.lift[k]; ok {
			current = lifted
		}
		old := b.c.have.endpoints[k]
		oldRefs, currentRefs := refs(&old), refs(&current)
		for d, ref := range refs(&v) {
			if *ref == *oldRefs[d] {
				*ref = *currentRefs[d]
				continue
			}
			if _, inUse := b.inUse[ref.Scope]; !inUse && ref.Scope != 0 {
				fresh[ref.Scope] = abi.Direction(d)
				continue
			}
			stand, ok := b.copy[d][ref.Scope]
			if !ok {
				stand = b.fresh(abi.PeerCIDR)
				b.copy[d][ref.Scope] = stand
			}
			ref.Scope = stand
		}
		b.t.turn[k] = v
	}
	for scope, d := range fresh {
		for alias, m := range b.alias {
			b.row(scope, alias, b.c.want.classOf(scope, m.after, d))
		}
	}
	for k, v := range b.c.want.classes {
		for d := range b.copy {
			if stand, ok := b.copy[d][k.Scope]; ok {
				b.t.classes[abi.ClassKey{Scope: stand, Peer: k.Peer}] = v
			}
		}
	}
	for d := range b.copy {
		for scope, stand := range b.copy[d] {
			for alias, m := range b.alias {
				b.row(stand, alias, b.c.want.classOf(scope, m.after, abi.Direction(d)))
			}
		}
	}
}

func (b *transitionBuilder) row(scope, peer, class uint64) {
	if class != baseClass(peer) {
		b.t.classes[abi.ClassKey{Scope: scope, Peer: peer}] = abi.ClassValue{Class: class}
	}
}
