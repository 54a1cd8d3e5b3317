package fsm

import (
	"fmt"

	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// policySet stores a policy, new or in place of the one of that name. Setting
// what is there already moves the revision too, as a put does in etcd.
func (s *State) policySet(c *change, set *eventpb.PolicySet) error {
	if err := c.ahead.payloadErr; err != nil {
		return err
	}
	compiled := c.ahead.policy
	row := Policy{Policy: compiled, Set: set, Created: c.rev, Revision: c.rev}
	if old, ok := lookup(s.policies, policyKey(compiled.Ref)); ok {
		row.Created = old.Created
	}
	s.putPolicy(row)
	return nil
}

func (s *State) policyDeleted(d *eventpb.PolicyDeleted) error {
	ref, err := policy.RefFromPB(d.Ref)
	if err != nil {
		return err
	}
	if _, ok := lookup(s.policies, policyKey(ref)); !ok {
		return fmt.Errorf("policy %s: does not exist", ref)
	}
	s.removePolicy(ref)
	return nil
}

func (s *State) removePolicy(ref policy.Ref) {
	s.notePolicy(ref)
	remove(s, s.policies, &s.write.policy, policyKey(ref))
}
