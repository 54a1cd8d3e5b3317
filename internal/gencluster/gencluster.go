// Package gencluster makes clusters of a given size, for benchmarks: the same events
// each time, folded into a State.
package gencluster

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// Node is the node whose tables are of interest.
const Node = "node00"

// Config is the size of a cluster.
type Config struct {
	Namespaces int
	Pods       int // of each namespace; each pod has an identity of its own
	LocalPods  int // of Node; one in each of the first namespaces, and so on
	Nodes      int
}

// Typical is 10,000 identities under 1,000 policies, 110 of them here.
func Typical() Config { return Config{Namespaces: 500, Pods: 20, LocalPods: 110, Nodes: 100} }

// Cluster is a State in the making.
type Cluster struct {
	State *fsm.State
	pods  int
}

var tiers = []string{"web", "api", "db", "job"}

// New makes a cluster in which every namespace has pods of four tiers, isolates
// itself but for its team, lets tiers talk to the next one, and may reach DNS, a
// team's databases and a range outside.
func New(c Config) (*Cluster, error) {
	g := &Cluster{State: fsm.New("default")}
	for n := range c.Nodes {
		err := g.fact(nodeName(n), &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{
			Name: nodeName(n), Addresses: [][]byte{{192, 168, byte(n >> 8), byte(n)}},
		}}})
		if err != nil {
			return nil, err
		}
	}
	local := 0
	for pod := range c.Pods {
		for ns := range c.Namespaces {
			if pod == 0 {
				if err := g.Relabel(ns, map[string]string{"team": team(ns)}); err != nil {
					return nil, err
				}
			}
			node := nodeName(1 + (ns*c.Pods+pod)%(c.Nodes-1))
			if local < c.LocalPods {
				node, local = Node, local+1
			}
			if err := g.AddPod(ns, pod, node); err != nil {
				return nil, err
			}
		}
	}
	for ns := range c.Namespaces {
		if err := g.SetPolicies(policies(ns)); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func nodeName(n int) string  { return fmt.Sprintf("node%02d", n) }
func namespace(n int) string { return fmt.Sprintf("ns%03d", n) }
func team(ns int) string     { return fmt.Sprintf("team%d", ns%7) }

func (g *Cluster) apply(role eventpb.Role, node string, e *eventpb.Event) error {
	e.Actor = &eventpb.Actor{Role: role, Name: "gen"}
	e.Origin = &eventpb.Origin{Cluster: "default", Node: node}
	var err error
	if e.Stream, err = log.StreamOf(e); err != nil {
		return err
	}
	b, err := log.Marshal(e)
	if err != nil {
		return err
	}
	_, r, err := g.State.Apply(b)
	if err == nil && r.Outcome != log.OutcomeApplied {
		err = fmt.Errorf("%s: outcome %d: %s", e.Stream, r.Outcome, r.Reason)
	}
	return err
}

func (g *Cluster) admin(e *eventpb.Event) error {
	return g.apply(eventpb.Role_ROLE_ADMIN, Node, e)
}

func (g *Cluster) fact(node string, e *eventpb.Event) error {
	return g.apply(eventpb.Role_ROLE_NODE, node, e)
}

// Relabel sets the labels of a namespace.
func (g *Cluster) Relabel(ns int, labels map[string]string) error {
	return g.admin(&eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: namespace(ns), Labels: labels}}})
}

// AddPod makes a pod with labels, and so an identity, that no other has. Its tier
// follows from its number.
func (g *Cluster) AddPod(ns, pod int, node string) error {
	g.pods++
	addr := binary.BigEndian.AppendUint32(nil, 10<<24|uint32(g.pods))
	return g.fact(node, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
		Ref:  &eventpb.EndpointRef{Namespace: namespace(ns), Name: fmt.Sprintf("pod%d", pod)},
		Node: node, Incarnation: uint64(g.pods), Addresses: [][]byte{addr}, Mac: []byte{2, 0, addr[0], addr[1], addr[2], addr[3]},
		Labels:     map[string]string{"tier": tiers[pod%len(tiers)], "version": fmt.Sprintf("v%d", pod%3), "pod": fmt.Sprintf("pod%d", pod)},
		NamedPorts: []*eventpb.NamedPort{{Name: "http", Protocol: 6, Port: 8080 + uint32(pod%2)}},
	}}})
}

// SetPolicies applies the policies of a YAML text.
func (g *Cluster) SetPolicies(yaml string) error {
	sets, _, err := policy.Parse("generated", []byte(yaml), policy.Options{})
	if err != nil {
		return err
	}
	for _, set := range sets {
		if err := g.admin(&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: set}}); err != nil {
			return err
		}
	}
	return nil
}

func policies(ns int) string {
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: tiers, namespace: %[1]s}
spec:
  endpointSelector: {matchExpressions: [{key: tier, operator: In, values: [api, db]}]}
  ingress:
  - fromEndpoints: [{matchLabels: {tier: web}}]
    toPorts: [{ports: [{port: http, protocol: TCP}]}]
  - fromEndpoints: [{matchLabels: {tier: api}}]
    toPorts: [{ports: [{port: "5432", protocol: TCP}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: team, namespace: %[1]s}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: %[2]s}}}]
    ports: [{port: 9090}, {port: 30000, endPort: 32767}]
  egress:
  - to: [{podSelector: {}}]
  - to: [{namespaceSelector: {matchLabels: {team: team0}}, podSelector: {matchLabels: {tier: db}}}]
    ports: [{port: 53, protocol: UDP}, {port: 53}]
  - to: [{ipBlock: {cidr: 203.%[3]d.0.0/16, except: [203.%[3]d.7.0/24]}}]
`, namespace(ns), team(ns), ns%200)
}

// OnePolicy is a policy of a namespace that admits two tiers on a port of its own.
func OnePolicy(ns, n int) string {
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: extra, namespace: %s}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {tier: web}}, {matchLabels: {tier: job, version: v1}}]
    toPorts: [{ports: [{port: "%d", protocol: TCP}]}]
`, namespace(ns), 1000+n)
}

// Adversary is policies on every pod: one for each of count selectors, and one
// that admits the whole cluster on 40 ports.
func Adversary(count int) string {
	var b strings.Builder
	for i := range count {
		fmt.Fprintf(&b, `---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: adversary%d}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {pod: pod%d, k8s:io.kubernetes.pod.namespace: %s}}]
    toPorts: [{ports: [{port: "%d", protocol: TCP}]}]
`, i, i/50%20, namespace(i%50), 2000+i)
	}
	b.WriteString(`---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: adversary-cluster}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [cluster]
    toPorts:
`)
	for i := range 40 {
		fmt.Fprintf(&b, "    - {ports: [{port: \"%d\", protocol: TCP}]}\n", 5000+2*i)
	}
	return b.String()
}
