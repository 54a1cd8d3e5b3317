package fsm

import (
	"fmt"

	"github.com/varve-net/varve/log/eventpb"
)

// nodeJoined states all facts of a node, a first time or again. Its counters go
// on from where they were, also after it left: an agent numbers its facts on from
// its Node.JournalSeq in the View, and an endpoint id is never used twice.
func (s *State) nodeJoined(c *change, j *eventpb.NodeJoined) error {
	n, err := nodeFacts(j.Name, j.Addresses, j.EndpointCidrs, j.KubeApiserver, j.PolicyAuditMode)
	if err != nil {
		return err
	}
	return s.setNode(c, n)
}

func (s *State) nodeUpdated(c *change, u *eventpb.NodeUpdated) error {
	n, err := nodeFacts(u.Name, u.Addresses, u.EndpointCidrs, u.KubeApiserver, u.PolicyAuditMode)
	if err != nil {
		return err
	}
	if err := s.member(n.Name); err != nil {
		return err
	}
	return s.setNode(c, n)
}

// nodeLeft takes the node's endpoints with it: without their node they are
// unreachable, and no one else could say that they are gone. Its row stays for
// its counters.
func (s *State) nodeLeft(c *change, l *eventpb.NodeLeft) error {
	if err := s.member(l.Name); err != nil {
		return err
	}
	var keys []string
	s.endpoints.Scan(func(key string, e *cell[string, Endpoint]) bool {
		if e.row.Node == l.Name {
			keys = append(keys, key)
		}
		return true
	})
	for _, key := range keys {
		e, _ := lookup(s.endpoints, key)
		s.removeEndpoint(c, key, e)
	}
	n, _ := lookup(s.nodes, l.Name)
	row := *n
	for _, a := range row.Addresses {
		delete(s.owners, a)
	}
	row.Left, row.Revision = true, c.rev
	s.putNode(row)
	return nil
}

func (s *State) member(name string) error {
	if n, ok := lookup(s.nodes, name); !ok || n.Left {
		return fmt.Errorf("node %.80q: has not joined", name)
	}
	return nil
}

func (s *State) setNode(c *change, n Node) error {
	for _, a := range n.Addresses {
		if has, taken := s.owners[a]; taken && has != (owner{node: n.Name}) {
			return fmt.Errorf("node %s: address %s: %s has it", n.Name, a, has)
		}
	}
	n.NextEndpointID = 1
	if old, ok := lookup(s.nodes, n.Name); ok {
		n.JournalSeq, n.DNSSeq, n.NextEndpointID = old.JournalSeq, old.DNSSeq, old.NextEndpointID
		if !old.Left {
			for _, a := range old.Addresses {
				delete(s.owners, a)
			}
		}
	}
	for _, a := range n.Addresses {
		s.owners[a] = owner{node: n.Name}
	}
	n.Revision = c.rev
	s.putNode(n)
	return nil
}
