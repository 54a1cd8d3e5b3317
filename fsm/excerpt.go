package fsm

import (
	"cmp"
	"fmt"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// Excerpt returns a State with some rows of a View: the named endpoints that
// exist with their names and their identities, the policies that keep says, and every
// namespace and node. The rows are the View's own. What else the log holds is as if it
// had never been, so the State must only Fold, never Apply: it would answer repeats,
// conflicts and the numbers of identities wrongly. A restore that is folded brings
// every policy that it is of.
//
// It costs time with the number of policies, namespaces and nodes. Any number of
// calls for one View may run at once.
func (v View) Excerpt(endpoints []EndpointRef, keep func(policy.Ref) bool) *State {
	from, s := v.tables(), New(v.Cluster())
	s.revision, s.chain, s.timeNS, s.nextIdentity = from.revision, from.chain, from.timeNS, from.nextIdentity
	copyRows(s, s.namespaces, from.namespaces, nil)
	copyRows(s, s.nodes, from.nodes, nil)
	copyRows(s, s.policies, from.policies, func(p *Policy) bool { return keep(p.Policy.Ref) })
	for n := range all(s.nodes) {
		if !n.Left {
			for _, a := range n.Addresses {
				s.owners[a] = owner{node: n.Name}
			}
		}
	}
	from.parts.Scan(func(i uint32, c *cell[uint32, part]) bool {
		s.parts.Set(i, c)
		s.rows.Add(c.hash)
		return true
	})
	s.rebuildStaged()
	refs := map[uint32]int{}
	for _, ref := range endpoints {
		c, ok := from.endpoints.Get(ref.key())
		if !ok {
			continue
		}
		if _, twice := s.endpoints.Set(ref.key(), c); twice {
			continue
		}
		s.rows.Add(c.hash)
		s.own(&c.row)
		namesOf(from.names, ref.key(), func(key string, n *Name) bool {
			s.putName(key, *n)
			s.learned[ref.key()] += len(n.Addresses)
			return true
		})
		refs[c.row.Identity]++
	}
	for e := range all(s.endpoints) {
		c, ok := from.identities.Get(e.Identity)
		if _, have := s.tables.identities.Get(e.Identity); have || !ok {
			continue
		}
		row := c.row
		row.Refs = refs[e.Identity]
		s.tables.identities.Set(row.ID, &cell[uint32, Identity]{key: row.ID, row: row, hash: c.hash, hashed: true})
		s.rows.Add(c.hash)
		s.byLabels[string(labelKey(nil, row.Labels))] = row.ID
	}
	return s
}

func copyRows[T any](s *State, to, from *table[string, T], keep func(*T) bool) {
	from.Scan(func(key string, c *cell[string, T]) bool {
		if keep == nil || keep(&c.row) {
			to.Set(key, c)
			s.rows.Add(c.hash)
		}
		return true
	})
}

// Fold brings an Excerpt to a later record of the same log. What a record that was
// applied says is taken as it stands, under the revision and time that it has
// there; one that was rejected only moves those. Records may be left out if they
// are about none of the rows that the excerpt is of; the identities of endpoints
// and their ids are then other numbers than the log's.
//
// The error is of a record that cannot follow on what the excerpt holds, and is
// one for which Apply would stop the node or reject it.
func (s *State) Fold(r *log.Record) error {
	if r.Revision <= s.revision {
		return fmt.Errorf("revision %d: the excerpt is at %d", r.Revision, s.revision)
	}
	if r.Outcome == log.OutcomeApplied {
		d := &s.decoded
		d.Decode(r.Event)
		if err := cmp.Or(d.err, d.role, d.stream); err != nil {
			return fmt.Errorf("revision %d: %w", r.Revision, err)
		}
		c := change{event: d.event, kind: d.kind, rev: r.Revision, now: r.TimeNS, authorized: true, ahead: d}
		s.begin(c.rev)
		if err := s.apply(&c); err != nil {
			return fmt.Errorf("revision %d: %w", r.Revision, err)
		}
		s.countNodeFact(&c)
	}
	s.revision, s.timeNS, s.chain = r.Revision, r.TimeNS, r.Chain
	return nil
}

// Suppose puts a policy into an Excerpt that the log does not hold, in the place of
// one of its name: what if it had been in force? Its revision is 0. The error is
// that of policy.Compile.
func (s *State) Suppose(set *eventpb.PolicySet) error {
	compiled, err := policy.Compile(set)
	if err != nil {
		return err
	}
	s.putPolicy(Policy{Policy: compiled, Set: set})
	return nil
}

// SupposeNot takes a policy out of an Excerpt that the log holds: what if it had not
// been in force?
func (s *State) SupposeNot(ref policy.Ref) { s.removePolicy(ref) }
