// Package mix makes histories for benchmarks: the same events for the same seed,
// on every machine and in every version that keeps the package as it is.
package mix

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// Mix is the shape of a history.
type Mix struct {
	Seed       uint64
	Cluster    string
	Events     int
	Nodes      int
	Namespaces int
	Endpoints  int // live at once, once all are created
	Apps       int // label sets
	Policies   int // live at once
	// Names is how many DNS names there are to ask for. If it is not 0, endpoints
	// learn and forget addresses, every eighth policy is of names, and endpoints and
	// policies are deleted, too.
	Names int
}

// Standard is the mix that docs/benchmarks.md quotes: a cluster of 10,000
// endpoints and 2,500 policies that is created and then churned. Of the churn 50
// in a hundred events relabel an endpoint, 40 replace one by its next
// incarnation, 9 set a policy; one in a thousand relabels a namespace.
func Standard(events int) Mix {
	return Mix{Seed: 1, Cluster: "bench", Events: events, Nodes: 100, Namespaces: 50, Endpoints: 10_000, Apps: 40, Policies: 2500}
}

// Whole is Standard with all else that befalls a cluster. Of a thousand events of the
// churn 300 relabel an endpoint, 190 replace one by its next incarnation, 110 delete
// one, 250 are answers of DNS and 50 take such back, 80 set a policy, 19 delete one
// and one relabels a namespace. What is about an endpoint or a policy that is deleted
// creates it again instead.
func Whole(events int) Mix {
	m := Standard(events)
	m.Names = 2000
	return m
}

// startNS is the time of the first event; each of the others is stepNS on.
const (
	startNS = 1_700_000_000_000_000_000
	stepNS  = 10_000_000
)

// Address is that of the i-th endpoint, of a mix with so many nodes.
func Address(i, nodes int) netip.Addr {
	local := i/nodes + 2 // after the gateway
	return netip.AddrFrom4([4]byte{10, byte(i%nodes + 1), byte(local >> 8), byte(local)})
}

// Node is the name of the i-th node.
func Node(i int) string { return fmt.Sprintf("bench-%d", i+1) }

// All yields the history's events as they stand in a log. Applied to an empty
// state of the cluster, all of them are applied.
func (m Mix) All() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for e, err := range m.From(0) {
			var b []byte
			if err == nil {
				b, err = log.Marshal(e)
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// From yields the history's events from the n-th on, counted from 0, as they are
// given to a log.
func (m Mix) From(n int) iter.Seq2[*eventpb.Event, error] {
	return func(yield func(*eventpb.Event, error) bool) {
		g := &generator{
			Mix: m, rand: rand.New(rand.NewPCG(m.Seed, 0)), seqs: make([]uint64, m.Nodes), dnsSeqs: make([]uint64, m.Nodes),
			incarnation: make([]uint64, m.Endpoints), live: make([]bool, m.Endpoints), set: make([]bool, m.Policies),
		}
		for i := range m.Events {
			e := g.event(i)
			if i < n {
				continue
			}
			e.TimeUnixNs = startNS + int64(i)*stepNS
			e.RequestId = fmt.Sprintf("0190b4a2-7c3e-7a10-8000-%012d", i)
			var err error
			e.Stream, err = log.StreamOf(e)
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

type generator struct {
	Mix
	rand        *rand.Rand
	seqs        []uint64 // of the nodes' journals
	dnsSeqs     []uint64 // of those of their DNS proxies
	incarnation []uint64
	live        []bool // endpoints
	set         []bool // policies
}

// event is the n-th: nodes, namespaces, endpoints, policies, then the churn.
func (g *generator) event(n int) *eventpb.Event {
	switch created := n; {
	case created < g.Nodes:
		return g.join(created)
	case created < g.Nodes+g.Namespaces:
		return g.namespace(created-g.Nodes, 0)
	case created < g.Nodes+g.Namespaces+g.Endpoints:
		i := created - g.Nodes - g.Namespaces
		return g.endpoint(i, i%g.Apps)
	case created < g.Nodes+g.Namespaces+g.Endpoints+g.Policies:
		return g.policy(created - g.Nodes - g.Namespaces - g.Endpoints)
	}
	i := g.rand.IntN(g.Endpoints)
	switch k := g.rand.IntN(1000); {
	case g.Names > 0:
		return g.whole(n, i, k)
	case k == 0:
		return g.namespace(g.rand.IntN(g.Namespaces), n)
	case k < 500:
		return g.relabel(i, g.rand.IntN(g.Apps))
	case k < 910:
		return g.endpoint(i, g.rand.IntN(g.Apps))
	default:
		return g.policy(g.rand.IntN(g.Policies))
	}
}

func (g *generator) admin(e *eventpb.Event) *eventpb.Event {
	e.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_ADMIN, Name: "unix:uid=0,gid=0,pid=4711"}
	e.Origin = &eventpb.Origin{Cluster: g.Cluster, Node: Node(0)}
	return e
}

func (g *generator) fact(node int, e *eventpb.Event) *eventpb.Event {
	e.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "node:" + Node(node)}
	e.Origin = &eventpb.Origin{Cluster: g.Cluster, Node: Node(node)}
	g.seqs[node]++
	e.JournalSeq = g.seqs[node]
	return e
}

func (g *generator) namespaceName(i int) string { return fmt.Sprintf("team-%d", i) }

func (g *generator) join(i int) *eventpb.Event {
	return g.fact(i, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{
		Name: Node(i), Addresses: [][]byte{{192, 0, 2, byte(i + 1)}}, EndpointCidrs: []string{fmt.Sprintf("10.%d.0.0/16", i+1)},
	}}})
}

func (g *generator) namespace(i, revision int) *eventpb.Event {
	return g.admin(&eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{
		Name: g.namespaceName(i), Labels: map[string]string{"team": fmt.Sprint(i), "revision": fmt.Sprint(revision % 16)},
	}}})
}

func (g *generator) ref(i int) *eventpb.EndpointRef {
	return &eventpb.EndpointRef{Namespace: g.namespaceName(i % g.Namespaces), Name: fmt.Sprintf("web-%d", i)}
}

// node of an endpoint.
func (g *generator) node(i int) int { return i % g.Nodes }

func (g *generator) labels(app int, version string) map[string]string {
	return map[string]string{"app": fmt.Sprintf("app-%d", app), "tier": "web", "version": version}
}

func (g *generator) endpoint(i, app int) *eventpb.Event {
	g.incarnation[i]++
	g.live[i] = true
	node := g.node(i)
	return g.fact(node, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
		Ref: g.ref(i), Incarnation: g.incarnation[i], Node: Node(node), Labels: g.labels(app, "v1"),
		Addresses:     [][]byte{Address(i, g.Nodes).AsSlice()},
		Mac:           []byte{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)},
		HostInterface: fmt.Sprintf("vv%d", i), ContainerInterface: "eth0", Netns: fmt.Sprintf("/run/netns/web-%d", i),
	}}})
}

func (g *generator) relabel(i, app int) *eventpb.Event {
	return g.fact(g.node(i), &eventpb.Event{Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: &eventpb.EndpointUpdated{
		Ref: g.ref(i), Incarnation: g.incarnation[i], Labels: g.labels(app, "v2"),
	}}})
}

// policy i lets one app in to another on a few ports, within one namespace.
func (g *generator) policy(i int) *eventpb.Event {
	g.set[i] = true
	namespace := g.namespaceName(i % g.Namespaces)
	if g.Names > 0 && i%8 == 7 {
		return g.namesPolicy(i)
	}
	return g.admin(&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: &eventpb.PolicySet{
		Ref: g.policyRef(i),
		Specs: []*eventpb.PolicySpec{{
			Subject:            app(namespace, i%g.Apps),
			DefaultDenyIngress: true,
			Ingress: []*eventpb.Rule{{
				Peers: []*eventpb.Peer{{Peer: &eventpb.Peer_Endpoints{Endpoints: app(namespace, g.rand.IntN(g.Apps))}}},
				Ports: []*eventpb.Port{{Protocol: 6, First: 80, Last: 80}, {Protocol: 6, First: 8000, Last: 8079}},
			}},
		}},
	}}})
}

func (g *generator) policyRef(i int) *eventpb.PolicyRef {
	return &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: g.namespaceName(i % g.Namespaces), Name: fmt.Sprintf("policy-%d", i)}
}

func app(namespace string, app int) *eventpb.Selector {
	return &eventpb.Selector{Requirements: []*eventpb.Requirement{
		{Key: "any:app", Operator: eventpb.Requirement_IN, Values: []string{fmt.Sprintf("app-%d", app)}},
		{Key: "k8s:io.kubernetes.pod.namespace", Operator: eventpb.Requirement_IN, Values: []string{namespace}},
	}}
}
