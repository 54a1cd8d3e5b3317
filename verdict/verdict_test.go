package verdict_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

func apply(t *testing.T, state *fsm.State, role eventpb.Role, node string, e *eventpb.Event) {
	t.Helper()
	e.Actor = &eventpb.Actor{Role: role, Name: "test"}
	e.Origin = &eventpb.Origin{Cluster: "default", Node: node}
	var err error
	if e.Stream, err = log.StreamOf(e); err != nil {
		t.Fatal(err)
	}
	b, err := log.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, r, err := state.Apply(b); err != nil || r.Outcome != log.OutcomeApplied {
		t.Fatalf("%s: %+v, %v", e.Stream, r, err)
	}
}

const manifests = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
specs:
- endpointSelector: {matchLabels: {app: nothing}}
  egress: [{}]
- endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: job}}]
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: http}]}]
  ingressDeny:
  - fromCIDR: [203.0.113.0/24]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: default}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {}}]
  - to: [{ipBlock: {cidr: 198.51.100.0/24}}]
    ports: [{port: 443}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: dns, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: dns}}
  egress:
  - toFQDNs: [{matchPattern: "*.example.com"}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
  - toFQDNs: [{matchName: example.org}]
  - toEndpoints: [{matchLabels: {k8s-app: dns}}]
    toPorts: [{ports: [{port: "53", protocol: UDP}], rules: {dns: [{matchPattern: "*"}]}}]
`

// two is a cluster of two nodes: web and v6 on n1, client and job on n2.
func two(t *testing.T) fsm.View {
	t.Helper()
	return state(t).View()
}

func state(t *testing.T) *fsm.State {
	t.Helper()
	state := fsm.New("default")
	for i, n := range []string{"n1", "n2"} {
		apply(t, state, eventpb.Role_ROLE_NODE, n, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{
			Name: n, Addresses: [][]byte{{192, 0, 2, byte(1 + i)}},
		}}})
	}
	for i, p := range []struct{ node, name string }{{"n1", "web"}, {"n2", "client"}, {"n2", "job"}, {"n1", "v6"}, {"n1", "dns"}} {
		e := &eventpb.EndpointCreated{
			Ref: &eventpb.EndpointRef{Namespace: "default", Name: p.name}, Incarnation: 1, Node: p.node,
			Labels: map[string]string{"app": p.name}, Mac: []byte{2, 0, 0, 0, 0, byte(i)},
			Addresses: [][]byte{{10, 0, 0, byte(1 + i)}},
		}
		switch p.name {
		case "web":
			e.NamedPorts = []*eventpb.NamedPort{{Name: "http", Protocol: 6, Port: 8080}}
		case "v6":
			e.Addresses = [][]byte{netip.MustParseAddr("fd00::4").AsSlice()}
		}
		apply(t, state, eventpb.Role_ROLE_NODE, p.node, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: e}})
	}
	sets, _, err := policy.Parse("test", []byte(manifests), policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		apply(t, state, eventpb.Role_ROLE_ADMIN, "n1", &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: set}})
	}
	return state
}

func ask(t *testing.T, view fsm.View, from, to, port string) *verdict.Answer {
	t.Helper()
	q := verdict.Question{}
	var err error
	if q.From, err = verdict.ParseParty(view, from); err != nil {
		t.Fatal(err)
	}
	if q.To, err = verdict.ParseParty(view, to); err != nil {
		t.Fatal(err)
	}
	if q.Protocol, q.Port, err = verdict.ParsePort(port); err != nil {
		t.Fatal(err)
	}
	a, err := verdict.Ask(view, verdict.Projected(view, projections.Options{}), q)
	if err != nil {
		t.Fatalf("%s to %s, %s: %v", from, to, port, err)
	}
	return a
}

// text is a side in a line.
func text(s verdict.Side) string {
	out := "deny"
	switch {
	case s.Audited && s.Allowed:
		out = "audit"
	case s.Allowed:
		out = "allow"
	}
	out += ", " + string(s.Reason)
	for _, r := range s.Rules {
		out += fmt.Sprintf(", %s @%d", r, r.Revision)
	}
	for _, i := range s.Isolated {
		out += fmt.Sprintf(", isolated by %s[%d] @%d", i.Policy, i.Spec, i.Revision)
	}
	return out
}

func TestAsk(t *testing.T) {
	view := two(t)
	for _, c := range []struct{ from, to, port, egress, ingress string }{
		{
			"client", "web", "8080/tcp",
			"allow, rule, np/default/client egress[0] @9", "allow, rule, cnp/default/web specs[1].ingress[1] @8",
		},
		{
			"default/client", "10.0.0.1", "80/tcp",
			"allow, rule, np/default/client egress[0] @9", "deny, default deny, isolated by cnp/default/web[1] @8",
		},
		{"job", "web", "53/udp", "allow, not isolated", "allow, rule, cnp/default/web specs[1].ingress[0] @8"},
		{"203.0.113.9", "web", "8080/tcp", "allow, no policy guards it", "deny, rule, cnp/default/web specs[1].ingressDeny[0] @8"},
		{"client", "198.51.100.7", "443/tcp", "allow, rule, np/default/client egress[1] @9", "allow, no policy guards it"},
		{"client", "198.51.100.7", "444/tcp", "deny, default deny, isolated by np/default/client[0] @9", "allow, no policy guards it"},
		{"client", "client", "1/tcp", "allow, itself", "allow, itself"},
		// web's own host may always enter; to web the other node is a stranger.
		{"192.0.2.1", "web", "22/tcp", "allow, no policy guards it", "allow, rule, allow-localhost @0"},
		{"192.0.2.2", "web", "22/tcp", "allow, no policy guards it", "deny, default deny, isolated by cnp/default/web[1] @8"},
		{"reserved:health", "web", "22/tcp", "allow, no policy guards it", "deny, default deny, isolated by cnp/default/web[1] @8"},
		{"reserved:ingress", "job", "22/tcp", "allow, no policy guards it", "allow, not isolated"},
		{"job", "Example.COM", "443/tcp", "allow, not isolated", "allow, no policy guards it"},
		{"client", "example.com.", "443/tcp", "deny, default deny, isolated by np/default/client[0] @9", "allow, no policy guards it"},
	} {
		a := ask(t, view, c.from, c.to, c.port)
		if diff := cmp.Diff([]string{c.egress, c.ingress}, []string{text(a.Egress), text(a.Ingress)}); diff != "" {
			t.Errorf("%s to %s, %s (-want +got):\n%s", c.from, c.to, c.port, diff)
		}
		if want := a.Egress.Allowed && a.Ingress.Allowed; a.Allowed() != want || a.Revision != view.Revision() {
			t.Errorf("%s to %s: allowed %v at revision %d", c.from, c.to, a.Allowed(), a.Revision)
		}
	}
	a := ask(t, view, "client", "web", "8080/tcp")
	if a.Ingress.Row == nil || a.Ingress.Table == 0 || !strings.Contains(a.Ingress.ClassName, "app") {
		t.Errorf("ingress %+v does not tell row, table and class", a.Ingress)
	}
	// What selects a name is told apart from what holds for any address.
	for _, c := range []struct {
		from, name, port string
		want             []string
	}{
		{"dns", "API.example.com", "443/tcp", []string{"cnp/default/dns egress[0]"}},
		{"dns", "api.example.com", "80/tcp", nil},
		{"dns", "example.org", "80/tcp", []string{"cnp/default/dns egress[1]"}},
		{"job", "api.example.com", "443/tcp", nil},
		{"198.51.100.7", "api.example.com", "443/tcp", nil},
	} {
		a := ask(t, view, c.from, c.name, c.port)
		if a.Name == nil {
			t.Fatalf("%s: no answer about the name", c.name)
		}
		var got []string
		for _, r := range a.Name.Selected {
			got = append(got, r.String())
			if r.Revision == 0 {
				t.Errorf("%s has no revision", r)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" || a.To.String() != strings.ToLower(c.name) {
			t.Errorf("%s to %s, %s (-want +got):\n%s", c.from, a.To, c.port, diff)
		}
	}
}

func TestAskErrors(t *testing.T) {
	view := two(t)
	tables := verdict.Projected(view, projections.Options{})
	party := func(s string) verdict.Party {
		p, err := verdict.ParseParty(view, s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		q    verdict.Question
		want error
	}{
		{verdict.Question{From: party("job"), To: party("v6"), Protocol: 6, Port: 80}, verdict.ErrFamily},
		{verdict.Question{From: party("job"), To: party("web"), Protocol: policy.ProtoICMPv6, Port: 128}, verdict.ErrFamily},
		{verdict.Question{From: party("10.0.0.3"), To: party("2001:db8::1"), Protocol: 6, Port: 80}, verdict.ErrFamily},
		{verdict.Question{From: party("example.com"), To: party("web"), Protocol: 6, Port: 80}, verdict.ErrParty},
	} {
		if _, err := verdict.Ask(view, tables, c.q); !errors.Is(err, c.want) {
			t.Errorf("%s to %s: error %v, want %v", c.q.From, c.q.To, err, c.want)
		}
	}
	for _, s := range []string{"nobody", "default/nobody", "reserved:moon", "a..b", ".", "a b.c", strings.Repeat("a.", 127) + "a.b"} {
		if p, err := verdict.ParseParty(view, s); !errors.Is(err, verdict.ErrParty) {
			t.Errorf("%q: party %s, error %v", s, p, err)
		}
	}
	for _, s := range []string{"", "80", "tcp", "80/gre", "65536/tcp", "-1/tcp", "256/icmp", "0/tcp"} {
		if proto, port, err := verdict.ParsePort(s); err == nil {
			t.Errorf("%q: port %d of %d", s, port, proto)
		}
	}
}
