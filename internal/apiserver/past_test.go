package apiserver

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

// Every read verb answers of a moment of the past what it answered then.
func TestReadsOfThePast(t *testing.T) {
	k := newKit(t)
	ctx := t.Context()
	type answers struct{ endpoints, endpoint, namespaces, identities, nodes, policies string }
	ask := func(at string) (a answers) {
		t.Helper()
		endpoints, err := k.Endpoints.List(ctx, connect.NewRequest(&varvev1.ListEndpointsRequest{At: at}))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range endpoints.Msg.Endpoints {
			e.State = "" // is known of the present only
		}
		a.endpoints = fmt.Sprint(endpoints.Msg.Endpoints)
		if e, err := k.Endpoints.Get(ctx, connect.NewRequest(&varvev1.GetEndpointRequest{Name: "web", At: at})); err == nil {
			e.Msg.Endpoint.State = ""
			a.endpoint = fmt.Sprint(e.Msg.Endpoint, e.Msg.IdentityLabels)
		} else {
			codeIs(t, err, connect.CodeNotFound)
		}
		namespaces, err := k.Namespaces.List(ctx, connect.NewRequest(&varvev1.ListNamespacesRequest{At: at}))
		if err != nil {
			t.Fatal(err)
		}
		identities, err := k.Identities.List(ctx, connect.NewRequest(&varvev1.ListIdentitiesRequest{At: at}))
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := k.Nodes.List(ctx, connect.NewRequest(&varvev1.ListNodesRequest{At: at}))
		if err != nil {
			t.Fatal(err)
		}
		policies, err := k.Policies.List(ctx, connect.NewRequest(&varvev1.ListPoliciesRequest{At: at}))
		if err != nil {
			t.Fatal(err)
		}
		a.namespaces, a.identities, a.nodes, a.policies = fmt.Sprint(namespaces.Msg.Namespaces), fmt.Sprint(identities.Msg.Identities), fmt.Sprint(nodes.Msg.Nodes), fmt.Sprint(policies.Msg.Policies)
		return a
	}
	var was []answers
	note := func() {
		head, _ := k.log.Head()
		for len(was) <= int(head) {
			was = append(was, answers{})
		}
		was[head] = ask("")
	}
	note()
	k.endpoint(t, "web", "web", "10.1.0.2", 2)
	note()
	k.append(t, namespaceSet("default", "a"))
	note()
	apply := &varvev1.ApplyPolicyRequest{Manifest: `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"p"},"spec":{"endpointSelector":{"matchLabels":{"app":"web"}},"ingress":[{}]}}`}
	if _, err := k.Policies.Apply(ctx, connect.NewRequest(apply)); err != nil {
		t.Fatal(err)
	}
	note()
	k.endpoint(t, "db", "db", "10.1.0.3", 3)
	note()
	for revision := len(was) - 1; revision > 0; revision-- {
		if got := ask(fmt.Sprint(revision)); got != was[revision] {
			t.Errorf("revision %d:\n got %+v\nwant %+v", revision, got, was[revision])
		}
	}
	if got := ask("now"); got != was[len(was)-1] {
		t.Errorf("now: %+v", got)
	}
	rows, err := k.Datapath.Dump(ctx, connect.NewRequest(&varvev1.DumpRequest{Map: varvev1.Map_MAP_ENDPOINT, At: "3"}))
	if err != nil || len(rows.Msg.Endpoints) != 1 || rows.Msg.Endpoints[0].Endpoint != "default/web" || rows.Msg.At.GetRevision() != 3 {
		t.Errorf("%v, %v", rows, err)
	}
	state, err := k.Audit.At(ctx, connect.NewRequest(&varvev1.AuditAtRequest{At: "2"}))
	if err != nil || len(state.Msg.Endpoints) != 1 || len(state.Msg.Policies) != 0 || len(state.Msg.StateDigest) != 32 {
		t.Errorf("%v, %v", state, err)
	}
	tables, err := k.Audit.At(ctx, connect.NewRequest(&varvev1.AuditAtRequest{At: "now", Node: testNode}))
	want := projector{k.log}.Current().Digest()
	if err != nil || string(tables.Msg.TablesDigest) != string(want[:]) || len(tables.Msg.Rows.Endpoints) != 2 {
		t.Errorf("%v, %v", tables, err)
	}

	for at, code := range map[string]connect.Code{"99": connect.CodeOutOfRange, "yesterday": connect.CodeInvalidArgument, "2999-01-01": connect.CodeOutOfRange} {
		_, err := k.Policies.List(ctx, connect.NewRequest(&varvev1.ListPoliciesRequest{At: at}))
		codeIs(t, err, code)
		if !strings.Contains(err.Error(), "at: ") {
			t.Errorf("%s: %v names no field", at, err)
		}
	}
	_, err = k.Datapath.Dump(ctx, connect.NewRequest(&varvev1.DumpRequest{Map: varvev1.Map_MAP_CT, At: "3"}))
	codeIs(t, err, connect.CodeInvalidArgument)
	_, err = k.Audit.At(ctx, connect.NewRequest(&varvev1.AuditAtRequest{At: "now", Node: "nobody"}))
	codeIs(t, err, connect.CodeNotFound)
}

// Which names an endpoint knew, and which of them a rule opened, is told of the past by
// the log, by the time that was asked about.
func TestNamesOfThePast(t *testing.T) {
	k := newKit(t)
	ctx := t.Context()
	k.endpoint(t, "web", "web", "10.1.0.2", 2)
	expires := time.Now().Add(time.Hour).UnixNano()
	k.fact(t, testNode, &eventpb.Event{Payload: &eventpb.Event_DnsObserved{DnsObserved: &eventpb.DnsObserved{
		Node: testNode, Ref: &eventpb.EndpointRef{Namespace: "default", Name: "web"}, Incarnation: 1, Name: "api.example.com.", Chain: []string{"lb.example.net."},
		Addresses: []*eventpb.DnsAddress{{Address: []byte{203, 0, 113, 7}, ExpiresUnixNs: expires}, {Address: []byte{203, 0, 113, 8}, ExpiresUnixNs: expires}},
	}}})
	told, _ := k.log.Head()
	apply := &varvev1.ApplyPolicyRequest{Manifest: `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"p"},"spec":{"endpointSelector":{},"egress":[
		{"toPorts":[{"ports":[{"port":"53"}],"rules":{"dns":[{"matchPattern":"*"}]}}]}, {"toFQDNs":[{"matchPattern":"*.example.com"}]}]}}`}
	if _, err := k.Policies.Apply(ctx, connect.NewRequest(apply)); err != nil {
		t.Fatal(err)
	}
	list := func(req *varvev1.ListNamesRequest) *varvev1.ListNamesResponse {
		t.Helper()
		resp, err := k.FQDN.ListNames(ctx, connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg
	}
	name := func(selected bool, addresses ...string) string {
		n := &varvev1.KnownName{Endpoint: "default/web", Name: "api.example.com.", Chain: []string{"lb.example.net."}, Selected: selected}
		for _, a := range addresses {
			n.Addresses = append(n.Addresses, &varvev1.KnownAddress{Address: a, ExpiresUnixNs: expires, Revision: uint64(told)})
		}
		return fmt.Sprint([]*varvev1.KnownName{n})
	}
	for _, tt := range []struct {
		req  *varvev1.ListNamesRequest
		want string
	}{
		{&varvev1.ListNamesRequest{At: fmt.Sprint(told - 1)}, "[]"},
		{&varvev1.ListNamesRequest{At: fmt.Sprint(told)}, name(false, "203.0.113.7", "203.0.113.8")},
		{&varvev1.ListNamesRequest{At: "now"}, name(true, "203.0.113.7", "203.0.113.8")},
		{&varvev1.ListNamesRequest{At: "now", Endpoint: "web", Pattern: "*.example.com", Address: "203.0.113.8"}, name(true, "203.0.113.8")},
		{&varvev1.ListNamesRequest{At: "now", Pattern: "*.example.net"}, "[]"},
		{&varvev1.ListNamesRequest{At: "now", Address: "203.0.113.9"}, "[]"},
	} {
		got := list(tt.req)
		if fmt.Sprint(got.Names) != tt.want || got.At == nil || got.AskedUnixNs < got.At.TimeUnixNs {
			t.Errorf("%v:\n got %v of %v\nwant %s", tt.req, got.Names, got.At, tt.want)
		}
	}
	state, err := k.Audit.At(ctx, connect.NewRequest(&varvev1.AuditAtRequest{At: "now"}))
	if err != nil || len(state.Msg.Names) != 1 || state.Msg.Names[0].Revision != uint64(told) || len(state.Msg.Names[0].Addresses) != 2 {
		t.Errorf("%v, %v", state, err)
	}

	for want, req := range map[string]*varvev1.ListNamesRequest{
		"endpoint default/nobody does not exist;":           {Endpoint: "nobody"},
		"endpoint default/web does not exist at revision 0": {Endpoint: "web", At: "0"},
		"there is no DNS proxy here":                        {Endpoint: "web"},
		"pattern: ":                                         {Pattern: "[", At: "now"},
		`address: "x"; give one such as 203.0.113.7`:        {Address: "x", At: "now"},
		"at: \"yesterday\" is no revision and no time":      {At: "yesterday"},
	} {
		if _, err := k.FQDN.ListNames(ctx, connect.NewRequest(req)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", req, err, want)
		}
	}
}
