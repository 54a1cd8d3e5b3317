package fsm

import (
	"cmp"
	"iter"
	"strings"

	"github.com/tidwall/btree"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// tables is everything that the log determines. State changes its own, a View
// holds a frozen copy; the two share all nodes that have not changed since.
type tables struct {
	cluster  string
	revision log.Revision
	chain    log.Hash
	timeNS   int64
	rows     log.Digest // of every row below; nextIdentity is added by sum
	// nextIdentity is the number from which the search for a free one starts.
	nextIdentity uint32

	namespaces *table[string, Namespace]
	nodes      *table[string, Node]
	identities *table[uint32, Identity]
	endpoints  *table[string, Endpoint] // by EndpointRef.key
	policies   *table[string, Policy]   // by policyKey
	names      *table[string, Name]     // by nameKey
	requests   window
	parts      *table[uint32, part] // of the restore that is under way

	journal
}

type table[K cmp.Ordered, T any] = btree.Map[K, *cell[K, T]]

// endpointDegree makes nodes of at most 31 rows. Endpoints change at random
// places, and the first change of a node after a View copies it.
const endpointDegree = 16

func newTables(cluster string) tables {
	return tables{
		cluster:      cluster,
		nextIdentity: minIdentity,
		namespaces:   new(table[string, Namespace]),
		nodes:        new(table[string, Node]),
		identities:   new(table[uint32, Identity]),
		endpoints:    btree.NewMap[string, *cell[string, Endpoint]](endpointDegree),
		policies:     new(table[string, Policy]),
		names:        new(table[string, Name]),
		parts:        new(table[uint32, part]),
		journal:      newJournal(),
	}
}

// freeze returns a copy that later changes of t do not reach, in O(1).
func (t *tables) freeze() *tables {
	c := *t
	c.namespaces = t.namespaces.Copy()
	c.nodes = t.nodes.Copy()
	c.identities = t.identities.Copy()
	c.endpoints = t.endpoints.Copy()
	c.policies = t.policies.Copy()
	c.names = t.names.Copy()
	c.parts = t.parts.Copy()
	return &c
}

// sum is the state digest.
func (t *tables) sum() log.Hash {
	d := t.rows
	d.Add(log.RowHash("next-identity", nil, appendUint(nil, uint64(t.nextIdentity))))
	return d.Sum()
}

func (r EndpointRef) key() string { return r.Namespace + keySep + r.Name }

// keySep sorts before every character of a name, so that the order of keys is
// the order of (namespace, name).
const keySep = "\x00"

func policyKey(r policy.Ref) string {
	return string([]byte{byte(r.Kind)}) + r.Namespace + keySep + r.Name
}

// nameKey has the names of an endpoint follow each other, in order.
func nameKey(endpoint, name string) string { return endpoint + keySep + name }

// View is the state as it was at one revision. It is immutable, costs O(1) to
// take, and may be read by any number of goroutines. The zero View is that of an
// empty log. Rows are shared: never write to what they point to.
type View struct{ t *tables }

var noTables = newTables("")

func (v View) tables() *tables {
	if v.t == nil {
		return &noTables
	}
	return v.t
}

// Revision is the last one that the View holds; 0 for the empty log.
func (v View) Revision() log.Revision { return v.tables().revision }

// Chain is the chain value at Revision.
func (v View) Chain() log.Hash { return v.tables().chain }

// TimeNS is the effective time of Revision, in nanoseconds since the Unix epoch.
func (v View) TimeNS() int64 { return v.tables().timeNS }

// Cluster is the name given to New.
func (v View) Cluster() string { return v.tables().cluster }

// Digest is the state digest: equal on every replica at an equal revision. It
// covers every row and the next identity number, but neither revision, chain nor
// time, nor the text of rejections, which a later version may word otherwise.
func (v View) Digest() log.Hash { return v.tables().sum() }

// Endpoint finds an endpoint.
func (v View) Endpoint(ref EndpointRef) (*Endpoint, bool) {
	return lookup(v.tables().endpoints, ref.key())
}

// Endpoints yields every endpoint, by namespace and name.
func (v View) Endpoints() iter.Seq[*Endpoint] { return all(v.tables().endpoints) }

// EndpointsIn yields every endpoint of a namespace, by name.
func (v View) EndpointsIn(namespace string) iter.Seq[*Endpoint] {
	return func(yield func(*Endpoint) bool) {
		v.tables().inNamespace(namespace, func(c *cell[string, Endpoint]) bool { return yield(&c.row) })
	}
}

// Identity finds an identity by its number. Reserved ones are not in the View.
func (v View) Identity(id uint32) (*Identity, bool) { return lookup(v.tables().identities, id) }

// Identities yields every identity, by number: those with Refs 0 too, as long as
// their number is kept for their labels.
func (v View) Identities() iter.Seq[*Identity] { return all(v.tables().identities) }

// Namespace finds a namespace that was set. One that exists only because an
// endpoint is in it has no row.
func (v View) Namespace(name string) (*Namespace, bool) { return lookup(v.tables().namespaces, name) }

// Namespaces yields every namespace, by name.
func (v View) Namespaces() iter.Seq[*Namespace] { return all(v.tables().namespaces) }

// Node finds a node, one that left too.
func (v View) Node(name string) (*Node, bool) { return lookup(v.tables().nodes, name) }

// Nodes yields every node, by name: those that left too.
func (v View) Nodes() iter.Seq[*Node] { return all(v.tables().nodes) }

// Policy finds a policy.
func (v View) Policy(ref policy.Ref) (*Policy, bool) {
	return lookup(v.tables().policies, policyKey(ref))
}

// Policies yields every policy, by kind, namespace and name.
func (v View) Policies() iter.Seq[*Policy] { return all(v.tables().policies) }

// Names yields every name that some endpoint asked for, by endpoint and name.
func (v View) Names() iter.Seq[*Name] { return all(v.tables().names) }

// NamesOf yields the names that an endpoint asked for, in order.
func (v View) NamesOf(ref EndpointRef) iter.Seq[*Name] {
	return func(yield func(*Name) bool) {
		namesOf(v.tables().names, ref.key(), func(_ string, n *Name) bool { return yield(n) })
	}
}

// NameOf finds a name that an endpoint asked for.
func (v View) NameOf(ref EndpointRef, name string) (*Name, bool) {
	return lookup(v.tables().names, nameKey(ref.key(), name))
}

// namesOf calls fn for the names of an endpoint until it returns false.
func namesOf(t *table[string, Name], endpoint string, fn func(key string, n *Name) bool) {
	from := nameKey(endpoint, "")
	t.Ascend(from, func(key string, c *cell[string, Name]) bool {
		return strings.HasPrefix(key, from) && fn(key, &c.row)
	})
}

// StreamRevision is the revision of the last event that changed a stream's
// subject, the one to give as Event.expected_revision: for an endpoint this may
// be its namespace's relabel. It is 0 if the subject does not exist, which is so
// for a node that left.
func (v View) StreamRevision(stream string) log.Revision {
	return v.tables().streamRevision(stream)
}

func (t *tables) streamRevision(stream string) log.Revision {
	kind, rest, _ := strings.Cut(stream, "/")
	switch kind {
	case "policy":
		ref, err := policy.ParseStream(stream)
		if err != nil {
			return 0
		}
		if p, ok := lookup(t.policies, policyKey(ref)); ok {
			return p.Revision
		}
	case "namespace":
		if n, ok := lookup(t.namespaces, rest); ok {
			return n.Revision
		}
	case "endpoint":
		namespace, name, _ := strings.Cut(rest, "/")
		if e, ok := lookup(t.endpoints, EndpointRef{namespace, name}.key()); ok {
			return e.Revision
		}
	case "dns":
		namespace, name, _ := strings.Cut(rest, "/")
		var newest log.Revision
		namesOf(t.names, EndpointRef{namespace, name}.key(), func(_ string, n *Name) bool {
			newest = max(newest, n.Revision)
			return true
		})
		return newest
	case "node":
		if n, ok := lookup(t.nodes, rest); ok && !n.Left {
			return n.Revision
		}
	case "restore":
		var newest log.Revision
		for p := range all(t.parts) {
			if p.restore == rest {
				newest = p.revision
			}
		}
		return newest
	}
	return 0
}

func lookup[K cmp.Ordered, T any](t *table[K, T], key K) (*T, bool) {
	c, ok := t.Get(key)
	if !ok {
		return nil, false
	}
	return &c.row, true
}

func all[K cmp.Ordered, T any](t *table[K, T]) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		t.Scan(func(_ K, c *cell[K, T]) bool { return yield(&c.row) })
	}
}
