package projections

import (
	"slices"

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
	codec  *codec[K, V]
	tree   *tree[K, V]
	digest log.Digest
	edits  map[K]edit[K, V] // since the last freeze
}

// edit is a row at the last freeze and now; nil where there is none.
type edit[K, V comparable] struct{ was, is *Row[K, V] }

func newEditor[K, V comparable](c *codec[K, V]) *editor[K, V] {
	return &editor[K, V]{codec: c, tree: c.newTree(), edits: make(map[K]edit[K, V])}
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
	c := &cell[K, V]{Row: Row[K, V]{k, v, cause}, hash: e.codec.hash(k, v)}
	e.digest.Add(c.hash)
	old, replaced := e.tree.Set(entry[K, V]{k, c})
	if replaced {
		e.digest.Remove(old.cell.hash)
		e.note(k, &old.cell.Row, &c.Row)
	} else {
		e.note(k, nil, &c.Row)
	}
}

// recause gives a row that is there another cause.
func (e *editor[K, V]) recause(r *Row[K, V], cause Cause) {
	old, ok := e.tree.Get(entry[K, V]{key: r.Key})
	if !ok {
		return
	}
	row := old.cell.Row
	row.Cause = cause
	c := &cell[K, V]{row, old.cell.hash}
	e.tree.Set(entry[K, V]{r.Key, c})
	if x, ok := e.edits[r.Key]; ok {
		e.edits[r.Key] = edit[K, V]{x.was, &c.Row}
	}
}

// remove deletes a row, if it is there, and returns it.
func (e *editor[K, V]) remove(k K) (*Row[K, V], bool) {
	old, ok := e.tree.Delete(entry[K, V]{key: k})
	if !ok {
		return nil, false
	}
	e.digest.Remove(old.cell.hash)
	e.note(k, &old.cell.Row, nil)
	return &old.cell.Row, true
}

func (e *editor[K, V]) note(k K, was, is *Row[K, V]) {
	if first, ok := e.edits[k]; ok {
		was = first.was
	}
	e.edits[k] = edit[K, V]{was, is}
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
	//purity:ordered each list is sorted below
	for _, x := range e.edits {
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
	e.edits = make(map[K]edit[K, V])
	for _, rows := range [][]*Row[K, V]{c.Added, c.Changed, c.Removed} {
		slices.SortFunc(rows, func(a, b *Row[K, V]) int {
			if e.codec.less(a.Key, b.Key) {
				return -1
			}
			return 1
		})
	}
	return Table[K, V]{tree: e.tree.Copy(), digest: e.digest.Sum()}, c
}
