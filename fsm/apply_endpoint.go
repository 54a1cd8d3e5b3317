package fsm

import (
	"fmt"
	"math"
	"net/netip"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// endpointCreated makes an endpoint, or replaces an older incarnation of it, on
// whichever node that was: a workload may move before, or without that, its old
// node says so.
func (s *State) endpointCreated(c *change, created *eventpb.EndpointCreated) error {
	e, err := c.endpointFacts(created)
	if err != nil {
		return err
	}
	node, ok := lookup(s.nodes, e.Node)
	if !ok || node.Left {
		return fmt.Errorf("endpoint %s: node %s has not joined", e.Ref, e.Node)
	}
	if node.NextEndpointID == math.MaxUint32 {
		return fmt.Errorf("endpoint %s: node %s has used all endpoint ids", e.Ref, e.Node)
	}
	key := e.Ref.key()
	old, replaces := lookup(s.endpoints, key)
	if replaces && e.Incarnation <= old.Incarnation {
		return fmt.Errorf("endpoint %s: incarnation %d: %d is live, want a higher one", e.Ref, e.Incarnation, old.Incarnation)
	}
	for _, a := range e.addresses() {
		if has, taken := s.owners[a]; taken && has != (owner{endpoint: e.Ref}) {
			return fmt.Errorf("endpoint %s: address %s: %s has it", e.Ref, a, has)
		}
	}
	var held uint32
	if replaces {
		held = old.Identity
	}
	if e.Identity, err = s.exchange(c, held, s.needOf(e)); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	e.ID = node.NextEndpointID
	c.tookEndpointID = true
	e.Created, e.Revision, e.IdentityRevision = c.rev, c.rev, c.rev
	if replaces {
		s.disown(old)
		s.forgetNames(key)
	}
	s.own(e)
	s.putEndpoint(key, *e)
	return nil
}

// endpointUpdated replaces what a live incarnation may change.
func (s *State) endpointUpdated(c *change, u *eventpb.EndpointUpdated) error {
	key, live, err := s.live(c, u.Ref, u.Incarnation)
	if err != nil {
		return err
	}
	e := *live
	e.Labels, e.AuditMode, e.Revision = u.Labels, u.PolicyAuditMode, c.rev
	if err := checkLabels(e.Labels); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	e.BigTCP = u.BigTcp
	if e.MTU, err = interfaceMTU(u.Mtu); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	if e.ServiceAccount, err = serviceAccount(u.ServiceAccount); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	if e.NamedPorts, err = namedPorts(u.NamedPorts); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	if e.Identity, err = s.exchange(c, live.Identity, s.needOf(&e)); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	if e.Identity != live.Identity {
		e.IdentityRevision = c.rev
	}
	s.putEndpoint(key, e)
	return nil
}

func (s *State) endpointDeleted(c *change, d *eventpb.EndpointDeleted) error {
	key, e, err := s.live(c, d.Ref, d.Incarnation)
	if err != nil {
		return err
	}
	s.removeEndpoint(c, key, e)
	return nil
}

// live finds the incarnation that the event is about. Only its node may change it.
func (s *State) live(c *change, pb *eventpb.EndpointRef, incarnation uint64) (string, *Endpoint, error) {
	ref := EndpointRef{pb.GetNamespace(), pb.GetName()}
	if err := checkRef(ref); err != nil {
		return "", nil, err
	}
	key := ref.key()
	e, ok := lookup(s.endpoints, key)
	switch {
	case !ok:
		return "", nil, fmt.Errorf("endpoint %s: does not exist", ref)
	case e.Node != c.event.Origin.Node:
		return "", nil, fmt.Errorf("%w: endpoint %s: is of node %s, not of node %.80q", log.ErrForbidden, ref, e.Node, c.event.Origin.Node)
	case e.Incarnation != incarnation:
		return "", nil, fmt.Errorf("endpoint %s: incarnation %d: %d is live", ref, incarnation, e.Incarnation)
	}
	return key, e, nil
}

func (s *State) removeEndpoint(c *change, key string, e *Endpoint) {
	s.release(e.Identity, c.rev, c.now)
	s.disown(e)
	s.forgetNames(key)
	s.note(Change{Kind: ChangeEndpoint, namespace: e.Ref.Namespace, name: e.Ref.Name})
	remove(s, s.endpoints, key)
}

// exchange gives the identity that n needs for the one held, 0 for none. An error
// leaves everything as it was.
func (s *State) exchange(c *change, held uint32, n *need) (uint32, error) {
	id, ok := s.identityOf(n)
	switch {
	case ok && id == held:
		return id, nil
	case ok:
		s.retain(id)
	default:
		needs := []*need{n}
		if err := s.canAcquire(needs, c.rev, c.now); err != nil {
			return 0, err
		}
		id = s.acquire(needs, c.rev, c.now)[0]
	}
	if held != 0 {
		s.release(held, c.rev, c.now)
	}
	return id, nil
}

func (s *State) own(e *Endpoint) {
	for _, a := range e.addresses() {
		s.owners[a] = owner{endpoint: e.Ref}
	}
}

func (s *State) disown(e *Endpoint) {
	for _, a := range e.addresses() {
		delete(s.owners, a)
	}
}

// addresses is those that the endpoint has, IPv4 first.
func (e *Endpoint) addresses() []netip.Addr {
	all := make([]netip.Addr, 0, 2)
	for _, a := range [...]netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}
