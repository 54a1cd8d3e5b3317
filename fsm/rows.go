package fsm

import (
	"cmp"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// cell is a row and its part of the digest. Once a View has it, it never changes:
// it is replaced. A cell that no View has seen is the State's own and is written to
// in place, which is what makes a long replay cheap.
type cell[K cmp.Ordered, T any] struct {
	key  K
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
type rows[K cmp.Ordered, T any] struct {
	name     string // in the digest
	canon    func([]byte, *T) []byte
	unhashed []*cell[K, T]
	// cells has those of the table that were looked for: to find one here costs a
	// fraction of what the tree takes. Nil for tables in which events seldom look.
	cells map[K]*cell[K, T]
}

// find finds the cell of a key.
func (w *rows[K, T]) find(t *table[K, T], key K) (*cell[K, T], bool) {
	c, ok := w.cells[key]
	if ok {
		return c, true
	}
	if c, ok = t.Get(key); ok && w.cells != nil {
		w.cells[c.key] = c
	}
	return c, ok
}

// set puts a cell into the table.
func (w *rows[K, T]) set(t *table[K, T], c *cell[K, T]) {
	t.Set(c.key, c)
	if w.cells != nil {
		w.cells[c.key] = c
	}
}

// maxUnhashed bounds the memory of cells that wait to be hashed.
const maxUnhashed = 131072

// writers is one for each table.
type writers struct {
	namespace rows[string, Namespace]
	node      rows[string, Node]
	identity  rows[uint32, Identity]
	endpoint  rows[string, Endpoint]
	policy    rows[string, Policy]
	name      rows[string, Name]
	part      rows[uint32, part]
}

func newWriters() writers {
	return writers{
		namespace: rows[string, Namespace]{name: "namespace", canon: canonNamespace},
		node:      rows[string, Node]{name: "node", canon: canonNode, cells: map[string]*cell[string, Node]{}},
		identity:  rows[uint32, Identity]{name: "identity", canon: canonIdentity, cells: map[uint32]*cell[uint32, Identity]{}},
		endpoint:  rows[string, Endpoint]{name: "endpoint", canon: canonEndpoint, cells: map[string]*cell[string, Endpoint]{}},
		policy:    rows[string, Policy]{name: "policy", canon: canonPolicy},
		name:      rows[string, Name]{name: "name", canon: canonName},
		part:      rows[uint32, part]{name: "part", canon: canonPart},
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

func settle[K cmp.Ordered, T any](s *State, w *rows[K, T]) {
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
func later[K cmp.Ordered, T any](s *State, w *rows[K, T], c *cell[K, T]) {
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

// put stores a row, in place of the one that has its key. Rows that were found before
// by that key may change with it.
func put[K cmp.Ordered, T any](s *State, t *table[K, T], w *rows[K, T], key K, row T) {
	if c, ok := w.find(t, key); ok {
		*edit(s, t, w, c) = row
		return
	}
	c := &cell[K, T]{key: key, row: row, born: s.epoch}
	w.set(t, c)
	later(s, w, c)
}

// edit returns the row of a cell to be written to: the cell's own, or that of one in
// its place if a View may have it.
func edit[K cmp.Ordered, T any](s *State, t *table[K, T], w *rows[K, T], c *cell[K, T]) *T {
	switch {
	case c.born != s.epoch:
		s.rows.Remove(c.hash)
		c = &cell[K, T]{key: c.key, row: c.row, born: s.epoch}
		w.set(t, c)
	case c.hashed:
		s.rows.Remove(c.hash)
		c.hashed = false
	default:
		return &c.row // it is on the list
	}
	later(s, w, c)
	return &c.row
}

// remove deletes a row, if there is one, from table and digest.
func remove[K cmp.Ordered, T any](s *State, t *table[K, T], w *rows[K, T], key K) {
	c, ok := t.Delete(key)
	if !ok {
		return
	}
	delete(w.cells, key)
	if c.hashed {
		s.rows.Remove(c.hash)
		return
	}
	c.gone = true
}

// refer changes how many endpoints have an identity, which is not in the digest.
func (s *State) refer(id uint32, by int) *Identity {
	t, w := s.tables.identities, &s.write.identity
	c, _ := w.find(t, id)
	if c.born != s.epoch {
		c = &cell[uint32, Identity]{key: id, row: c.row, hash: c.hash, hashed: true, born: s.epoch}
		w.set(t, c)
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

// editNode returns the row of a node to be written to.
func (s *State) editNode(c *cell[string, Node]) *Node {
	s.note(Change{Kind: ChangeNode, name: c.key})
	return edit(s, s.nodes, &s.write.node, c)
}

// node finds a node.
func (s *State) node(name string) (*Node, bool) {
	c, ok := s.write.node.find(s.nodes, name)
	if !ok {
		return nil, false
	}
	return &c.row, true
}

func (s *State) putIdentity(i Identity) {
	s.note(Change{Kind: ChangeIdentity, identity: i.ID})
	put(s, s.identities, &s.write.identity, i.ID, i)
}

func (s *State) putEndpoint(key string, e Endpoint) {
	s.note(Change{Kind: ChangeEndpoint, namespace: e.Ref.Namespace, name: e.Ref.Name})
	put(s, s.endpoints, &s.write.endpoint, key, e)
}

// editEndpoint returns the row of an endpoint to be written to.
func (s *State) editEndpoint(c *cell[string, Endpoint]) *Endpoint {
	s.note(Change{Kind: ChangeEndpoint, namespace: c.row.Ref.Namespace, name: c.row.Ref.Name})
	return edit(s, s.endpoints, &s.write.endpoint, c)
}

// endpointCell finds an endpoint without making a key for it.
func (s *State) endpointCell(ref EndpointRef) (*cell[string, Endpoint], bool) {
	s.scratch = append(append(append(s.scratch[:0], ref.Namespace...), keySep...), ref.Name...)
	if c, ok := s.write.endpoint.cells[string(s.scratch)]; ok {
		return c, true
	}
	return s.write.endpoint.find(s.endpoints, string(s.scratch))
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
