package policytest

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

const (
	clusterName = "default"
	nodeName    = "node"
)

// party is one end of a probe. Exactly pods have an endpoint id.
type party struct {
	name     string
	endpoint uint32
	addr     netip.Addr // not valid for an entity
	peer     uint64
}

// parsePolicies reads the policies of a case; the error is package policy's.
func parsePolicies(c *testCase) ([]*eventpb.PolicySet, error) {
	var sets []*eventpb.PolicySet
	var errs []error
	for i, raw := range c.Policies {
		more, _, err := policy.Parse(fmt.Sprintf("policies[%d]", i), raw, policy.Options{Cluster: clusterName})
		if err != nil {
			errs = append(errs, err)
		}
		sets = append(sets, more...)
	}
	return sets, errors.Join(errs...)
}

// project appends the objects of a case to an empty log and builds the tables of
// the one node on which all its pods are.
func project(c *testCase, sets []*eventpb.PolicySet) (*projections.Tables, []party, error) {
	state, err := replay(c, sets)
	if err != nil {
		return nil, nil, err
	}
	view := state.View()
	tables, err := projections.Build(view, nodeName, projections.Options{})
	if err != nil {
		return nil, nil, err
	}
	parties, err := gather(c, view, tables)
	return tables, parties, err
}

// replay is the state that the objects of a case lead to.
func replay(c *testCase, sets []*eventpb.PolicySet) (*fsm.State, error) {
	state := fsm.New(clusterName)
	for _, e := range events(c, sets) {
		if e.err != nil {
			return nil, e.err
		}
		if err := apply(state, e.event); err != nil {
			return nil, fmt.Errorf("%s: %w", e.what, err)
		}
	}
	return state, nil
}

func gather(c *testCase, view fsm.View, tables *projections.Tables) ([]party, error) {
	var parties []party
	for i, name := range c.endpoints() {
		switch pods, externals := len(c.Pods), len(c.Externals); {
		case i < pods:
			p := c.Pods[i]
			e, ok := view.Endpoint(fsm.EndpointRef{Namespace: p.Namespace, Name: p.Name})
			if !ok {
				return nil, fmt.Errorf("pod %s: is not in the state", name)
			}
			parties = append(parties, party{name, e.ID, p.IP, tables.PeerOf(p.IP)})
		case i < pods+externals:
			a := c.Externals[i-pods]
			parties = append(parties, party{name: name, addr: a, peer: tables.PeerOf(a)})
		default:
			id, ok := entities[name]
			if !ok {
				known := slices.Sorted(maps.Keys(entities))
				return nil, fmt.Errorf("%w: entity %q is none of %s", ErrCase, name, strings.Join(known, ", "))
			}
			parties = append(parties, party{name: name, peer: uint64(id)})
		}
	}
	return parties, nil
}

type namedEvent struct {
	what  string
	event *eventpb.Event
	err   error
}

func events(c *testCase, sets []*eventpb.PolicySet) []namedEvent {
	admin := &eventpb.Actor{Role: eventpb.Role_ROLE_ADMIN, Name: "policy test"}
	node := &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "policy test"}
	origin := &eventpb.Origin{Cluster: clusterName, Node: nodeName}

	out := []namedEvent{{"node", &eventpb.Event{
		Actor: node, Origin: origin,
		Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: nodeName}},
	}, nil}}
	for _, name := range slices.Sorted(maps.Keys(c.Namespaces)) {
		out = append(out, namedEvent{"namespace " + name, &eventpb.Event{
			Actor: admin, Origin: origin,
			Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: name, Labels: c.Namespaces[name]}},
		}, nil})
	}
	for i, p := range c.Pods {
		created, err := endpointCreated(i, p)
		out = append(out, namedEvent{"pod " + p.Namespace + "/" + p.Name, &eventpb.Event{
			Actor: node, Origin: origin, Payload: &eventpb.Event_EndpointCreated{EndpointCreated: created},
		}, err})
	}
	for _, set := range sets {
		out = append(out, namedEvent{"policy " + set.Ref.Name, &eventpb.Event{
			Actor: admin, Origin: origin, Payload: &eventpb.Event_PolicySet{PolicySet: set},
		}, nil})
	}
	return out
}

func endpointCreated(index int, p pod) (*eventpb.EndpointCreated, error) {
	if !p.IP.IsValid() {
		return nil, fmt.Errorf("%w: pod %s/%s has no ip", ErrCase, p.Namespace, p.Name)
	}
	e := &eventpb.EndpointCreated{
		Ref:         &eventpb.EndpointRef{Namespace: p.Namespace, Name: p.Name},
		Incarnation: 1, Node: nodeName, Labels: p.Labels, ServiceAccount: p.ServiceAccount,
		Addresses: [][]byte{p.IP.Unmap().AsSlice()},
		Mac:       []byte{0x02, 0, 0, 0, byte(index >> 8), byte(index)},
	}
	for _, port := range p.Ports {
		if port.Name == "" {
			continue
		}
		proto, err := protocol(port.Proto)
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		e.NamedPorts = append(e.NamedPorts, &eventpb.NamedPort{
			Name: strings.ToLower(port.Name), Protocol: uint32(proto), Port: port.Port,
		})
	}
	return e, nil
}

func apply(state *fsm.State, e *eventpb.Event) error {
	var err error
	if e.Stream, err = log.StreamOf(e); err != nil {
		return err
	}
	b, err := log.Marshal(e)
	if err != nil {
		return err
	}
	_, result, err := state.Apply(b)
	if err != nil {
		return err
	}
	if result.Outcome != log.OutcomeApplied {
		return fmt.Errorf("%w: %s", ErrCase, result.Reason)
	}
	return nil
}

// question is what the direction of subject's policy says of other.
func question(d abi.Direction, subject, other party, proto uint8, port uint16) Question {
	return Question{
		Endpoint: subject.endpoint, Direction: d, Subject: subject.addr,
		Peer: other.peer, PeerAddr: other.addr, Protocol: proto, Port: port,
	}
}
