package match

import (
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"

	"github.com/varve-net/varve/policy"
)

// New makes a Set of patterns.
func New(patterns []Pattern) *Set {
	b := builder{
		Set:    &Set{size: len(patterns), nodes: make([]node, 1), seed: maphash.MakeSeed()},
		edges:  map[edge]uint32{},
		shapes: map[uint32][]shape{},
		stars:  map[uint32]uint32{},
		here:   map[uint32][]uint32{},
		deep:   map[uint32][]uint32{},
	}
	for _, p := range patterns {
		b.add(p.Selector, p.ID)
	}
	b.freeze()
	return b.Set
}

// edge is a label behind a node.
type edge struct {
	from  uint32
	label string
}

// builder is a Set that grows.
type builder struct {
	*Set
	edges      map[edge]uint32
	shapes     map[uint32][]shape
	stars      map[uint32]uint32   // nodes behind "*"
	here, deep map[uint32][]uint32 // sorted, by node
}

func (b *builder) add(s policy.FQDNSelector, id uint32) {
	if s.IsEverything() {
		b.every = insert(b.every, id)
		return
	}
	text, deep := strings.CutPrefix(s.String(), "**.")
	if text == "" { // the zero selector
		return
	}
	at := uint32(0)
	if text != "." || deep {
		labels := strings.Split(strings.TrimSuffix(text, "."), ".")
		for _, label := range slices.Backward(labels) {
			at = b.child(at, label)
		}
	}
	if deep {
		b.deep[at] = insert(b.deep[at], id)
	} else {
		b.here[at] = insert(b.here[at], id)
	}
}

// insert keeps ids sorted and without repeats.
func insert(ids []uint32, id uint32) []uint32 {
	i, found := slices.BinarySearch(ids, id)
	if found {
		return ids
	}
	return slices.Insert(ids, i, id)
}

// child is the node behind a label of a pattern, made if it is not there yet.
func (b *builder) child(from uint32, label string) uint32 {
	if !strings.Contains(label, "*") {
		b.nodes[from].literal = true
		return b.edge(from, label)
	}
	if strings.Trim(label, "*") == "" {
		if b.stars[from] == 0 {
			b.stars[from] = b.node()
		}
		return b.stars[from]
	}
	first, last, middle := splitGlob(label)
	if s := (shape{uint16(len(first)), uint16(len(last))}); !slices.Contains(b.shapes[from], s) {
		b.shapes[from] = append(b.shapes[from], s)
	}
	hub := b.edge(from|viaGlob, string(appendGlobKey(nil, first, last)))
	if len(middle) == 0 {
		return hub
	}
	for _, g := range b.middles[hub] {
		if slices.Equal(g.middle, middle) {
			return g.to
		}
	}
	if b.middles == nil {
		b.middles = map[uint32][]glob{}
	}
	to := b.node()
	b.middles[hub] = append(b.middles[hub], glob{middle: middle, to: to})
	return to
}

// edge is the node that the table has for a label, made if it is not there yet.
func (b *builder) edge(from uint32, label string) uint32 {
	e := edge{from, label}
	to, ok := b.edges[e]
	if !ok {
		to = b.node()
		b.nodes[to].from = from
		b.setLabel(to, label)
		b.edges[e] = to
	}
	return to
}

func (b *builder) node() uint32 {
	b.nodes = append(b.nodes, node{})
	return uint32(len(b.nodes) - 1)
}

// setLabel keeps a label in its node if it fits there.
func (b *builder) setLabel(at uint32, label string) {
	n := &b.nodes[at]
	n.length = uint8(min(len(label), maxInline+1))
	if copy(n.label[:], label) < len(label) {
		if b.long == nil {
			b.long = map[uint32]string{}
		}
		b.long[at] = label
	}
}

// freeze makes the tables that the walk uses.
func (b *builder) freeze() {
	b.table = make([]slot, 1<<bits.Len(uint(2*len(b.edges))))
	b.mask = uint64(len(b.table) - 1)
	for e, to := range b.edges {
		h := b.hash(e.from, []byte(e.label))
		i := h & b.mask
		for b.table[i].to != 0 {
			i = (i + 1) & b.mask
		}
		b.table[i] = slot{tag: uint32(h >> 32), to: to}
	}
	for at := range b.nodes {
		n, key := &b.nodes[at], uint32(at)
		n.here, n.deep = b.list(b.here[key]), b.list(b.deep[key])
		if s := b.shapes[key]; s != nil {
			b.globs = append(b.globs, s)
			n.globs = uint32(len(b.globs))
		}
	}
	for from, star := range b.stars {
		b.nodes[from].starHere = b.nodes[star].here
		if s := &b.nodes[star]; s.literal || s.deep != 0 || s.star != 0 || s.globs != 0 || b.stars[star] != 0 {
			b.nodes[from].star = star
		}
	}
}

// list is how a node names ids.
func (b *builder) list(ids []uint32) uint32 {
	switch {
	case len(ids) == 0:
		return 0
	case len(ids) == 1 && ids[0]+1 < manyIDs:
		return ids[0] + 1
	}
	b.lists = append(b.lists, ids)
	return manyIDs | uint32(len(b.lists)-1)
}
