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
	var keys []string
	var changed []Endpoint
	var needs []*need
	made := map[string]*need{} // by workloadKey, under the new labels
	s.inNamespace(set.Name, func(key string, e *Endpoint) bool {
		s.scratch = workloadKey(s.scratch[:0], e)
		n, ok := made[string(s.scratch)]
		if !ok {
			workload := string(s.scratch)
			n = s.makeNeed(e, labels)
			made[workload] = n
		}
		if id, _ := s.identityOf(n); id != e.Identity {
			keys, changed, needs = append(keys, key), append(changed, *e), append(needs, n)
		}
		return true
	})
	if err := s.canAcquire(needs, c.rev, c.now); err != nil {
		return fmt.Errorf("namespace %s: %w", set.Name, err)
	}
	ids := s.acquire(needs, c.rev, c.now)
	for i, e := range changed {
		s.release(e.Identity, c.rev, c.now)
		e.Identity, e.IdentityRevision, e.Revision = ids[i], c.rev, c.rev
		s.putEndpoint(keys[i], e)
	}
	s.know(set.Name, made)
	s.putNamespace(Namespace{Name: set.Name, Labels: labels, Revision: c.rev})
	return nil
}

// namespaceDeleted removes a namespace without endpoints. Its policies stay in
// force for whoever comes into a namespace of that name: deleting a namespace
// never opens anything.
func (s *State) namespaceDeleted(d *eventpb.NamespaceDeleted) error {
	if _, ok := lookup(s.namespaces, d.Name); !ok {
		return fmt.Errorf("namespace %.80q: does not exist", d.Name)
	}
	var live *Endpoint
	s.inNamespace(d.Name, func(_ string, e *Endpoint) bool {
		live = e
		return false
	})
	if live != nil {
		return fmt.Errorf("namespace %s: endpoint %s is in it; delete its endpoints first", d.Name, live.Ref)
	}
	s.know(d.Name, nil)
	s.note(Change{Kind: ChangeNamespace, name: d.Name})
	remove(s, s.namespaces, d.Name)
	return nil
}

// inNamespace calls fn for each endpoint of a namespace, by name, until fn
// returns false. fn changes no endpoint.
func (s *State) inNamespace(name string, fn func(key string, e *Endpoint) bool) {
	prefix := name + keySep
	s.endpoints.Ascend(prefix, func(key string, c *cell[Endpoint]) bool {
		return strings.HasPrefix(key, prefix) && fn(key, &c.row)
	})
}
