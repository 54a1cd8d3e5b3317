package projections

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"

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
}

func (c *codec[K, V]) hash(key K, value V) log.Hash {
	var keyBytes, valueBytes [128]byte
	return log.RowHash(c.name, c.key(keyBytes[:0], key), c.value(valueBytes[:0], value))
}

// Table is an immutable set of rows in the order of their keys' bytes. The zero
// Table is empty. It is safe for concurrent use.
type Table[K, V comparable] struct {
	rows   []*Row[K, V]
	index  map[K]int
	digest log.Hash
}

// Len is the number of rows.
func (t *Table[K, V]) Len() int { return len(t.rows) }

// All yields the rows in order. They are shared: do not change them.
func (t *Table[K, V]) All() iter.Seq[*Row[K, V]] { return slices.Values(t.rows) }

// Get finds the row with key k.
func (t *Table[K, V]) Get(k K) (*Row[K, V], bool) {
	i, ok := t.index[k]
	if !ok {
		return nil, false
	}
	return t.rows[i], true
}

// Digest is the sum of the hashes of all rows, causes not included. An empty
// table's is zero.
func (t *Table[K, V]) Digest() log.Hash { return t.digest }

// newTable sorts rows, which it keeps, and sums them up.
func newTable[K, V comparable](c *codec[K, V], rows []*Row[K, V]) (Table[K, V], error) {
	type keyed struct {
		bytes []byte
		row   *Row[K, V]
	}
	sorted := make([]keyed, len(rows))
	for i, r := range rows {
		sorted[i] = keyed{c.key(nil, r.Key), r}
	}
	slices.SortFunc(sorted, func(a, b keyed) int { return bytes.Compare(a.bytes, b.bytes) })

	t := Table[K, V]{rows: rows, index: make(map[K]int, len(rows))}
	var digest log.Digest
	for i, k := range sorted {
		if _, dup := t.index[k.row.Key]; dup {
			return Table[K, V]{}, fmt.Errorf("table %s, key %+v: %w", c.name, k.row.Key, ErrDuplicateKey)
		}
		t.rows[i] = k.row
		t.index[k.row.Key] = i
		digest.Add(c.hash(k.row.Key, k.row.Value))
	}
	t.digest = digest.Sum()
	return t, nil
}

// NewEndpoints makes an endpoint table of rows, in any order, and keeps the
// slice. ErrDuplicateKey if two have the same key.
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

// Digest is the sum of all four tables' digests. Table names are part of each
// row's hash, so equal digests mean equal tables.
func (t *Tables) Digest() log.Hash {
	var d log.Digest
	d.Add(t.Endpoints.Digest())
	d.Add(t.IPCache.Digest())
	d.Add(t.Classes.Digest())
	d.Add(t.Policy.Digest())
	return d.Sum()
}
