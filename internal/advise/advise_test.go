package advise

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// state has the endpoints web and client, and the policies of a manifest.
func state(t *testing.T, manifest string) fsm.View {
	t.Helper()
	s := fsm.New("default")
	apply := func(role eventpb.Role, e *eventpb.Event) {
		t.Helper()
		e.Actor = &eventpb.Actor{Role: role, Name: "test"}
		e.Origin = &eventpb.Origin{Cluster: "default", Node: "n"}
		var err error
		if e.Stream, err = log.StreamOf(e); err != nil {
			t.Fatal(err)
		}
		b, err := log.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, r, err := s.Apply(b); err != nil || r.Outcome != log.OutcomeApplied {
			t.Fatalf("%s: %+v, %v", e.Stream, r, err)
		}
	}
	apply(eventpb.Role_ROLE_NODE, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "n"}}})
	for i, name := range []string{"web", "client"} {
		apply(eventpb.Role_ROLE_NODE, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
			Ref: &eventpb.EndpointRef{Namespace: "default", Name: name}, Incarnation: 1, Node: "n", Mac: []byte{2, 0, 0, 0, 0, byte(i)},
			Labels: map[string]string{"app": name}, Addresses: [][]byte{{10, 0, 0, byte(1 + i)}},
		}}})
	}
	for _, set := range parse(t, manifest) {
		apply(eventpb.Role_ROLE_ADMIN, &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: set}})
	}
	return s.View()
}

func parse(t *testing.T, manifest string) []*eventpb.PolicySet {
	t.Helper()
	if manifest == "" {
		return nil
	}
	sets, _, err := policy.Parse("f", []byte(manifest), policy.Options{Cluster: "default"})
	if err != nil {
		t.Fatal(err)
	}
	return sets
}

func cnp(name, spec string) string {
	return fmt.Sprintf("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %s}\nspec: {%s}\n", name, spec)
}

const (
	web        = `endpointSelector: {matchLabels: {app: web}}`
	fromClient = `fromEndpoints: [{matchLabels: {app: client}}]`
	port80     = `toPorts: [{ports: [{port: "80", protocol: TCP}]}]`
	ports70    = `toPorts: [{ports: [{port: "70", endPort: 90, protocol: TCP}]}]`
	udp80      = `toPorts: [{ports: [{port: "80", protocol: UDP}]}]`
)

func TestWarnings(t *testing.T) {
	const shadowed = "spec.ingress[0]: allows nothing: %s ingressDeny[0] denies all of it, and a deny always wins"
	for _, tt := range []struct {
		name, there, given string
		want               []string
	}{
		{name: "nothing to say", given: cnp("p", web+`, ingress: [{`+fromClient+`}]`)},
		{name: "no subject", given: cnp("p", `endpointSelector: {matchLabels: {app: gone}}, ingress: [{}]`),
			want: []string{"spec.endpointSelector: selects no endpoint that is there now"}},
		{name: "no pod", given: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {matchLabels: {app: gone}}}\n",
			want: []string{"spec.podSelector: selects no endpoint that is there now"}},
		{name: "no peer", given: cnp("p", web+`, ingress: [{}, {fromEndpoints: [{matchLabels: {app: client}}, {matchLabels: {app: gone}}]}]`),
			want: []string{"spec.ingress[1]: its selector any:app in (gone),k8s:io.cilium.k8s.policy.cluster in (default),k8s:io.kubernetes.pod.namespace in (default) matches no endpoint that is there now"}},
		{name: "a reserved peer is always there", given: cnp("p", web+`, ingress: [{fromEndpoints: [{matchLabels: {"reserved:host": ""}}]}]`)},
		{name: "denied in the same policy", given: cnp("p", web+`, ingress: [{`+fromClient+`, `+port80+`}], ingressDeny: [{`+fromClient+`, `+ports70+`}]`),
			want: []string{fmt.Sprintf(shadowed, "cnp/default/p")}},
		{name: "denied for everyone by one in force", there: cnp("d", web+`, ingressDeny: [{fromEntities: [all]}]`), given: cnp("p", web+`, ingress: [{`+fromClient+`}]`),
			want: []string{fmt.Sprintf(shadowed, "cnp/default/d")}},
		{name: "the one that denied is replaced", there: cnp("p", web+`, ingressDeny: [{fromEntities: [all]}]`), given: cnp("p", web+`, ingress: [{`+fromClient+`}]`)},
		{name: "denied in part: ports", given: cnp("p", web+`, ingress: [{`+fromClient+`, `+ports70+`}], ingressDeny: [{`+fromClient+`, `+port80+`}]`)},
		{name: "denied in part: protocol", given: cnp("p", web+`, ingress: [{`+fromClient+`, `+udp80+`}], ingressDeny: [{`+fromClient+`, `+ports70+`}]`)},
		{name: "denied in part: peers", given: cnp("p", web+`, ingress: [{}], ingressDeny: [{`+fromClient+`}]`)},
		{name: "denied for others", there: cnp("d", `endpointSelector: {matchLabels: {app: client}}, ingressDeny: [{fromEntities: [all]}]`), given: cnp("p", web+`, ingress: [{`+fromClient+`}]`)},
		{name: "denied the other way", given: cnp("p", web+`, ingress: [{`+fromClient+`}], egressDeny: [{toEntities: [all]}]`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, w := range Warnings(state(t, tt.there), parse(t, tt.given)) {
				if w.Ref.Name != "p" || w.Remedy == "" {
					t.Errorf("%+v", w)
				}
				got = append(got, w.Path+": "+w.Problem)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}
