package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// snapshotStaged keeps a part of a restore, and changes nothing else.
func (s *State) snapshotStaged(c *change, staged *eventpb.SnapshotStaged) error {
	if err := checkRestore(staged.Restore); err != nil {
		return err
	}
	next := staging{}
	switch {
	case staged.Part > 0:
		of, err := s.stagingOf(c, staged.Restore)
		if err != nil {
			return err
		}
		next = *of
	case s.underWay(c.now):
		return fmt.Errorf("restore %s: %w", staged.Restore, s.another())
	}
	if err := c.ahead.payloadErr; err != nil {
		return fmt.Errorf("restore %s: %w", staged.Restore, err)
	}
	p := part{restore: staged.Restore, set: staged, policies: c.ahead.policies, node: c.event.GetOrigin().GetNode(), revision: c.rev, timeNS: c.now}
	if err := next.add(&p); err != nil {
		return fmt.Errorf("restore %s: %w", staged.Restore, err)
	}
	if staged.Part == 0 {
		s.unstage() // what nobody went on with
	}
	s.staged = next
	s.putPart(p)
	return nil
}

// compileAll is policy.Compile of each.
func compileAll(sets []*eventpb.PolicySet) ([]*policy.Policy, error) {
	compiled := make([]*policy.Policy, len(sets))
	for i, set := range sets {
		p, err := policy.Compile(set)
		if err != nil {
			return nil, fmt.Errorf("policies[%d]: %s: %w", i, set.GetRef().GetName(), err)
		}
		compiled[i] = p
	}
	return compiled, nil
}

// snapshotRestored makes the policies and namespaces those that were staged. What is
// the same already is left as it is, with its revision.
func (s *State) snapshotRestored(c *change, r *eventpb.SnapshotRestored) error {
	parts, err := s.complete(c, r)
	if err != nil {
		return fmt.Errorf("restore %.80s: %w", r.Restore, err)
	}
	names, want := s.otherNamespaces(parts)
	var changes []relabelling
	for _, name := range names {
		labels, stays := want[name]
		if !stays {
			labels = map[string]string{labelNamespaceName: name}
		}
		changes = append(changes, s.relabelling(name, labels))
	}
	if err := s.canRelabel(c, changes); err != nil {
		return fmt.Errorf("restore %s: %w", r.Restore, err)
	}
	// From here on nothing fails.
	s.relabel(c, changes)
	for _, name := range names {
		if labels, stays := want[name]; stays {
			s.putNamespace(Namespace{Name: name, Labels: labels, Revision: c.rev})
		} else {
			s.removeNamespace(name)
		}
	}
	s.restorePolicies(c, parts)
	s.unstage()
	return nil
}

// complete is the parts of a restore, of which all must be there. One of nothing at all
// has none.
func (s *State) complete(c *change, r *eventpb.SnapshotRestored) ([]*part, error) {
	if err := checkRestore(r.Restore); err != nil {
		return nil, err
	}
	if src := r.Source; len(src.GetChain()) != len(s.chain) || len(src.GetDigest()) != len(s.chain) {
		return nil, errors.New("source: want the chain value and the digest of the state that it is of, 32 bytes each")
	}
	of, parts := new(staging), []*part(nil)
	switch {
	case r.Parts > 0:
		var err error
		if of, err = s.stagingOf(c, r.Restore); err != nil {
			return nil, err
		}
		parts = slices.Collect(all(s.parts))
	case s.underWay(c.now):
		return nil, s.another()
	}
	if of.Parts != r.Parts {
		return nil, fmt.Errorf("parts: %d, but %d were staged", r.Parts, of.Parts)
	}
	if sum := of.digest.Sum(); string(sum[:]) != string(r.Digest) {
		return nil, fmt.Errorf("digest: %x, what was staged has %s", r.Digest, sum)
	}
	return parts, nil
}

// another refuses a restore beside one that is under way.
func (s *State) another() error {
	return fmt.Errorf("restore %s of node %s, which began at revision %d, is under way; wait until it is done, or until its last part is 10 minutes old",
		s.staged.Restore, s.staged.Node, s.staged.Revision)
}

// otherNamespaces lists, in order, the namespaces that are not as they were staged,
// and the labels of all that were.
func (s *State) otherNamespaces(parts []*part) (other []string, want map[string]map[string]string) {
	want = map[string]map[string]string{}
	for _, p := range parts {
		for _, n := range p.set.Namespaces {
			want[n.Name] = n.Labels
			if have, ok := lookup(s.namespaces, n.Name); !ok || !maps.Equal(have.Labels, n.Labels) {
				other = append(other, n.Name)
			}
		}
	}
	for n := range all(s.namespaces) {
		if _, stays := want[n.Name]; !stays {
			other = append(other, n.Name)
		}
	}
	slices.Sort(other)
	return other, want
}

func (s *State) restorePolicies(c *change, parts []*part) {
	var is, was []byte
	want := map[string]bool{}
	for _, p := range parts {
		for i, compiled := range p.policies {
			key := policyKey(compiled.Ref)
			want[key] = true
			row := Policy{Policy: compiled, Set: p.set.Policies[i], Created: c.rev, Revision: c.rev}
			if old, ok := lookup(s.policies, key); ok {
				is, was = appendPolicySet(is[:0], row.Set), appendPolicySet(was[:0], old.Set)
				if bytes.Equal(is, was) {
					continue
				}
				row.Created = old.Created
			}
			s.putPolicy(row)
		}
	}
	var gone []policy.Ref
	for p := range all(s.policies) {
		if !want[policyKey(p.Policy.Ref)] {
			gone = append(gone, p.Policy.Ref)
		}
	}
	for _, ref := range gone {
		s.removePolicy(ref)
	}
}

// snapshotAbandoned forgets what a restore has staged.
func (s *State) snapshotAbandoned(c *change, a *eventpb.SnapshotAbandoned) error {
	if _, err := s.stagingOf(c, a.Restore); err != nil {
		return err
	}
	s.unstage()
	return nil
}
