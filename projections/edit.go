package projections

import (
	"slices"

	"github.com/tidwall/btree"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log"
)

// Changes are the rows of one table that differ between two Tables, each list in
// the order of keys. Rows of which only the cause differs are in none.
type Changes[K, V comparable] struct {
	Added   []*Row[K, V]
	Changed []*Row[K, V] // as they are now
	Removed []*Row[K, V] // as they were
}

// Len is the number of rows.
func (c *Changes[K, V]) Len() int { return len(c.Added) + len(c.Changed) + len(c.Removed) }

// Delta is what leads from one Tables to another.
type Delta struct {
	// From is the Tables that the delta follows on, told by its address. Nil: none
	// is known, the Tables must be compared as a whole, and the lists are empty.
	From *Tables

	Endpoints Changes[EndpointKey, abi.EndpointValue]
	IPCache   Changes[Prefix, abi.IPCacheValue]
	Classes   Changes[abi.ClassKey, abi.ClassValue]
	Policy    Changes[abi.PolicyKey, abi.PolicyValue]
	Questions Changes[QuestionKey, NameSet]
	Learned   Changes[LearnedKey, NameSet]
}

// Len is the number of rows of all tables that BPF maps hold.
func (d *Delta) Len() int {
	return d.Endpoints.Len() + d.IPCache.Len() + d.Classes.Len() + d.Policy.Len()
}

// editor is a table in the making. Freezing it costs O(1) and a change of k rows
// O(k log n).
type editor[K, V comparable] struct {
	codec   *codec[K, V]
	tree    *tree[K, V]
	digest  log.Digest
	edits   []edit[K, V] // since the last freeze, in the order in which they were made
	scratch []byte
}

// edit is a row before and after one change; nil where there is none.
type edit[K, V comparable] struct {
	key     K
	was, is *Row[K, V]
}

func newEditor[K, V comparable](c *codec[K, V]) *editor[K, V] {
	return &editor[K, V]{codec: c, tree: c.newTree()}
}

func (e *editor[K, V]) get(k K) (*Row[K, V], bool) {
	found, ok := e.tree.Get(entry[K, V]{key: k})
	if !ok {
		return nil, false
	}
	return &found.cell.Row, true
}

// set adds a row or replaces the one that has its key.
func (e *editor[K, V]) set(k K, v V, cause Cause) {
	e.put(&cell[K, V]{Row: Row[K, V]{k, v, cause}}, nil)
}

// slabRows is how many rows that come together share their memory. They tend to go
// together too; where one stays, so does the memory of this many at most.
const slabRows = 16

// setAll is set for many rows, which it sorts.
func (e *editor[K, V]) setAll(rows []Row[K, V]) {
	slices.SortFunc(rows, func(a, b Row[K, V]) int { return e.codec.compare(a.Key, b.Key) })
	e.edits = slices.Grow(e.edits, len(rows))
	var hint btree.PathHint
	for part := range slices.Chunk(rows, slabRows) {
		slab := make([]cell[K, V], len(part))
		for i := range part {
			slab[i].Row = part[i]
			e.put(&slab[i], &hint)
		}
	}
}

func (e *editor[K, V]) put(c *cell[K, V], hint *btree.PathHint) {
	c.hash = e.codec.hash(&e.scratch, c.Key, c.Value)
	e.digest.Add(c.hash)
	x := edit[K, V]{key: c.Key, is: &c.Row}
	if old, replaced := e.tree.SetHint(entry[K, V]{c.Key, c}, hint); replaced {
		e.digest.Remove(old.cell.hash)
		x.was = &old.cell.Row
	}
	e.edits = append(e.edits, x)
}

// recause gives a row another cause, if it is there.
func (e *editor[K, V]) recause(k K, cause Cause) {
	old, ok := e.tree.Get(entry[K, V]{key: k})
	if !ok || sameCause(old.cell.Cause, cause) {
		return
	}
	c := &cell[K, V]{old.cell.Row, old.cell.hash}
	c.Cause = cause
	e.tree.Set(entry[K, V]{k, c})
	e.edits = append(e.edits, edit[K, V]{k, &old.cell.Row, &c.Row})
}

// remove deletes a row, if it is there, and returns it.
func (e *editor[K, V]) remove(k K) (*Row[K, V], bool) {
	old, ok := e.tree.Delete(entry[K, V]{key: k})
	if !ok {
		return nil, false
	}
	e.digest.Remove(old.cell.hash)
	e.edits = append(e.edits, edit[K, V]{key: k, was: &old.cell.Row})
	return &old.cell.Row, true
}

// while returns the rows from the one with key from on as long as in holds.
func (e *editor[K, V]) while(from K, in func(K) bool) []*Row[K, V] {
	var out []*Row[K, V]
	e.tree.Ascend(entry[K, V]{key: from}, func(x entry[K, V]) bool {
		if !in(x.key) {
			return false
		}
		out = append(out, &x.cell.Row)
		return true
	})
	return out
}

// freeze returns the table as it is now and what changed since the last freeze.
func (e *editor[K, V]) freeze() (Table[K, V], Changes[K, V]) {
	var c Changes[K, V]
	slices.SortStableFunc(e.edits, func(a, b edit[K, V]) int { return e.codec.compare(a.key, b.key) })
	for i := 0; i < len(e.edits); {
		x := e.edits[i]
		for i++; i < len(e.edits) && e.edits[i].key == x.key; i++ {
			x.is = e.edits[i].is
		}
		switch {
		case x.is == nil && x.was == nil:
		case x.was == nil:
			c.Added = append(c.Added, x.is)
		case x.is == nil:
			c.Removed = append(c.Removed, x.was)
		case x.was.Value != x.is.Value:
			c.Changed = append(c.Changed, x.is)
		}
	}
	e.edits = e.recycled()
	return Table[K, V]{tree: e.tree.Copy(), digest: e.digest.Sum()}, c
}

// keptEdits is how much room for edits stays between two freezes.
const keptEdits = 4096

// recycled is no edits, with room for as many as are usual.
func (e *editor[K, V]) recycled() []edit[K, V] {
	if cap(e.edits) > keptEdits {
		return nil
	}
	clear(e.edits) // the rows that they point to may go
	return e.edits[:0]
}
