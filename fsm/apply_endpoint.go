package fsm

import (
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// endpointCreated makes an endpoint, or replaces an older incarnation of it, on
// whichever node that was: a workload may move before, or without that, its old
// node says so.
func (s *State) endpointCreated(c *change) error {
	if err := c.ahead.payloadErr; err != nil {
		return err
	}
	e := &c.ahead.endpoint
	node, ok := s.node(e.Node)
	if !ok || node.Left {
		return fmt.Errorf("endpoint %s: node %s has not joined", e.Ref, e.Node)
	}
	if node.NextEndpointID == math.MaxUint32 {
		return fmt.Errorf("endpoint %s: node %s has used all endpoint ids", e.Ref, e.Node)
	}
	cell, replaces := s.endpointCell(e.Ref)
	old := new(Endpoint)
	if replaces {
		old = &cell.row
	}
	if replaces && e.Incarnation <= old.Incarnation {
		return fmt.Errorf("endpoint %s: incarnation %d: %d is live, want a higher one", e.Ref, e.Incarnation, old.Incarnation)
	}
	for _, a := range e.addresses() {
		if has, taken := s.owners[a]; taken && has != (owner{endpoint: e.Ref}) {
			return fmt.Errorf("endpoint %s: address %s: %s has it", e.Ref, a, has)
		}
	}
	need := s.needOf(e.Ref.Namespace, e, c.ahead.workload)
	id, err := s.exchange(c, old.Identity, need)
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	c.tookEndpointID = true
	e.keep(old)
	e.ID, e.Identity, e.Node = node.NextEndpointID, id, node.Name
	e.Labels, e.ServiceAccount = need.workload, need.account
	e.Created, e.Revision, e.IdentityRevision = c.rev, c.rev, c.rev
	if moved := e.IPv4 != old.IPv4 || e.IPv6 != old.IPv6; moved {
		s.disown(old)
		s.own(e)
	}
	if !replaces {
		s.putEndpoint(e.Ref.key(), *e)
		return nil
	}
	s.forgetNames(cell.key)
	*s.editEndpoint(cell) = *e
	return nil
}

// keep makes the strings of an endpoint, as decoded, its own: where the one before it
// has the same it takes that.
func (e *Endpoint) keep(old *Endpoint) {
	keep(&e.Ref.Namespace, old.Ref.Namespace)
	keep(&e.Ref.Name, old.Ref.Name)
	keep(&e.HostInterface, old.HostInterface)
	keep(&e.ContainerInterface, old.ContainerInterface)
	keep(&e.Netns, old.Netns)
	keep(&e.NetnsID, old.NetnsID)
}

func keep(s *string, old string) {
	if *s == old {
		*s = old
	} else {
		*s = strings.Clone(*s)
	}
}

// endpointUpdated replaces what a live incarnation may change.
func (s *State) endpointUpdated(c *change, u *eventpb.EndpointUpdated) error {
	cell, err := s.live(c, u.Ref, u.Incarnation)
	if err != nil {
		return err
	}
	live, e := &cell.row, &c.ahead.endpoint
	if err := c.ahead.payloadErr; err != nil {
		return fmt.Errorf("endpoint %s: %w", live.Ref, err)
	}
	need := s.needOf(live.Ref.Namespace, e, c.ahead.workload)
	id, err := s.exchange(c, live.Identity, need)
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", live.Ref, err)
	}
	row := s.editEndpoint(cell)
	if row.Identity != id {
		row.Identity, row.IdentityRevision = id, c.rev
	}
	row.Labels, row.ServiceAccount, row.NamedPorts = need.workload, need.account, e.NamedPorts
	row.AuditMode, row.BigTCP, row.MTU, row.Revision = e.AuditMode, e.BigTCP, e.MTU, c.rev
	return nil
}

func (s *State) endpointDeleted(c *change, d *eventpb.EndpointDeleted) error {
	cell, err := s.live(c, d.Ref, d.Incarnation)
	if err != nil {
		return err
	}
	s.removeEndpoint(c, cell.key, &cell.row)
	return nil
}

// live finds the incarnation that the event is about. Only its node may change it.
func (s *State) live(c *change, pb *eventpb.EndpointRef, incarnation uint64) (*cell[string, Endpoint], error) {
	ref := EndpointRef{pb.GetNamespace(), pb.GetName()}
	cell, ok := s.endpointCell(ref)
	if !ok {
		if err := checkRef(ref); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("endpoint %s: does not exist", ref)
	}
	switch e := &cell.row; {
	case e.Node != c.event.Origin.Node:
		return nil, fmt.Errorf("%w: endpoint %s: is of node %s, not of node %.80q", log.ErrForbidden, ref, e.Node, c.event.Origin.Node)
	case e.Incarnation != incarnation:
		return nil, fmt.Errorf("endpoint %s: incarnation %d: %d is live", ref, incarnation, e.Incarnation)
	}
	return cell, nil
}

func (s *State) removeEndpoint(c *change, key string, e *Endpoint) {
	s.release(e.Identity, c.rev, c.now)
	s.disown(e)
	s.forgetNames(key)
	s.note(Change{Kind: ChangeEndpoint, namespace: e.Ref.Namespace, name: e.Ref.Name})
	remove(s, s.endpoints, &s.write.endpoint, key)
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
