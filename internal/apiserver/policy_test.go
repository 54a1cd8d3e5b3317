package apiserver

import (
	"fmt"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

func manifest(name, port string) string {
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "%s", protocol: TCP}]}]
`, name, port)
}

func (k *kit) apply(t *testing.T, text string) (*varvev1.ApplyPolicyResponse, error) {
	t.Helper()
	resp, err := k.Policies.Apply(t.Context(), connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: text, Source: "test.yaml"}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func TestApplyPolicy(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "w", "web", "10.1.0.2", 2)
	for i, tt := range []struct {
		text     string
		want     []varvev1.AppliedPolicy_Action
		revision uint64
	}{
		{manifest("a", "80"), []varvev1.AppliedPolicy_Action{varvev1.AppliedPolicy_CREATED}, 3},
		{manifest("a", "80"), []varvev1.AppliedPolicy_Action{varvev1.AppliedPolicy_UNCHANGED}, 3},
		{manifest("a", "81") + "---\n" + manifest("b", "80"), []varvev1.AppliedPolicy_Action{varvev1.AppliedPolicy_CONFIGURED, varvev1.AppliedPolicy_CREATED}, 4},
	} {
		resp, err := k.apply(t, tt.text)
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		var got []varvev1.AppliedPolicy_Action
		for _, p := range resp.Policies {
			got = append(got, p.Action)
		}
		if d := cmp.Diff(tt.want, got); d != "" || resp.Policies[0].Revision != tt.revision {
			t.Errorf("%d: revision %d, %s", i, resp.Policies[0].Revision, d)
		}
	}
	list, err := k.Policies.List(t.Context(), connect.NewRequest(&varvev1.ListPoliciesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Msg.Policies) != 2 || !cmp.Equal(list.Msg.Policies[0].Endpoints, []string{"default/w"}) {
		t.Errorf("%v", list.Msg.Policies)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	k := newKit(t)
	for name, text := range map[string]string{
		"second is wrong": manifest("a", "80") + "---\n" + manifest("b", "99999"),
		"one twice":       manifest("a", "80") + "---\n" + manifest("a", "81"),
		"empty":           "",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := k.apply(t, text)
			codeIs(t, err, connect.CodeInvalidArgument)
		})
	}
	if head, _ := k.log.Head(); head != 1 {
		t.Errorf("head is %d, want 1", head)
	}
}

func TestPolicyErrorsNameFieldAndLine(t *testing.T) {
	k := newKit(t)
	_, err := k.apply(t, manifest("a", "99999"))
	codeIs(t, err, connect.CodeInvalidArgument)
	found := api.PolicyErrors(err)
	if len(found) != 1 || found[0].Path != "spec.ingress[0].toPorts[0].ports[0].port" || found[0].Line != 8 || found[0].Source != "test.yaml" || found[0].Unsupported {
		t.Fatalf("%v", found)
	}
	resp, err := k.Policies.Validate(t.Context(), connect.NewRequest(&varvev1.ValidatePolicyRequest{Manifest: manifest("a", "99999"), Source: "test.yaml"}))
	if err != nil || len(resp.Msg.Errors) != 1 {
		t.Errorf("validate: %v, %v", resp, err)
	}
}

// A warning has its place and its remedy, from Apply as from Validate.
func TestPolicyWarnings(t *testing.T) {
	k := newKit(t)
	text := manifest("a", "80") + "---\n" + manifest("b", "80") + "  - fromCIDR: [10.0.0.1/8]\n"
	checked, err := k.Policies.Validate(t.Context(), connect.NewRequest(&varvev1.ValidatePolicyRequest{Manifest: text, Source: "test.yaml"}))
	if err != nil {
		t.Fatal(err)
	}
	applied, err := k.apply(t, text)
	if err != nil {
		t.Fatal(err)
	}
	want := []*varvev1.PolicyWarning{{
		Source: "test.yaml", Line: 18, Document: 2, Path: "spec.ingress[1].fromCIDR[0]",
		Problem: "10.0.0.1/8 has host bits set and is taken as 10.0.0.0/8", Remedy: "write it so",
	}, {
		Source: "test.yaml", Path: "cnp/default/a spec.endpointSelector",
		Problem: "selects no endpoint that is there now", Remedy: "compare it with `varve endpoint list`, or add the endpoint",
	}}
	for _, got := range [][]*varvev1.PolicyWarning{checked.Msg.Warnings, applied.Warnings} {
		if len(got) != 5 { // of each policy: subject and peer, which nobody is
			t.Fatalf("%d warnings: %v", len(got), got)
		}
		if diff := cmp.Diff(want, got[:2], protocmp.Transform()); diff != "" {
			t.Errorf("warnings (-want +got):\n%s", diff)
		}
	}
	if checked.Msg.Revision == 0 {
		t.Error("the warnings are of no revision")
	}
}

func TestDeletePolicy(t *testing.T) {
	k := newKit(t)
	if _, err := k.apply(t, manifest("a", "80")); err != nil {
		t.Fatal(err)
	}
	ref := &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: "default", Name: "a"}
	if _, err := k.Policies.Delete(t.Context(), connect.NewRequest(&varvev1.DeletePolicyRequest{Ref: ref, RequestId: "d"})); err != nil {
		t.Fatal(err)
	}
	// A retry of the same request is answered as the first was.
	if _, err := k.Policies.Delete(t.Context(), connect.NewRequest(&varvev1.DeletePolicyRequest{Ref: ref, RequestId: "d"})); err != nil {
		t.Fatal(err)
	}
	_, err := k.Policies.Delete(t.Context(), connect.NewRequest(&varvev1.DeletePolicyRequest{Ref: ref}))
	codeIs(t, err, connect.CodeNotFound)
	_, err = k.Policies.Get(t.Context(), connect.NewRequest(&varvev1.GetPolicyRequest{Ref: ref}))
	codeIs(t, err, connect.CodeNotFound)
}
