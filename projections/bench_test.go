package projections

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// generated is a cluster of namespaces with 20 pods each on as many nodes, in
// which every namespace isolates itself, lets tiers talk to the next one, and
// may reach DNS, a database elsewhere and some ranges outside.
func generated(tb testing.TB, namespaces int) facts {
	f := facts{cluster: "default", revision: 1}
	identities := make(map[uint32]*fsm.Identity)
	byLabels := make(map[string]*fsm.Identity)
	var yaml strings.Builder
	for n := range 20 {
		f.nodes = append(f.nodes, &fsm.Node{Name: fmt.Sprintf("node%02d", n), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(n + 1)})}})
	}
	for ns := range namespaces {
		name := fmt.Sprintf("ns%03d", ns)
		for i := range 20 {
			labels := policy.EndpointLabels("default", name, map[string]string{"team": fmt.Sprintf("team%d", ns%7)},
				map[string]string{"tier": []string{"web", "api", "db", "job"}[i%4], "version": fmt.Sprintf("v%d", i%3)}, "")
			id, ok := byLabels[labels.String()]
			if !ok {
				id = &fsm.Identity{ID: uint32(256 + len(byLabels)), Labels: labels}
				byLabels[labels.String()], identities[id.ID] = id, id
			}
			f.endpoints = append(f.endpoints, &fsm.Endpoint{
				Ref: fsm.EndpointRef{Namespace: name, Name: fmt.Sprintf("pod%02d", i)}, ID: uint32(ns*20 + i + 1),
				Node: fmt.Sprintf("node%02d", (ns+i)%20), Identity: id.ID,
				IPv4:       netip.AddrFrom4([4]byte{10, byte(ns >> 8), byte(ns), byte(i)}),
				NamedPorts: []fsm.NamedPort{{Name: "http", Protocol: 6, Port: uint16(8080 + i%2)}},
			})
		}
		fmt.Fprintf(&yaml, `---
apiVersion: cilium.io/v2
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
  - from: [{namespaceSelector: {matchLabels: {team: team%[2]d}}}]
    ports: [{port: 9090}, {port: 30000, endPort: 32767}]
  egress:
  - to: [{podSelector: {}}]
  - to: [{namespaceSelector: {matchLabels: {team: team0}}, podSelector: {matchLabels: {tier: db}}}]
    ports: [{port: 53, protocol: UDP}, {port: 53}]
  - to: [{ipBlock: {cidr: 203.%[3]d.0.0/16, except: [203.%[3]d.7.0/24]}}]
`, name, ns%7, ns%200)
	}
	sets, _, err := policy.Parse("generated", []byte(yaml.String()), policy.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	for i, set := range sets {
		p, err := policy.Compile(set)
		if err != nil {
			tb.Fatal(err)
		}
		f.policies = append(f.policies, &fsm.Policy{Policy: p, Revision: log.Revision(i + 1)})
	}
	f.identity = func(id uint32) (*fsm.Identity, bool) { i, ok := identities[id]; return i, ok }
	return f
}

func BenchmarkBuild(b *testing.B) {
	for _, namespaces := range []int{20, 100, 250} {
		b.Run(fmt.Sprintf("pods=%d", namespaces*20), func(b *testing.B) {
			f := generated(b, namespaces)
			var t *Tables
			for b.Loop() {
				var err error
				if t, err = build(f, "node00", Options{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(t.Endpoints.Len()), "endpoints")
			b.ReportMetric(float64(t.Classes.Len()), "class-rows")
			b.ReportMetric(float64(t.Policy.Len()), "policy-rows")
		})
	}
}

// BenchmarkScopes reports what the choice of a class's scope costs (docs/adr/0004):
// rows of the class map and of the policy map with a scope for each set of
// selectors, for each subject, and one for the node.
func BenchmarkScopes(b *testing.B) {
	f := generated(b, 100)
	var perSet, perSubject, perNode [2]int
	for b.Loop() {
		perSet, perSubject, perNode = scopeCosts(f)
	}
	for name, cost := range map[string][2]int{"set": perSet, "subject": perSubject, "node": perNode} {
		b.ReportMetric(float64(cost[0]), "class-rows/"+name)
		b.ReportMetric(float64(cost[1]), "policy-rows/"+name)
	}
}

func scopeCosts(f facts) (perSet, perSubject, perNode [2]int) {
	bl := &builder{
		env: env{policies: f.policies}, ids: newIDs(f.cluster), node: "node00", names: make(map[uint64]string), namesakes: make(map[uint64]uint32),
		subjects: make(map[string]*subject), tables: make(map[uint64]*table), scopes: make(map[uint64]*scope),
	}
	for _, e := range f.endpoints {
		id, _ := f.identity(e.Identity)
		bl.addEndpoint(e, id)
	}
	bl.divideScopes()
	for _, s := range bl.scopes {
		perSet[0] += len(s.members)
	}
	for _, t := range bl.tables {
		rows := len(t.rows(bl.ids))
		perSet[1] += rows
		perSubject[0] += len(t.scope.members)
		perSubject[1] += rows
	}
	for d, u := range bl.universes {
		whole := &scope{direction: policy.Direction(d), items: make(map[string]item)}
		for _, s := range bl.scopes {
			if s.direction == whole.direction {
				maps.Copy(whole.items, s.items)
			}
		}
		whole.keys = slices.Sorted(maps.Keys(whole.items))
		matches := make(map[string][]match)
		for key, it := range whole.items {
			matches[key] = u.matches(it)
		}
		whole.divide(u, matches, bl.ids)
		perNode[0] += len(whole.members)
		for _, t := range bl.tables {
			if t.scope.direction != whole.direction {
				continue
			}
			wide := *t
			wide.scope = whole
			perNode[1] += len(wide.rows(bl.ids))
		}
	}
	return perSet, perSubject, perNode
}
