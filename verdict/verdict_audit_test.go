package verdict_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

const audited = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: trial, annotations: {policy.varve.net/audit-mode: Enabled}}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
  ingressDeny:
  - toPorts: [{ports: [{port: "22", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ssh}
spec:
  endpointSelector: {matchLabels: {app: web}}
  enableDefaultDeny: {ingress: false}
  ingress:
  - fromEndpoints: [{matchLabels: {app: job}}]
    toPorts: [{ports: [{port: "22", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: strict}
spec:
  endpointSelector: {matchExpressions: [{key: app, operator: In, values: [closed, watched]}]}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
  ingressDeny:
  - toPorts: [{ports: [{port: "22", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: trial-too, annotations: {policy.varve.net/audit-mode: Enabled}}
spec:
  endpointSelector: {matchLabels: {app: closed}}
  ingress: [{}]
`

// What audit mode lets pass is told apart from what is allowed, with what would deny
// it; what drops is never laid to a policy in audit mode.
func TestAskAudited(t *testing.T) {
	state := fsm.New("default")
	apply(t, state, eventpb.Role_ROLE_NODE, "n1", &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "n1"}}})
	for i, name := range []string{"web", "client", "job", "closed", "watched"} {
		apply(t, state, eventpb.Role_ROLE_NODE, "n1", &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
			Ref: &eventpb.EndpointRef{Namespace: "default", Name: name}, Incarnation: 1, Node: "n1",
			Labels: map[string]string{"app": name}, Mac: []byte{2, 0, 0, 0, 0, byte(i)},
			Addresses: [][]byte{{10, 0, 0, byte(1 + i)}}, PolicyAuditMode: name == "watched",
		}}})
	}
	sets, _, err := policy.Parse("test", []byte(audited), policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		apply(t, state, eventpb.Role_ROLE_ADMIN, "n1", &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: set}})
	}
	view := state.View()
	for _, c := range []struct {
		from, to, port, ingress string
		audited                 bool
	}{
		{"client", "web", "80/tcp", "allow, rule, cnp/default/trial ingress[0] @7", false},
		{"job", "web", "80/tcp", "audit, default deny, isolated by cnp/default/trial[0] @7", true},
		{"client", "web", "22/tcp", "audit, rule, cnp/default/trial ingressDeny[0] @7", true},
		{"job", "web", "22/tcp", "audit, rule, cnp/default/trial ingressDeny[0] @7", true},
		{"client", "closed", "80/tcp", "allow, rule, cnp/default/strict ingress[0] @9", false},
		{"job", "closed", "80/tcp", "deny, default deny, isolated by cnp/default/strict[0] @9", false},
		{"client", "closed", "22/tcp", "deny, rule, cnp/default/strict ingressDeny[0] @9", false},
		{"client", "watched", "80/tcp", "allow, rule, cnp/default/strict ingress[0] @9", false},
		{"job", "watched", "80/tcp", "audit, default deny, isolated by cnp/default/strict[0] @9", true},
		{"client", "watched", "22/tcp", "audit, rule, cnp/default/strict ingressDeny[0] @9", true},
		{"web", "job", "80/tcp", "allow, not isolated", false},
	} {
		a := ask(t, view, c.from, c.to, c.port)
		if diff := cmp.Diff(c.ingress, text(a.Ingress)); diff != "" || a.Audited() != c.audited {
			t.Errorf("%s to %s, %s: audited %v (-want +got):\n%s", c.from, c.to, c.port, a.Audited(), diff)
		}
	}
}
