package gencluster

import (
	"fmt"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// Pod is the reference of a pod that AddPod made.
func Pod(ns, pod int) fsm.EndpointRef {
	return fsm.EndpointRef{Namespace: namespace(ns), Name: fmt.Sprintf("pod%d", pod)}
}

// Label gives a pod other labels, and so another identity.
func (g *Cluster) Label(ref fsm.EndpointRef, labels map[string]string) error {
	e, ok := g.State.View().Endpoint(ref)
	if !ok {
		return fmt.Errorf("pod %s: is not there", ref)
	}
	updated := &eventpb.EndpointUpdated{
		Ref: &eventpb.EndpointRef{Namespace: ref.Namespace, Name: ref.Name}, Incarnation: e.Incarnation, Labels: labels, ServiceAccount: e.ServiceAccount,
	}
	for _, p := range e.NamedPorts {
		updated.NamedPorts = append(updated.NamedPorts, &eventpb.NamedPort{Name: p.Name, Protocol: uint32(p.Protocol), Port: uint32(p.Port)})
	}
	return g.fact(e.Node, &eventpb.Event{Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: updated}})
}

// RemovePod takes a pod away.
func (g *Cluster) RemovePod(ref fsm.EndpointRef) error {
	e, ok := g.State.View().Endpoint(ref)
	if !ok {
		return fmt.Errorf("pod %s: is not there", ref)
	}
	return g.fact(e.Node, &eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{
		Ref: &eventpb.EndpointRef{Namespace: ref.Namespace, Name: ref.Name}, Incarnation: e.Incarnation,
	}}})
}

// DeletePolicy removes a policy.
func (g *Cluster) DeletePolicy(ref policy.Ref) error {
	return g.admin(&eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: ref.PB()}}})
}
