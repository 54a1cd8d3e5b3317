package apiserver

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
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
