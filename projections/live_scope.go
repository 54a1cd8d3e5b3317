package projections

import (
	"maps"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
)

// liveScope is a scope in use with the classes that its peers have.
type liveScope struct {
	*scope
	inOrder   []item // the scope's, as its keys
	tables    map[*liveTable]struct{}
	classes   map[uint64]*liveClass
	bySig     map[string]*liveClass // by base class and tokens
	cidrs     []use                 // items that are CIDRs
	selectors []*liveSelector
	causes    map[string]Cause // by item
	filled    bool             // has the rows of all peers

	pending []token32 // scratch
	sig     []byte    // scratch
}

type liveClass struct {
	*class
	sig     string
	members int
}

func newLiveScope(s *scope) *liveScope {
	items := make([]item, len(s.keys))
	for i, key := range s.keys {
		items[i] = s.items[key]
	}
	return &liveScope{
		scope: s, inOrder: items, tables: make(map[*liveTable]struct{}), classes: make(map[uint64]*liveClass), bySig: make(map[string]*liveClass),
	}
}

// settleScope fills a new scope, and gives the classes of another one the reasons
// that its tables have now.
func (x *live) settleScope(s *liveScope) {
	if !s.filled {
		s.causes = s.gatherCauses()
		x.fill(s)
		return
	}
	causes := s.gatherCauses()
	//purity:ordered sameCause has no effects
	if maps.EqualFunc(causes, s.causes, sameCause) {
		return
	}
	s.causes = causes
	//purity:ordered a class has a row of its own
	for _, c := range s.classes {
		x.reasons.recause(ClassIn{s.id, c.id}, s.causeOf(c.class))
	}
}

// gatherCauses is, for each item, the rules of all tables that use it.
func (s *liveScope) gatherCauses() map[string]Cause {
	out := make(map[string]Cause, len(s.keys))
	//purity:ordered join sorts
	for t := range s.tables {
		//purity:ordered join sorts
		for key, cause := range t.itemCauses {
			if have, ok := out[key]; ok {
				cause = join(have, cause)
			}
			out[key] = cause
		}
	}
	return out
}

func (s *liveScope) causeOf(c *class) Cause {
	var out Cause
	for i, t := range c.tokens {
		if i == 0 {
			out = s.causes[t.item]
		} else if t.item != c.tokens[i-1].item {
			out = join(out, s.causes[t.item])
		}
	}
	return out
}

func (x *live) classRows(scope uint64) []*classRow {
	return x.classes.while(abi.ClassKey{Scope: scope}, func(k abi.ClassKey) bool { return k.Scope == scope })
}

// fill makes the scope known to its selectors and gives all peers their rows.
func (x *live) fill(s *liveScope) {
	s.filled = true
	var touched []*liveGroup
	add := func(g *liveGroup, index int) {
		if len(g.pending) == 0 {
			touched = append(touched, g)
		}
		g.pending = append(g.pending, token32{index: uint32(index)})
	}
	for i, it := range s.inOrder {
		u := use{s, uint32(i), it}
		switch {
		case it.peer == nil:
			x.anyPorts = append(x.anyPorts, u)
			//purity:ordered what is pending in a group is its own
			for _, g := range x.groups {
				if g.placed && g.identity != nil {
					add(g, i)
				}
			}
		case it.peer.CIDR.IsValid():
			s.cidrs = append(s.cidrs, u)
		default:
			sel := x.selectorOf(it.peer.Selector)
			sel.uses[s.direction] = append(sel.uses[s.direction], u)
			s.selectors = append(s.selectors, sel)
			for _, g := range sel.groups {
				add(g, i)
			}
		}
	}
	if len(s.cidrs) > 0 {
		x.withCIDR[s.direction][s] = struct{}{}
	}
	rows := x.fillCIDRs(s, x.filling[:0])
	for _, g := range touched {
		rows = x.fillGroup(s, g, rows)
		g.pending = g.pending[:0]
	}
	x.classes.setAll(rows)
	clear(rows)
	x.filling = rows
}

func (x *live) fillCIDRs(s *liveScope, rows []classRow) []classRow {
	for _, c := range x.sorted {
		world := x.groups[uint32(worldOf(c.prefix))]
		s.pending = s.own(s.pending[:0], world.pending, nil)
		for _, u := range s.cidrs {
			if covers(u.item.peer, c.prefix) {
				s.pending = append(s.pending, token32{index: u.index})
			}
		}
		if len(s.pending) > 0 {
			sortTokens(s.pending)
			rows = append(rows, x.member(s, world, c.number, s.pending))
		}
	}
	s.pending = s.pending[:0]
	return rows
}

// own adds to out what a peer with certain ports has of its group's pending.
func (s *liveScope) own(out, pending []token32, ports []fsm.NamedPort) []token32 {
	for _, t := range pending {
		out = s.inOrder[t.index].tokens(out, t.index, ports)
	}
	return out
}

// fillGroup gives the peers of a group their rows. The group's pending has all
// items that match it, as if every port name were its own.
func (x *live) fillGroup(s *liveScope, g *liveGroup, rows []classRow) []classRow {
	join := func(number uint64, ports []fsm.NamedPort) {
		s.pending = s.own(s.pending[:0], g.pending, ports)
		if len(s.pending) > 0 {
			sortTokens(s.pending)
			rows = append(rows, x.member(s, g, number, s.pending))
		}
		s.pending = s.pending[:0]
	}
	if g.identity == nil || s.direction == policy.Ingress {
		join(g.number, nil)
	} else {
		for _, v := range g.variants {
			if v.placed {
				join(v.number, v.ports)
			}
		}
	}
	return rows
}

// join gives a peer the row of the class that its tokens, sorted, make.
func (x *live) join(s *liveScope, g *liveGroup, number uint64, tokens []token32) {
	row := x.member(s, g, number, tokens)
	x.classes.set(row.Key, row.Value, row.Cause)
}

// member finds the class that a peer's tokens, sorted, make, counts the peer, and
// gives the row that it is to have.
func (x *live) member(s *liveScope, g *liveGroup, number uint64, tokens []token32) classRow {
	tokens = slices.Compact(tokens)
	sig := append(s.sig[:0], byte(g.base))
	for _, t := range tokens {
		sig = le.AppendUint16(le.AppendUint32(sig, t.index), t.port)
	}
	s.sig = sig
	c, ok := s.bySig[string(sig)]
	if !ok {
		c = x.newClass(s, g.base, tokens)
		c.sig = string(sig)
		s.bySig[c.sig] = c
	}
	c.members++
	return classRow{abi.ClassKey{Scope: s.id, Peer: number}, abi.ClassValue{Class: c.id}, Cause{Events: g.events}}
}

func (x *live) newClass(s *liveScope, base uint64, tokens []token32) *liveClass {
	c := &class{base: base, tokens: make([]token, len(tokens))}
	for i, t := range tokens {
		c.tokens[i] = token{s.keys[t.index], t.port}
	}
	c.id = x.ids.class(c.base, c.content())
	out := &liveClass{class: c}
	s.classes[c.id] = out
	x.reasons.set(ClassIn{s.id, c.id}, struct{}{}, s.causeOf(c))
	if x.classUsers[c.id]++; x.classUsers[c.id] == 1 {
		x.name(c.id, joinTokens(c.tokens)+" ("+x.names[base]+")")
	}
	//purity:ordered a table has rows of its own
	for t := range s.tables {
		if t.filled {
			x.putRows(t, c.id, t.classRows(c))
		}
	}
	return out
}

// leave takes a peer's row away, and its class if it was the last that had it.
func (x *live) leave(s *liveScope, number uint64) {
	row, ok := x.classes.remove(abi.ClassKey{Scope: s.id, Peer: number})
	if !ok {
		return
	}
	c := s.classes[row.Value.Class]
	if c.members--; c.members > 0 {
		return
	}
	delete(s.bySig, c.sig)
	x.dropClass(s, c)
	//purity:ordered a table has rows of its own
	for t := range s.tables {
		if t.filled {
			x.dropRows(t.id, func(k abi.PolicyKey) bool { return k.Class == c.id }, abi.PolicyKey{Table: t.id, Class: c.id})
		}
	}
}

func (x *live) dropClass(s *liveScope, c *liveClass) {
	delete(s.classes, c.id)
	x.reasons.remove(ClassIn{s.id, c.id})
	if x.classUsers[c.id]--; x.classUsers[c.id] == 0 {
		delete(x.classUsers, c.id)
		x.name(c.id, "")
		x.ids.release("class", c.id)
	}
}

func (x *live) dropScope(s *liveScope) {
	delete(x.scopes, s.id)
	x.ids.release("scope", s.id)
	for _, row := range x.classRows(s.id) {
		x.classes.remove(row.Key)
	}
	//purity:ordered a class is counted and named on its own
	for _, c := range s.classes {
		x.dropClass(s, c)
	}
	delete(x.withCIDR[s.direction], s)
	ours := func(u use) bool { return u.scope == s }
	x.anyPorts = slices.DeleteFunc(x.anyPorts, ours)
	for _, sel := range s.selectors {
		sel.uses[s.direction] = slices.DeleteFunc(sel.uses[s.direction], ours)
	}
	for _, sel := range s.selectors {
		x.dropSelector(sel)
	}
}
