package apiserver

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

// Of a policy that needs more rows than the maps take nothing is recorded.
func TestPreflight(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "w", "web", "10.1.0.2", 2)
	k.endpoint(t, "c", "client", "10.1.0.3", 3)
	before := k.log.View().Revision()
	// rows is a policy that makes so many rows: one for each port.
	rows := func(n int) string {
		text := manifest("many", "1000")
		for i := range n - 1 - 1 { // the local host has one as well
			if i%40 == 0 {
				text += "  - fromEndpoints: [{matchLabels: {app: client}}]\n    toPorts:\n    - ports:\n"
			}
			text += fmt.Sprintf("      - {port: \"%d\", protocol: TCP}\n", 1001+2*i)
		}
		return text
	}
	many := rows(122)
	_, err := k.apply(t, many) // the policy map of the kit takes 100 rows
	codeIs(t, err, connect.CodeFailedPrecondition)
	for _, want := range []string{"map policy: 22 rows do not fit", "the map takes 100", "bpf-policy-map-max"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	if after := k.log.View().Revision(); after != before {
		t.Errorf("revision %d after a refusal, want %d", after, before)
	}

	// One that selects nobody here needs none.
	if _, err := k.apply(t, strings.ReplaceAll(many, "app: web", "app: elsewhere")); err != nil {
		t.Error(err)
	}
	check := func() *varvev1.Check {
		resp, err := k.Agent.Status(t.Context(), connect.NewRequest(&varvev1.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range resp.Msg.Checks {
			if c.Name == "maps" {
				return c
			}
		}
		t.Fatal("no check of the maps")
		return nil
	}
	for _, c := range []struct {
		rows    int
		ok      bool
		message string
	}{{82, true, "fullest is policy, 82%"}, {95, false, "map policy is 95% full, 95 of 100 rows"}} {
		if _, err := k.apply(t, rows(c.rows)); err != nil {
			t.Fatal(err)
		}
		if got := check(); got.Ok != c.ok || !strings.Contains(got.Message, c.message) {
			t.Errorf("%d rows: check %v", c.rows, got)
		}
		// A change takes room for the old rows and the new ones.
		_, err := k.apply(t, rows(c.rows-1))
		codeIs(t, err, connect.CodeFailedPrecondition)
		if _, err := k.Policies.Delete(t.Context(), connect.NewRequest(&varvev1.DeletePolicyRequest{Ref: &eventpb.PolicyRef{
			Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: "default", Name: "many",
		}})); err != nil {
			t.Fatal(err)
		}
	}
}
