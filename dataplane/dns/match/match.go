// Package match tells which of many name patterns a DNS name matches, in a time
// that depends on the name and not on the number of patterns.
//
// The patterns are policy.FQDNSelectors; a test holds the two equal. They are kept as a tree of
// labels, the last label first:
//
//	*.example.com.    com -> example -> any one label
//	**.example.com.   com -> example, and one or more labels before it
//	api.*.io.         io -> any one label -> api
package match

import (
	"bytes"
	"hash/maphash"
	"slices"

	"github.com/varve-net/varve/policy"
)

// Pattern is one entry of a Set.
type Pattern struct {
	Selector policy.FQDNSelector
	// ID is what Match and Append report; several patterns may have the same.
	ID uint32
}

// Set is an immutable set of patterns. Safe for concurrent use.
type Set struct {
	nodes []node // the first is the root
	// table finds a node by where it hangs and its label: open addressing, linear
	// probing, at most half full.
	table []slot
	mask  uint64
	seed  maphash.Seed
	long  map[uint32]string // labels that have no room in their node
	globs [][]shape         // by node.globs - 1
	// middles are the globs with more literals than the first and the last, by the
	// node that these two lead to.
	middles map[uint32][]glob
	lists   [][]uint32 // by node.here, deep and starHere
	every   []uint32   // "*": every name
	size    int
}

// maxInline makes a node 64 bytes: the labels of one path are then about all the
// memory that a lookup touches, and cache misses are what it costs.
const maxInline = 38

// node is a place in the tree: the labels from the root to here have matched.
type node struct {
	here     uint32 // patterns that end here: 0, or id + 1, or manyIDs | list
	deep     uint32 // the same, "**.": one or more labels follow
	starHere uint32 // the same, "*" is the last label
	star     uint32 // where patterns go on behind "*" as a label; 0: none does
	globs    uint32 // behind labels with wildcards; 0: none
	from     uint32 // where it hangs, with viaGlob
	literal  bool   // there are nodes behind labels without wildcards
	length   uint8  // of label; above maxInline it is in Set.long
	label    [maxInline]byte
}

// manyIDs marks a reference to a list of ids.
const manyIDs uint32 = 1 << 31

type slot struct {
	tag uint32
	to  uint32 // 0: free
}

// Len is the number of patterns.
func (s *Set) Len() int { return s.size }

func (s *Set) hash(from uint32, label []byte) uint64 {
	return maphash.Bytes(s.seed, label) ^ uint64(from)*0x9E3779B97F4A7C15
}

// behind is the node behind a label without wildcards, or behind a glob's key; 0: none.
func (s *Set) behind(from uint32, label []byte) uint32 {
	h := s.hash(from, label)
	for i := h & s.mask; ; i = (i + 1) & s.mask {
		e := s.table[i]
		if e.to == 0 {
			return 0
		}
		if e.tag == uint32(h>>32) && s.nodes[e.to].from == from && s.hasLabel(e.to, label) {
			return e.to
		}
	}
}

func (s *Set) hasLabel(at uint32, label []byte) bool {
	n := &s.nodes[at]
	if n.length > maxInline {
		return s.long[at] == string(label)
	}
	return string(n.label[:n.length]) == string(label)
}

// Match returns the least id of the patterns that match a name, which is in lower
// case and ends in a dot.
func (s *Set) Match(name []byte) (id uint32, ok bool) {
	w := walk{set: s, name: name, unspelled: -1, least: true}
	w.all()
	return w.id, w.found
}

// Append appends the ids of all patterns that match a name, sorted, each once.
func (s *Set) Append(ids []uint32, name []byte) []uint32 {
	w := walk{set: s, name: name, unspelled: -1, ids: ids}
	w.all()
	added := w.ids[len(ids):]
	slices.Sort(added)
	return w.ids[:len(ids)+len(slices.Compact(added))]
}

// walk is one name on its way through the tree.
type walk struct {
	set  *Set
	name []byte
	// unspelled is where in the name the first label is that is empty or not of
	// the alphabet; -1: not looked for yet.
	unspelled int

	least bool // keep the least id only
	id    uint32
	found bool
	ids   []uint32
}

func (w *walk) all() {
	if len(w.name) == 0 || w.name[len(w.name)-1] != '.' {
		return
	}
	if len(w.set.every) > 0 && (len(w.name) == 1 || w.spelledTo(len(w.name))) {
		w.take(w.set.every)
	}
	if len(w.name) == 1 {
		w.list(w.set.nodes[0].here)
		return
	}
	w.from(0, len(w.name)-1)
}

func (w *walk) list(ref uint32) {
	switch {
	case ref == 0:
	case ref&manyIDs != 0:
		w.take(w.set.lists[ref&^manyIDs])
	case !w.least:
		w.ids = append(w.ids, ref-1)
	case !w.found || ref-1 < w.id:
		w.id, w.found = ref-1, true
	}
}

func (w *walk) take(ids []uint32) {
	switch {
	case !w.least:
		w.ids = append(w.ids, ids...)
	case !w.found || ids[0] < w.id:
		w.id, w.found = ids[0], true
	}
}

// from goes on from a node; what is left of the name is before end, which is a
// dot, or -1 if nothing is.
func (w *walk) from(at uint32, end int) {
	n := &w.set.nodes[at]
	if end < 0 {
		w.list(n.here)
		return
	}
	if n.deep != 0 && w.spelledTo(end+1) {
		w.list(n.deep)
	}
	dot := bytes.LastIndexByte(w.name[:end], '.')
	label := w.name[dot+1 : end]
	if n.literal {
		if to := w.set.behind(at, label); to != 0 {
			w.from(to, dot)
		}
	}
	if n.star|n.starHere != 0 && spelled(label) {
		if dot < 0 {
			w.list(n.starHere)
		} else if n.star != 0 {
			w.from(n.star, dot)
		}
	}
	if n.globs != 0 {
		shapes := w.set.globs[n.globs-1]
		for i := range shapes {
			w.shape(at, shapes[i], label, dot)
		}
	}
}

func (w *walk) shape(at uint32, s shape, label []byte, dot int) {
	if len(label) < int(s.first)+int(s.last) {
		return
	}
	var buf [64]byte
	first, rest, last := label[:s.first], label[s.first:len(label)-int(s.last)], label[len(label)-int(s.last):]
	to := w.set.behind(at|viaGlob, appendGlobKey(buf[:0], first, last))
	if to == 0 {
		return
	}
	if spelled(rest) {
		w.from(to, dot)
	}
	if w.set.middles == nil {
		return
	}
	globs := w.set.middles[to]
	for i := range globs {
		if globs[i].match(rest) {
			w.from(globs[i].to, dot)
		}
	}
}

// spelledTo tells whether the labels up to end, behind a dot, are of the alphabet
// and none is empty.
func (w *walk) spelledTo(end int) bool {
	if w.unspelled < 0 {
		w.unspelled = firstUnspelled(w.name)
	}
	return end <= w.unspelled
}

// firstUnspelled is the start of the first label that is empty or not of the
// alphabet, or the name's length.
func firstUnspelled(name []byte) int {
	start := 0
	for i, b := range name {
		switch {
		case b == '.' && i == start:
			return start
		case b == '.':
			start = i + 1
		case !inAlphabet[b]:
			return start
		}
	}
	return len(name)
}
