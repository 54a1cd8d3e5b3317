package fsm

import (
	"fmt"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// labelNamespaceName is set on every namespace to its name, as Kubernetes does
// since 1.21, whatever the event says.
const labelNamespaceName = "kubernetes.io/metadata.name"

// namespaceSet stores a namespace and gives its endpoints the identities that
// follow from the new labels.
func (s *State) namespaceSet(c *change, set *eventpb.NamespaceSet) error {
	if err := policy.CheckNamespace(set.Name); err != nil {
		return err
	}
	labels := set.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	labels[labelNamespaceName] = set.Name
	if err := checkLabels(labels); err != nil {
		return fmt.Errorf("namespace %s: %w", set.Name, err)
	}
	changes := []relabelling{s.relabelling(set.Name, labels)}
	if err := s.canRelabel(c, changes); err != nil {
		return fmt.Errorf("namespace %s: %w", set.Name, err)
	}
	s.relabel(c, changes)
	s.putNamespace(Namespace{Name: set.Name, Labels: labels, Revision: c.rev})
	return nil
}

// relabelling is what other labels of a namespace mean for its endpoints.
type relabelling struct {
	namespace string
	endpoints []*cell[string, Endpoint] // those that get another identity
	needs     []*need                   // theirs
	made      map[string]*need          // of all its workloads, by workloadKey
}

func (s *State) relabelling(namespace string, labels map[string]string) relabelling {
	r := relabelling{namespace: namespace, made: map[string]*need{}}
	s.inNamespace(namespace, func(c *cell[string, Endpoint]) bool {
		e := &c.row
		s.scratch = workloadKey(s.scratch[:0], e)
		n, ok := r.made[string(s.scratch)]
		if !ok {
			workload := string(s.scratch)
			n = s.makeNeed(e, labels)
			r.made[workload] = n
		}
		if id, _ := s.identityOf(n); id != e.Identity {
			r.endpoints, r.needs = append(r.endpoints, c), append(r.needs, n)
		}
		return true
	})
	return r
}

// needsOf is the needs of several, in their order.
func needsOf(changes []relabelling) []*need {
	var needs []*need
	for _, r := range changes {
		needs = append(needs, r.needs...)
	}
	return needs
}

// canRelabel tells whether there are identities for all, and changes nothing.
func (s *State) canRelabel(c *change, changes []relabelling) error {
	return s.canAcquire(needsOf(changes), c.rev, c.now)
}

// relabel gives the endpoints their new identities. canRelabel has said that it can.
func (s *State) relabel(c *change, changes []relabelling) {
	ids := s.acquire(needsOf(changes), c.rev, c.now)
	for _, r := range changes {
		for i, cell := range r.endpoints {
			s.release(cell.row.Identity, c.rev, c.now)
			e := s.editEndpoint(cell)
			e.Identity, e.IdentityRevision, e.Revision = ids[i], c.rev, c.rev
		}
		ids = ids[len(r.endpoints):]
		s.know(r.namespace, r.made)
	}
}

// namespaceDeleted removes a namespace without endpoints. Its policies stay in
// force for whoever comes into a namespace of that name: deleting a namespace
// never opens anything.
func (s *State) namespaceDeleted(d *eventpb.NamespaceDeleted) error {
	if _, ok := lookup(s.namespaces, d.Name); !ok {
		return fmt.Errorf("namespace %.80q: does not exist", d.Name)
	}
	var live *Endpoint
	s.inNamespace(d.Name, func(c *cell[string, Endpoint]) bool {
		live = &c.row
		return false
	})
	if live != nil {
		return fmt.Errorf("namespace %s: endpoint %s is in it; delete its endpoints first", d.Name, live.Ref)
	}
	s.know(d.Name, nil)
	s.removeNamespace(d.Name)
	return nil
}

func (s *State) removeNamespace(name string) {
	s.note(Change{Kind: ChangeNamespace, name: name})
	remove(s, s.namespaces, &s.write.namespace, name)
}

// inNamespace calls fn for each endpoint of a namespace, by name, until fn
// returns false. fn changes no endpoint.
func (t *tables) inNamespace(name string, fn func(c *cell[string, Endpoint]) bool) {
	prefix := name + keySep
	t.endpoints.Ascend(prefix, func(key string, c *cell[string, Endpoint]) bool {
		return strings.HasPrefix(key, prefix) && fn(c)
	})
}
