package mix

import (
	"fmt"

	"github.com/varve-net/varve/log/eventpb"
)

// whole is the n-th event, if it is of the churn and there are names. Its endpoint is
// the i-th, its kind follows from k, of 1000.
func (g *generator) whole(n, i, k int) *eventpb.Event {
	switch {
	case k == 0:
		return g.namespace(g.rand.IntN(g.Namespaces), n)
	case k < 81:
		return g.policy(g.rand.IntN(g.Policies))
	case k < 100:
		p := g.rand.IntN(g.Policies)
		if !g.set[p] {
			return g.policy(p)
		}
		return g.deletePolicy(p)
	case !g.live[i] || k < 290:
		return g.endpoint(i, g.rand.IntN(g.Apps))
	case k < 400:
		return g.delete(i)
	case k < 700:
		return g.relabel(i, g.rand.IntN(g.Apps))
	case k < 950:
		return g.observe(n, i)
	default:
		return g.collect(i)
	}
}

func (g *generator) deletePolicy(i int) *eventpb.Event {
	g.set[i] = false
	return g.admin(&eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: g.policyRef(i)}}})
}

func (g *generator) delete(i int) *eventpb.Event {
	g.live[i] = false
	return g.fact(g.node(i), &eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{
		Ref: g.ref(i), Incarnation: g.incarnation[i],
	}}})
}

// namesAsked is how many names an endpoint asks for, nameAddresses how many addresses
// a name has.
const (
	namesAsked    = 3
	nameAddresses = 4
)

// nameOf is one of the names that an endpoint asks for, by its number.
func (g *generator) nameOf(i int) int { return (i*7 + g.rand.IntN(namesAsked)) % g.Names }

// Name is the i-th of a mix's names.
func Name(i int) string { return fmt.Sprintf("host-%d.svc-%d.example.com.", i, i%20) }

func nameAddress(name, i int) []byte { return []byte{198, 18, byte(name >> 6), byte(name<<2 | i)} }

// observe has an endpoint learn a few of a name's addresses for five minutes.
func (g *generator) observe(n, i int) *eventpb.Event {
	node, name := g.node(i), g.nameOf(i)
	observed := &eventpb.DnsObserved{Node: Node(node), Ref: g.ref(i), Incarnation: g.incarnation[i], Name: Name(name)}
	first := g.rand.IntN(nameAddresses)
	for a := first; a < min(first+2, nameAddresses); a++ {
		observed.Addresses = append(observed.Addresses, &eventpb.DnsAddress{
			Address: nameAddress(name, a), ExpiresUnixNs: startNS + int64(n)*stepNS + 300_000_000_000,
		})
	}
	if name%5 == 0 {
		observed.Chain = []string{fmt.Sprintf("edge-%d.cdn.example.net.", name%50)}
	}
	return g.dns(node, &eventpb.Event{Payload: &eventpb.Event_DnsObserved{DnsObserved: observed}})
}

// collect has it forget some.
func (g *generator) collect(i int) *eventpb.Event {
	node, name := g.node(i), g.nameOf(i)
	collected := &eventpb.DnsCollected{Node: Node(node), Ref: g.ref(i), Incarnation: g.incarnation[i], Name: Name(name)}
	for a := range 1 + g.rand.IntN(nameAddresses) {
		collected.Addresses = append(collected.Addresses, nameAddress(name, a))
	}
	return g.dns(node, &eventpb.Event{Payload: &eventpb.Event_DnsCollected{DnsCollected: collected}})
}

// dns is a fact that a node's DNS proxy keeps in a journal of its own.
func (g *generator) dns(node int, e *eventpb.Event) *eventpb.Event {
	e.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "node:" + Node(node)}
	e.Origin = &eventpb.Origin{Cluster: g.Cluster, Node: Node(node)}
	g.dnsSeqs[node]++
	e.JournalSeq = g.dnsSeqs[node]
	return e
}

// namesPolicy lets an app out to the names of one service.
func (g *generator) namesPolicy(i int) *eventpb.Event {
	namespace := g.namespaceName(i % g.Namespaces)
	return g.admin(&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: &eventpb.PolicySet{
		Ref: g.policyRef(i),
		Specs: []*eventpb.PolicySpec{{
			Subject:           app(namespace, i%g.Apps),
			DefaultDenyEgress: true,
			Egress: []*eventpb.Rule{{
				Peers: []*eventpb.Peer{{Peer: &eventpb.Peer_Fqdn{Fqdn: &eventpb.FqdnSelector{MatchPattern: fmt.Sprintf("*.svc-%d.example.com.", g.rand.IntN(20))}}}},
				Ports: []*eventpb.Port{{Protocol: 6, First: 443, Last: 443}},
			}},
		}},
	}}})
}
