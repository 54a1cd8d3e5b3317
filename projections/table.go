package projections

import (
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/tidwall/btree"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log"
)

// Errors of this package.
var (
	// ErrDuplicateKey: two rows of one table have the same key.
	ErrDuplicateKey = errors.New("two rows have one key")
	// ErrCollision: two different contents have the same 64-bit id. Nothing is
	// built, since either of them would stand for the other.
	ErrCollision = errors.New("two contents have one id")
	// ErrUnknownNode: the View has no such node, or it has left.
	ErrUnknownNode = errors.New("no such node")
	// ErrUnknownIdentity: an endpoint has an identity that the View lacks.
	ErrUnknownIdentity = errors.New("no such identity")
	// ErrUnknownEndpoint: a question is about an endpoint that the tables lack.
	ErrUnknownEndpoint = errors.New("no such endpoint")
)

// codec is how a table's rows become bytes: for their order and their hash.
type codec[K, V comparable] struct {
	name  string
	key   func([]byte, K) []byte
	value func([]byte, V) []byte
	less  func(a, b K) bool // the order of the keys' bytes
}

func (c *codec[K, V]) compare(a, b K) int {
	switch {
	case c.less(a, b):
		return -1
	case c.less(b, a):
		return 1
	}
	return 0
}

// hash is what a row adds to the digest. Scratch is overwritten; the compiler cannot
// tell that the codec's functions keep nothing of it, so it is the caller's to use again.
func (c *codec[K, V]) hash(scratch *[]byte, key K, value V) log.Hash {
	b := c.key((*scratch)[:0], key)
	n := len(b)
	b = c.value(b, value)
	*scratch = b
	return log.RowHash(c.name, b[:n], b[n:])
}

func (c *codec[K, V]) hashOf(key K, value V) log.Hash {
	var scratch []byte
	return c.hash(&scratch, key, value)
}

// cell is a row and what it adds to the digest, kept so that removing the row
// needs no second hash. It never changes.
type cell[K, V comparable] struct {
	Row[K, V]
	hash log.Hash
}

// entry has the key beside the pointer, for the sake of searches.
type entry[K, V comparable] struct {
	key  K
	cell *cell[K, V]
}

type tree[K, V comparable] = btree.BTreeG[entry[K, V]]

// treeDegree makes nodes of at most 15 rows: a change copies the nodes on its
// path, and most changes are of few rows far apart.
const treeDegree = 8

func (c *codec[K, V]) newTree() *tree[K, V] {
	return btree.NewBTreeGOptions(func(a, b entry[K, V]) bool { return c.less(a.key, b.key) },
		btree.Options{NoLocks: true, Degree: treeDegree})
}

// Table is an immutable set of rows in the order of their keys' bytes. The zero
// Table is empty. It is safe for concurrent use. Tables that follow on each other
// share all that did not change.
type Table[K, V comparable] struct {
	tree   *tree[K, V] // nil: empty
	digest log.Hash
}

// Len is the number of rows.
func (t *Table[K, V]) Len() int {
	if t.tree == nil {
		return 0
	}
	return t.tree.Len()
}

// All yields the rows in order. They are shared: do not change them.
func (t *Table[K, V]) All() iter.Seq[*Row[K, V]] {
	return func(yield func(*Row[K, V]) bool) {
		if t.tree != nil {
			t.tree.Scan(func(e entry[K, V]) bool { return yield(&e.cell.Row) })
		}
	}
}

// Get finds the row with key k.
func (t *Table[K, V]) Get(k K) (*Row[K, V], bool) {
	if t.tree == nil {
		return nil, false
	}
	e, ok := t.tree.Get(entry[K, V]{key: k})
	if !ok {
		return nil, false
	}
	return &e.cell.Row, true
}

// Digest is the sum of the hashes of all rows, causes not included. An empty
// table's is zero.
func (t *Table[K, V]) Digest() log.Hash { return t.digest }

// newTable sorts rows and sums them up.
func newTable[K, V comparable](c *codec[K, V], rows []*Row[K, V]) (Table[K, V], error) {
	entries := make([]entry[K, V], len(rows))
	var scratch []byte
	for i, r := range rows {
		entries[i] = entry[K, V]{r.Key, &cell[K, V]{*r, c.hash(&scratch, r.Key, r.Value)}}
	}
	slices.SortFunc(entries, func(a, b entry[K, V]) int { return c.compare(a.key, b.key) })
	t := Table[K, V]{tree: c.newTree()}
	var digest log.Digest
	for _, e := range entries {
		if _, dup := t.tree.Load(e); dup {
			return Table[K, V]{}, fmt.Errorf("table %s, key %+v: %w", c.name, e.key, ErrDuplicateKey)
		}
		digest.Add(e.cell.hash)
	}
	t.digest = digest.Sum()
	return t, nil
}

// NewEndpoints makes an endpoint table of rows, in any order.
// ErrDuplicateKey if two have the same key.
func NewEndpoints(rows []*Row[EndpointKey, abi.EndpointValue]) (Table[EndpointKey, abi.EndpointValue], error) {
	return newTable(&endpointCodec, rows)
}

// NewIPCache is NewEndpoints for the ipcache.
func NewIPCache(rows []*Row[Prefix, abi.IPCacheValue]) (Table[Prefix, abi.IPCacheValue], error) {
	return newTable(&ipcacheCodec, rows)
}

// NewClasses is NewEndpoints for the class map.
func NewClasses(rows []*Row[abi.ClassKey, abi.ClassValue]) (Table[abi.ClassKey, abi.ClassValue], error) {
	return newTable(&classCodec, rows)
}

// NewPolicy is NewEndpoints for the policy map.
func NewPolicy(rows []*Row[abi.PolicyKey, abi.PolicyValue]) (Table[abi.PolicyKey, abi.PolicyValue], error) {
	return newTable(&policyCodec, rows)
}

// NewQuestions is NewEndpoints for what may be asked for.
func NewQuestions(rows []*Row[QuestionKey, NameSet]) (Table[QuestionKey, NameSet], error) {
	return newTable(&questionCodec, rows)
}

// NewLearned is NewEndpoints for the names that open addresses.
func NewLearned(rows []*Row[LearnedKey, NameSet]) (Table[LearnedKey, NameSet], error) {
	return newTable(&learnedCodec, rows)
}

// NamesDigest is Digest for the two tables that are the DNS proxy's.
func (t *Tables) NamesDigest() log.Hash {
	var d log.Digest
	d.Add(t.Questions.Digest())
	d.Add(t.Learned.Digest())
	return d.Sum()
}

// Digest is the sum of all four tables' digests that BPF maps hold. Table names are part of each
// row's hash, so equal digests mean equal tables.
func (t *Tables) Digest() log.Hash {
	var d log.Digest
	d.Add(t.Endpoints.Digest())
	d.Add(t.IPCache.Digest())
	d.Add(t.Classes.Digest())
	d.Add(t.Policy.Digest())
	return d.Sum()
}
