package fsm

import (
	"cmp"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// cell is a row and its part of the digest. Once a View has it, it never changes:
// it is replaced. A cell that no View has seen is the State's own and is written to
// in place, which is what makes a long replay cheap.
type cell[T any] struct {
	row  T
	hash log.Hash // of row, if hashed
	born *epoch
	// hashed: hash is in State.rows. Until a View is taken it need not be: most rows
	// of a replay are gone before anybody asks for a digest.
	hashed bool
	gone   bool // removed before it was hashed
}

// epoch is the time between two Views of a State. It is compared by its address, so
// that no other State takes a cell for its own.
type epoch struct{ _ byte }

// rows writes one table's rows to table and digest.
type rows[T any] struct {
	name     string // in the digest
	canon    func([]byte, *T) []byte
	unhashed []*cell[T]
}

// maxUnhashed bounds the memory of cells that wait to be hashed.
const maxUnhashed = 131072

// writers is one for each table.
type writers struct {
	namespace rows[Namespace]
	node      rows[Node]
	identity  rows[Identity]
	endpoint  rows[Endpoint]
	policy    rows[Policy]
	name      rows[Name]
	part      rows[part]
}

func newWriters() writers {
	return writers{
		namespace: rows[Namespace]{name: "namespace", canon: canonNamespace},
		node:      rows[Node]{name: "node", canon: canonNode},
		identity:  rows[Identity]{name: "identity", canon: canonIdentity},
		endpoint:  rows[Endpoint]{name: "endpoint", canon: canonEndpoint},
		policy:    rows[Policy]{name: "policy", canon: canonPolicy},
		name:      rows[Name]{name: "name", canon: canonName},
		part:      rows[part]{name: "part", canon: canonPart},
	}
}

// settle hashes every row that is not yet.
func (s *State) settle() {
	settle(s, &s.write.namespace)
	settle(s, &s.write.node)
	settle(s, &s.write.identity)
	settle(s, &s.write.endpoint)
	settle(s, &s.write.policy)
	settle(s, &s.write.name)
	settle(s, &s.write.part)
	s.settleRequests()
}

// sum is the state digest.
func (s *State) sum() log.Hash {
	s.settle()
	return s.tables.sum()
}

func settle[T any](s *State, w *rows[T]) {
	for _, c := range w.unhashed {
		if c.gone {
			continue
		}
		s.scratch = w.canon(s.scratch[:0], &c.row)
		c.hash, c.hashed = log.RowHash(w.name, nil, s.scratch), true
		s.rows.Add(c.hash)
	}
	// What a replay needed is not kept for ever.
	if clear(w.unhashed); cap(w.unhashed) > 1024 {
		w.unhashed = nil
	}
	w.unhashed = w.unhashed[:0]
}

// later puts a cell on the list of those to be hashed.
func later[T any](s *State, w *rows[T], c *cell[T]) {
	if len(w.unhashed) == maxUnhashed {
		live := w.unhashed[:0]
		for _, c := range w.unhashed {
			if !c.gone {
				live = append(live, c)
			}
		}
		clear(w.unhashed[len(live):])
		if w.unhashed = live; len(live) > maxUnhashed/2 {
			settle(s, w)
		}
	}
	w.unhashed = append(w.unhashed, c)
}

// add stores a row whose key the table does not have.
func add[K cmp.Ordered, T any](s *State, t *table[K, T], w *rows[T], key K, row T) *T {
	c := &cell[T]{row: row, born: s.epoch}
	t.Set(key, c)
	later(s, w, c)
	return &c.row
}

// put stores a row in place of the one that has its key, in table and digest. Rows
// that were found before by that key may change with it.
func put[K cmp.Ordered, T any](s *State, t *table[K, T], w *rows[T], key K, row T) *T {
	c, ok := t.Get(key)
	switch {
	case !ok:
		return add(s, t, w, key, row)
	case c.born != s.epoch:
		s.rows.Remove(c.hash)
		c = &cell[T]{row: row, born: s.epoch}
		t.Set(key, c)
	case c.hashed:
		s.rows.Remove(c.hash)
		c.row, c.hashed = row, false
	default:
		c.row = row
		return &c.row // it is on the list
	}
	later(s, w, c)
	return &c.row
}

// remove deletes a row, if there is one, from table and digest.
func remove[K cmp.Ordered, T any](s *State, t *table[K, T], key K) {
	if old, ok := t.Delete(key); ok {
		drop(s, old)
	}
}

// drop takes a cell that was deleted from the digest.
func drop[T any](s *State, c *cell[T]) {
	if c.hashed {
		s.rows.Remove(c.hash)
		return
	}
	c.gone = true
}

// refer changes how many endpoints have an identity, which is not in the digest.
func (s *State) refer(id uint32, by int) *Identity {
	c, _ := s.tables.identities.Get(id)
	if c.born != s.epoch {
		c = &cell[Identity]{row: c.row, hash: c.hash, hashed: true, born: s.epoch}
		s.tables.identities.Set(id, c)
	}
	c.row.Refs += by
	return &c.row
}

func (s *State) putNamespace(n Namespace) {
	s.note(Change{Kind: ChangeNamespace, name: n.Name})
	put(s, s.namespaces, &s.write.namespace, n.Name, n)
}

func (s *State) putNode(n Node) {
	s.note(Change{Kind: ChangeNode, name: n.Name})
	put(s, s.nodes, &s.write.node, n.Name, n)
}

func (s *State) putIdentity(i Identity) {
	s.note(Change{Kind: ChangeIdentity, identity: i.ID})
	put(s, s.identities, &s.write.identity, i.ID, i)
}

func (s *State) putEndpoint(key string, e Endpoint) {
	s.note(Change{Kind: ChangeEndpoint, namespace: e.Ref.Namespace, name: e.Ref.Name})
	put(s, s.endpoints, &s.write.endpoint, key, e)
}

func (s *State) putName(key string, n Name) {
	s.note(Change{Kind: ChangeName, namespace: n.Endpoint.Namespace, name: n.Endpoint.Name, dns: n.Name})
	put(s, s.names, &s.write.name, key, n)
}

func (s *State) putPolicy(p Policy) {
	s.notePolicy(p.Policy.Ref)
	put(s, s.policies, &s.write.policy, policyKey(p.Policy.Ref), p)
}

func (s *State) notePolicy(r policy.Ref) {
	s.note(Change{Kind: ChangePolicy, policyKind: r.Kind, namespace: r.Namespace, name: r.Name})
}
