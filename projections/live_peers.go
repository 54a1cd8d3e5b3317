package projections

import (
	"net/netip"
	"slices"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// livePeer is one number by which a direction knows peers of a group.
type livePeer struct {
	number uint64
	ports  []fsm.NamedPort
	users  int // endpoints
	placed bool
}

// liveGroup is the peers that no selector can tell apart: those of an identity,
// or of a base class other than that of pods.
type liveGroup struct {
	// What filling a scope looks at, of thousands of groups, is side by side.
	base     uint64
	number   uint64         // of the identity; that of a base class is its base
	events   []log.Revision // of the identity; none of a base class. Rows share them
	pending  []token32      // scratch
	identity *fsm.Identity  // nil: of a base class
	variants []*livePeer

	labels    policy.Labels
	next      *fsm.Identity // another one that took the number over
	placed    bool          // selectors know it
	selectors []*liveSelector
}

// liveSelector is a selector that scopes use, with the groups that it matches.
type liveSelector struct {
	selector *policy.Selector
	anchor   []string // labels of which each group that matches has one; nil: none is known
	groups   []*liveGroup
	uses     [2][]use // by direction
}

// use is an item of a scope.
type use struct {
	scope *liveScope
	index uint32 // in the scope's keys
	item  item
}

// token32 is a token by its item's index in the scope's keys.
type token32 struct {
	index uint32
	port  uint16
}

// peers is every peer that a rule can meet, and an index from labels to
// selectors and back.
type peers struct {
	groups    map[uint32]*liveGroup // by identity, or base class
	selectors map[string]*liveSelector
	byLabel   map[string][]*liveGroup
	anchored  map[string][]*liveSelector
	free      []*liveSelector // without anchor
	anyPorts  []use           // egress items that are a named port of everyone
	withCIDR  [2]map[*liveScope]struct{}
	sorted    []*cidr // placed, in order

	dirtyGroups map[uint32]struct{}
	touched     []*liveScope // scratch
	key         []byte       // scratch
}

func newPeers(e env) peers {
	p := peers{
		groups: make(map[uint32]*liveGroup), selectors: make(map[string]*liveSelector),
		byLabel: make(map[string][]*liveGroup), anchored: make(map[string][]*liveSelector),
		withCIDR:    [2]map[*liveScope]struct{}{make(map[*liveScope]struct{}), make(map[*liveScope]struct{})},
		dirtyGroups: make(map[uint32]struct{}),
	}
	for _, base := range bases {
		if base != basePod {
			g := &liveGroup{labels: e.reservedLabels(base), base: base, number: base}
			p.groups[uint32(base)] = g
			p.place(g)
		}
	}
	return p
}

// labelKey is scratch: it holds until the next call.
func (p *peers) labelKey(source, key, value string) []byte {
	p.key = append(append(append(append(append(p.key[:0], source...), 0), key...), 0), value...)
	return p.key
}

// place makes a group known to selectors.
func (p *peers) place(g *liveGroup) {
	g.placed = true
	match := func(s *liveSelector) {
		if s.selector.Matches(g.labels) {
			s.groups = append(s.groups, g)
			g.selectors = append(g.selectors, s)
		}
	}
	for _, l := range g.labels {
		key := p.labelKey(l.Source, l.Key, l.Value)
		for _, s := range p.anchored[string(key)] {
			match(s)
		}
		p.byLabel[string(key)] = append(p.byLabel[string(key)], g)
	}
	for _, s := range p.free {
		match(s)
	}
}

func (p *peers) unplace(g *liveGroup) {
	g.placed = false
	for _, s := range g.selectors {
		s.groups = without(s.groups, g)
	}
	g.selectors = nil
	for _, l := range g.labels {
		key := string(p.labelKey(l.Source, l.Key, l.Value))
		if rest := without(p.byLabel[key], g); len(rest) > 0 {
			p.byLabel[key] = rest
		} else {
			delete(p.byLabel, key)
		}
	}
}

// without takes one element out, in no order, in place.
func without[T comparable](s []T, x T) []T {
	i := slices.Index(s, x)
	if i < 0 {
		return s
	}
	var zero T
	last := len(s) - 1
	s[i], s[last] = s[last], zero
	return s[:last]
}

// selectorOf finds a selector or makes it, with its groups.
func (p *peers) selectorOf(s *policy.Selector) *liveSelector {
	text := s.String()
	if known, ok := p.selectors[text]; ok {
		return known
	}
	out := &liveSelector{selector: s}
	p.selectors[text] = out
	best := -1
	s.Within(func(source, key string, values []string) bool {
		size := 0
		for _, v := range values {
			size += len(p.byLabel[string(p.labelKey(source, key, v))])
		}
		if best < 0 || size < best {
			best = size
			out.anchor = make([]string, 0, len(values))
			for _, v := range values {
				out.anchor = append(out.anchor, string(p.labelKey(source, key, v)))
			}
		}
		return true
	})
	match := func(g *liveGroup) {
		if s.Matches(g.labels) {
			out.groups = append(out.groups, g)
			g.selectors = append(g.selectors, out)
		}
	}
	if out.anchor == nil {
		p.free = append(p.free, out)
		//purity:ordered a selector and a group keep each other in no order
		for _, g := range p.groups {
			if g.placed {
				match(g)
			}
		}
		return out
	}
	for _, key := range out.anchor {
		p.anchored[key] = append(p.anchored[key], out)
		for _, g := range p.byLabel[key] {
			match(g)
		}
	}
	return out
}

// dropSelector forgets a selector that no scope uses any more.
func (p *peers) dropSelector(s *liveSelector) {
	if len(s.uses[policy.Egress])+len(s.uses[policy.Ingress]) > 0 {
		return
	}
	delete(p.selectors, s.selector.String())
	for _, g := range s.groups {
		g.selectors = without(g.selectors, s)
	}
	if s.anchor == nil {
		p.free = without(p.free, s)
	}
	for _, key := range s.anchor {
		if rest := without(p.anchored[key], s); len(rest) > 0 {
			p.anchored[key] = rest
		} else {
			delete(p.anchored, key)
		}
	}
}

// use notes an endpoint of an identity with a set of named ports.
func (p *peers) use(id *fsm.Identity, number uint64, ports []fsm.NamedPort) {
	g, ok := p.groups[id.ID]
	if !ok {
		g = &liveGroup{base: basePod, number: uint64(id.ID), identity: id, next: id}
		p.groups[id.ID] = g
	}
	if g.identity.Revision != id.Revision {
		g.next = id
	}
	p.dirtyGroups[id.ID] = struct{}{}
	for _, v := range g.variants {
		if v.number == number {
			v.users++
			return
		}
	}
	g.variants = append(g.variants, &livePeer{number: number, ports: ports, users: 1})
}

func (p *peers) unuse(identity uint32, number uint64) {
	for _, v := range p.groups[identity].variants {
		if v.number == number {
			v.users--
		}
	}
	p.dirtyGroups[identity] = struct{}{}
}

// settlePeers makes peers known to the scopes, or unknown.
func (x *live) settlePeers() {
	//purity:ordered a group has rows of its own; classes are counted and found by content
	for id := range x.dirtyGroups {
		g := x.groups[id]
		renewed := g.placed && g.next != nil
		gone := true
		for _, v := range g.variants {
			gone = gone && v.users == 0
		}
		for _, v := range g.variants {
			if v.placed && (v.users == 0 || renewed) {
				v.placed = false
				x.removePeer(policy.Egress, g, v.number, v.ports)
			}
			if v.users == 0 && len(v.ports) > 0 {
				x.ids.release("peer", v.number)
			}
		}
		if g.placed && (gone || renewed) {
			x.removePeer(policy.Ingress, g, uint64(id), nil)
			x.unplace(g)
		}
		if gone {
			delete(x.groups, id)
			continue
		}
		g.variants = slices.DeleteFunc(g.variants, func(v *livePeer) bool { return v.users == 0 })
		if !g.placed {
			g.identity, g.next = g.next, nil
			g.labels, g.events = g.identity.Labels, ascending([]log.Revision{g.identity.Revision})
			x.place(g)
			x.addPeer(policy.Ingress, g, uint64(id), nil)
		}
		for _, v := range g.variants {
			if !v.placed {
				v.placed = true
				x.addPeer(policy.Egress, g, v.number, v.ports)
			}
		}
	}
	x.dirtyGroups = emptied(x.dirtyGroups)
}

// addPeer gives a peer its rows in the scopes of a direction that match it.
func (x *live) addPeer(d policy.Direction, g *liveGroup, number uint64, ports []fsm.NamedPort) {
	x.eachScope(d, g, ports, netip.Prefix{}, func(s *liveScope) { x.join(s, g, number, s.pending) })
}

func (x *live) removePeer(d policy.Direction, g *liveGroup, number uint64, ports []fsm.NamedPort) {
	x.eachScope(d, g, ports, netip.Prefix{}, func(s *liveScope) { x.leave(s, number) })
}

// placeCIDR makes a prefix a peer of both directions.
func (x *live) placeCIDR(c *cidr) {
	at, _ := slices.BinarySearchFunc(x.sorted, c.prefix, compareCIDR)
	x.sorted = slices.Insert(x.sorted, at, c)
	world := x.groups[uint32(worldOf(c.prefix))]
	for _, d := range directions {
		x.eachScope(d, world, nil, c.prefix, func(s *liveScope) { x.join(s, world, c.number, s.pending) })
	}
}

func (x *live) removeCIDR(c *cidr) {
	x.sorted = slices.DeleteFunc(x.sorted, func(o *cidr) bool { return o == c })
	world := x.groups[uint32(worldOf(c.prefix))]
	for _, d := range directions {
		x.eachScope(d, world, nil, c.prefix, func(s *liveScope) { x.leave(s, c.number) })
	}
}

func compareCIDR(c *cidr, p netip.Prefix) int { return comparePrefixes(c.prefix, p) }

var directions = []policy.Direction{policy.Egress, policy.Ingress}

// eachScope calls fn for each filled scope of a direction with an item that a
// peer matches; its pending then has the peer's tokens, in order.
func (x *live) eachScope(d policy.Direction, g *liveGroup, ports []fsm.NamedPort, prefix netip.Prefix, fn func(*liveScope)) {
	touched := x.touched[:0]
	add := func(u use) {
		if !u.scope.filled {
			return
		}
		before := len(u.scope.pending)
		u.scope.pending = u.item.tokens(u.scope.pending, u.index, ports)
		if before == 0 && len(u.scope.pending) > 0 {
			touched = append(touched, u.scope)
		}
	}
	for _, s := range g.selectors {
		for _, u := range s.uses[d] {
			add(u)
		}
	}
	if d == policy.Egress && len(ports) > 0 {
		for _, u := range x.anyPorts {
			add(u)
		}
	}
	if prefix.IsValid() {
		//purity:ordered what is pending in a scope is its own, and sorted below
		for s := range x.withCIDR[d] {
			for _, u := range s.cidrs {
				if covers(u.item.peer, prefix) {
					add(u)
				}
			}
		}
	}
	for _, s := range touched {
		sortTokens(s.pending)
		fn(s)
		s.pending = s.pending[:0]
	}
	x.touched = touched
}

// tokens adds the tokens of an item that matches but for its named port.
func (it item) tokens(out []token32, index uint32, ports []fsm.NamedPort) []token32 {
	if it.name == "" {
		return append(out, token32{index: index})
	}
	for _, p := range ports {
		if p.Name == it.name && p.Protocol == it.protocol {
			out = append(out, token32{index, p.Port})
		}
	}
	return out
}

// covers tells whether a prefix of the tables is inside a rule's CIDR and in none
// of its exceptions.
func covers(peer *policy.Peer, p netip.Prefix) bool {
	if p.Bits() < peer.CIDR.Bits() || !peer.CIDR.Contains(p.Addr()) {
		return false
	}
	return !slices.ContainsFunc(peer.Except, func(e netip.Prefix) bool {
		return p.Bits() >= e.Bits() && e.Contains(p.Addr())
	})
}

func sortTokens(tokens []token32) {
	slices.SortFunc(tokens, func(a, b token32) int {
		if a.index != b.index {
			return int(a.index) - int(b.index)
		}
		return int(a.port) - int(b.port)
	})
}
