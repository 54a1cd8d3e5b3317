package projections

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// cluster is facts in the making: a small language for tests.
type cluster struct {
	t *testing.T
	facts
	identities []*fsm.Identity
	rev        log.Revision
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, facts: facts{cluster: "default"}}
	c.identity = func(id uint32) (*fsm.Identity, bool) {
		i := slices.IndexFunc(c.identities, func(x *fsm.Identity) bool { return x.ID == id })
		if i < 0 {
			return nil, false
		}
		return c.identities[i], true
	}
	return c
}

func (c *cluster) next() log.Revision {
	c.rev++
	c.revision = c.rev
	return c.rev
}

func (c *cluster) addNode(name string, apiServer bool, addrs ...string) {
	n := &fsm.Node{Name: name, KubeAPIServer: apiServer, Revision: c.next()}
	for _, a := range addrs {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	c.nodes = append(c.nodes, n)
}

// addPod makes an endpoint with label app and named ports, e.g. http=80 (TCP).
func (c *cluster) addPod(node, app, ip string, ports ...fsm.NamedPort) *fsm.Endpoint {
	labels := policy.EndpointLabels("default", "default", nil, map[string]string{"app": app}, "")
	i := slices.IndexFunc(c.identities, func(x *fsm.Identity) bool { return x.Labels.Equal(labels) })
	rev := c.next()
	if i < 0 {
		i = len(c.identities)
		c.identities = append(c.identities, &fsm.Identity{ID: uint32(256 + i), Labels: labels, Revision: rev})
	}
	n := len(c.endpoints) + 1
	e := &fsm.Endpoint{
		Ref: fsm.EndpointRef{Namespace: "default", Name: fmt.Sprintf("pod%02d", n)}, ID: uint32(n), Node: node,
		Identity: c.identities[i].ID, NamedPorts: ports, MAC: [6]byte{2, 5: byte(n)},
		Created: rev, Revision: rev, IdentityRevision: rev,
	}
	if a := netip.MustParseAddr(ip); a.Is4() {
		e.IPv4 = a
	} else {
		e.IPv6 = a
	}
	c.endpoints = append(c.endpoints, e)
	return e
}

// apply adds the policies of a YAML text.
func (c *cluster) apply(yaml string) {
	c.t.Helper()
	sets, _, err := policy.Parse("test", []byte(yaml), policy.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, set := range sets {
		p, err := policy.Compile(set)
		if err != nil {
			c.t.Fatal(err)
		}
		c.policies = append(c.policies, &fsm.Policy{Policy: p, Set: set, Revision: c.next()})
	}
}

func (c *cluster) build() *Tables {
	c.t.Helper()
	tables, err := build(c.facts, "one", Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	return tables
}

func ask(t *testing.T, tables *Tables, e *fsm.Endpoint, d abi.Direction, peer uint64, proto uint8, port uint16) Answer {
	t.Helper()
	a, err := tables.Verdict(Question{Endpoint: e.ID, Direction: d, Peer: peer, Protocol: proto, Port: port})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

const webPolicy = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: http, protocol: TCP}]}]
  egress:
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
`

func TestAnEmptyClusterHasOnlyTheWorld(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false)
	tables := c.build()
	if tables.Endpoints.Len() != 0 || tables.Classes.Len() != 0 || tables.Policy.Len() != 0 || tables.IPCache.Len() != 2 {
		t.Errorf("%d endpoints, %d classes, %d policy rows, %d ipcache rows",
			tables.Endpoints.Len(), tables.Classes.Len(), tables.Policy.Len(), tables.IPCache.Len())
	}
	if got := tables.PeerOf(netip.MustParseAddr("8.8.8.8")); got != baseWorldIPv4 {
		t.Errorf("8.8.8.8 is peer %d", got)
	}
	if got := tables.PeerOf(netip.MustParseAddr("2606::1")); got != baseWorldIPv6 {
		t.Errorf("2606::1 is peer %d", got)
	}
}

func TestWithoutPolicyAnEndpointRefersToNothing(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false)
	e := c.addPod("one", "web", "10.0.0.2")
	tables := c.build()
	row, ok := tables.Endpoints.Get(EndpointKey{e.ID})
	want := abi.EndpointValue{ID: e.ID, Identity: 256, IPv4: [4]byte{10, 0, 0, 2}, MAC: e.MAC}
	if !ok || row.Value != want {
		t.Fatalf("row %+v, want %+v", row, want)
	}
	if a := ask(t, tables, e, abi.Ingress, baseWorldIPv4, 6, 80); a.Verdict != abi.VerdictAllow || !a.Default {
		t.Errorf("answer %+v", a)
	}
}

func TestBuildErrors(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false)
	c.nodes = append(c.nodes, &fsm.Node{Name: "gone", Left: true})
	for _, name := range []string{"two", "gone"} {
		if _, err := build(c.facts, name, Options{}); !errors.Is(err, ErrUnknownNode) {
			t.Errorf("node %s: error %v, want ErrUnknownNode", name, err)
		}
	}
	c.addPod("one", "web", "10.0.0.2").Identity = 999
	if _, err := build(c.facts, "one", Options{}); !errors.Is(err, ErrUnknownIdentity) {
		t.Errorf("error %v, want ErrUnknownIdentity", err)
	}
	if _, err := (&Tables{}).Verdict(Question{Endpoint: 5}); !errors.Is(err, ErrUnknownEndpoint) {
		t.Errorf("error %v, want ErrUnknownEndpoint", err)
	}
}

func TestIPCacheOwners(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", true, "192.168.0.1")
	c.addNode("two", false, "192.168.0.2", "fd00::2")
	c.addNode("three", true, "192.168.0.3")
	c.nodes = append(c.nodes, &fsm.Node{Name: "gone", Left: true, Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.4")}})
	c.addPod("one", "web", "10.0.0.2")
	c.addPod("two", "web", "10.0.0.3", fsm.NamedPort{Name: "http", Protocol: 6, Port: 80})
	c.apply(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: wide}
spec:
  endpointSelector: {}
  egress: [{toCIDR: [10.0.0.2/32, 192.168.0.0/16, 192.168.0.2/32, "::/0"]}]
`)
	tables := c.build()
	number := func(cidr string) uint64 { return newIDs("default").cidrPeer(netip.MustParsePrefix(cidr)) }
	for addr, want := range map[string]uint64{
		"10.0.0.2":    256,
		"192.168.0.1": uint64(abi.IdentityHost),
		"192.168.0.2": uint64(abi.IdentityRemoteNode),
		"fd00::2":     uint64(abi.IdentityRemoteNode),
		"192.168.0.3": uint64(abi.IdentityKubeAPIServer),
		"192.168.0.4": number("192.168.0.0/16"),
		"10.0.0.4":    baseWorldIPv4, // not ::/0, though that holds ::ffff:10.0.0.4
		"2606::1":     number("::/0"),
	} {
		if got := tables.PeerOf(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is peer %#x, want %#x", addr, got, want)
		}
	}
	if got := tables.PeerOf(netip.MustParseAddr("10.0.0.3")); uint32(got) != 256 || got>>32 == 0 || got&abi.PeerCIDR != 0 {
		t.Errorf("a pod with named ports is peer %#x, want identity 256 below a hash of 31 bits", got)
	}
}

func TestCauseNamesRulesAndEvents(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false)
	web := c.addPod("one", "web", "10.0.0.2", fsm.NamedPort{Name: "http", Protocol: 6, Port: 8080})
	client := c.addPod("one", "client", "10.0.0.3")
	c.apply(webPolicy)
	tables := c.build()
	rev := c.policies[0].Revision
	ref := RuleRef{Policy: c.policies[0].Policy.Ref, Section: policy.SectionIngress}

	a := ask(t, tables, web, abi.Ingress, tables.PeerOf(client.IPv4), 6, 8080)
	if a.Row == nil {
		t.Fatalf("answer %+v", a)
	}
	if diff := cmp.Diff(Cause{Events: []log.Revision{rev}, Rules: []RuleRef{ref}}, a.Row.Cause); diff != "" {
		t.Errorf("cause of the policy row (-want +got):\n%s", diff)
	}
	if got := ref.String(); got != "cnp/default/web ingress[0]" {
		t.Errorf("rule is called %q", got)
	}
	row, _ := tables.Endpoints.Get(EndpointKey{web.ID})
	class, ok := tables.Classes.Get(abi.ClassKey{Scope: row.Value.Ingress.Scope, Peer: 257})
	if !ok {
		t.Fatal("the client has no class")
	}
	if diff := cmp.Diff(Cause{Events: []log.Revision{client.IdentityRevision, rev}, Rules: []RuleRef{ref}}, tables.ClassCause(class)); diff != "" {
		t.Errorf("cause of the class row (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]log.Revision{web.Created, rev}, row.Cause.Events); diff != "" {
		t.Errorf("events of the endpoint row (-want +got):\n%s", diff)
	}
	a = ask(t, tables, web, abi.Ingress, baseHost, 6, 22)
	if a.Row == nil || len(a.Row.Cause.Rules) != 1 || a.Row.Cause.Rules[0].String() != "allow-localhost" {
		t.Errorf("the host's entry is decided by %+v", a.Row)
	}
	for _, id := range []uint64{row.Value.Ingress.Table, class.Value.Class, tables.PeerOf(netip.MustParseAddr("10.1.2.3"))} {
		if tables.Names[id] == "" {
			t.Errorf("id %#x has no name", id)
		}
	}
}

func TestEqualSubjectsShareATable(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false)
	http := func(port uint16) fsm.NamedPort { return fsm.NamedPort{Name: "http", Protocol: 6, Port: port} }
	a := c.addPod("one", "web", "10.0.0.2", http(80))
	b := c.addPod("one", "web", "10.0.0.3", http(80))
	other := c.addPod("one", "web", "10.0.0.4", http(8080))
	c.apply(webPolicy)
	tables := c.build()
	ref := func(e *fsm.Endpoint) abi.EndpointValue {
		row, _ := tables.Endpoints.Get(EndpointKey{e.ID})
		return row.Value
	}
	if ref(a).Ingress != ref(b).Ingress || ref(a).Egress != ref(other).Egress {
		t.Error("equal subjects have different tables")
	}
	if ref(a).Ingress.Table == ref(other).Ingress.Table {
		t.Error("a named port that is another number has the same table")
	}
	if ref(a).Ingress.Scope != ref(other).Ingress.Scope {
		t.Error("equal selectors have different scopes")
	}
}

func TestTheHostThatServesTheAPIIsThatEntityToo(t *testing.T) {
	for _, serves := range []bool{false, true} {
		c := newCluster(t)
		c.addNode("one", serves, "192.168.0.1")
		e := c.addPod("one", "web", "10.0.0.2")
		c.apply(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api}
spec:
  endpointSelector: {}
  egress: [{toEntities: [kube-apiserver]}]
`)
		tables := c.build()
		a := ask(t, tables, e, abi.Egress, tables.PeerOf(netip.MustParseAddr("192.168.0.1")), 6, 6443)
		if got := a.Verdict == abi.VerdictAllow; got != serves {
			t.Errorf("node serves the API: %v; egress to it allowed: %v", serves, got)
		}
	}
}

func TestLocalhostByPolicy(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false)
	e := c.addPod("one", "web", "10.0.0.2")
	c.apply(webPolicy)
	tables, err := build(c.facts, "one", Options{LocalhostByPolicy: true})
	if err != nil {
		t.Fatal(err)
	}
	if a := ask(t, tables, e, abi.Ingress, baseHost, 6, 80); a.Verdict != abi.VerdictDeny {
		t.Errorf("answer %+v", a)
	}
}

// A class that comes later must be found without a change of the endpoint's row.
func TestEndpointRowDoesNotDependOnPeers(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false)
	web := c.addPod("one", "web", "10.0.0.2", fsm.NamedPort{Name: "http", Protocol: 6, Port: 80})
	c.apply(webPolicy)
	before, _ := c.build().Endpoints.Get(EndpointKey{web.ID})
	client := c.addPod("two", "client", "10.0.9.3")
	tables := c.build()
	after, _ := tables.Endpoints.Get(EndpointKey{web.ID})
	if before.Value != after.Value {
		t.Errorf("row was %+v, is %+v", before.Value, after.Value)
	}
	if a := ask(t, tables, web, abi.Ingress, tables.PeerOf(client.IPv4), 6, 80); a.Verdict != abi.VerdictAllow || a.Default {
		t.Errorf("answer %+v", a)
	}
}

// The same facts give the same tables, whatever order endpoints come in and
// whatever else is on the node.
func TestBuildIsAFunctionOfFacts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		a, err := build(w.facts, "one", Options{})
		if err != nil {
			t.Fatal(err)
		}
		w.facts.endpoints = rapid.Permutation(w.facts.endpoints).Draw(t, "permutation")
		b, err := build(w.facts, "one", Options{})
		if err != nil {
			t.Fatal(err)
		}
		if a.Digest() != b.Digest() {
			t.Fatal("digests differ")
		}
		compareCauses(t, a.Policy.All(), b.Policy)
		compareCauses(t, a.Classes.All(), b.Classes)
		compareCauses(t, a.Reasons.All(), b.Reasons)
		compareCauses(t, a.IPCache.All(), b.IPCache)
		compareCauses(t, a.Endpoints.All(), b.Endpoints)
	})
}

func compareCauses[K, V comparable](t *rapid.T, rows func(func(*Row[K, V]) bool), other Table[K, V]) {
	for r := range rows {
		o, ok := other.Get(r.Key)
		if !ok || o.Value != r.Value {
			t.Fatalf("row %+v became %+v", r, o)
		}
		if diff := cmp.Diff(r.Cause, o.Cause); diff != "" {
			t.Fatalf("cause of %+v (-one +other):\n%s", r.Key, diff)
		}
	}
}
