package projections

import (
	"cmp"
	"maps"
	"slices"

	"github.com/varve-net/varve/policy"
)

// scope is a fixed set of items of one direction and, in the present universe,
// the classes that they divide the peers into.
type scope struct {
	id        uint64 // 0: no item, so no class
	direction policy.Direction
	items     map[string]item
	keys      []string // of items, sorted
	classes   []*class // ascending by id
	members   []member // in the order of the universe
}

// class is peers that match the same items and have the same base class.
type class struct {
	id     uint64
	base   uint64
	tokens []token // sorted; none: a base class
	// learned, if set, is the names by which the addresses of the class are known;
	// then there are no tokens and the base is abi.ClassAny.
	learned NameSet
}

type member struct {
	peer  int
	class *class
}

// has tells whether peers of c match the plain item.
func (c *class) has(key string) bool {
	_, ok := slices.BinarySearchFunc(c.tokens, token{item: key}, compareTokens)
	return ok
}

// ports is the numbers that peers of c have for a named port.
func (c *class) ports(key string) []uint16 {
	var out []uint16
	i, _ := slices.BinarySearchFunc(c.tokens, token{item: key}, compareTokens)
	for ; i < len(c.tokens) && c.tokens[i].item == key; i++ {
		out = append(out, c.tokens[i].port)
	}
	return out
}

func compareTokens(a, b token) int {
	return cmp.Or(cmp.Compare(a.item, b.item), cmp.Compare(a.port, b.port))
}

// newScope names the scope of a rule set.
func (e env) newScope(rs *ruleSet, ids *ids) *scope {
	s := &scope{direction: rs.direction, items: rs.items, keys: slices.Sorted(maps.Keys(rs.items))}
	if len(s.keys) == 0 {
		return s
	}
	var c content
	c.num(uint64(s.direction)).flag(e.hostServesAPI)
	for _, key := range s.keys {
		c.str(key)
	}
	s.id = ids.id("scope", &c)
	return s
}

// divide computes the classes of s. Matches is, for each of the scope's items,
// what universe.matches gave.
func (s *scope) divide(u *universe, matches map[string][]match, ids *ids) {
	tokens := make([][]token, len(u.peers))
	for _, key := range s.keys {
		for _, m := range matches[key] {
			tokens[m.peer] = append(tokens[m.peer], token{key, m.port})
		}
	}
	byID := make(map[uint64]*class)
	for _, g := range u.groups {
		for i := g.first; i < g.last; i++ {
			if len(tokens[i]) == 0 {
				continue
			}
			slices.SortFunc(tokens[i], compareTokens)
			c := &class{base: g.base, tokens: slices.Compact(tokens[i])}
			c.id = ids.class(c.base, c.content())
			if known, ok := byID[c.id]; ok {
				c = known
			}
			byID[c.id] = c
			s.members = append(s.members, member{i, c})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		s.classes = append(s.classes, byID[id])
	}
}

func (c *class) content() *content {
	var out content
	out.num(c.base)
	for _, t := range c.tokens {
		out.str(t.item).num(uint64(t.port))
	}
	return &out
}
