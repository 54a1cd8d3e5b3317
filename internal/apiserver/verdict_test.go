package apiserver

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

func (k *kit) verdict(t *testing.T, from, to, port string) (*varvev1.VerdictResponse, error) {
	t.Helper()
	resp, err := k.Policies.Verdict(t.Context(), connect.NewRequest(&varvev1.VerdictRequest{From: from, To: to, Port: port}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func TestVerdict(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "w", "web", "10.1.0.2", 2)
	k.endpoint(t, "c", "client", "10.1.0.3", 3)
	if _, err := k.apply(t, manifest("a", "80")); err != nil {
		t.Fatal(err)
	}
	ref := &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: "default", Name: "a"}

	v, err := k.verdict(t, "c", "10.1.0.2", "80/TCP")
	if err != nil {
		t.Fatal(err)
	}
	if !v.Allowed || !v.Egress.Allowed || v.Egress.Reason != "not isolated" || !v.Ingress.Allowed || v.Port != "80/tcp" || v.Revision != 4 {
		t.Errorf("verdict %v", v)
	}
	want := []*varvev1.DecidingRule{{Policy: ref, Section: "ingress", Revision: 4, Text: "cnp/default/a ingress[0]"}}
	if d := cmp.Diff(want, v.Ingress.Rules, protocmp.Transform()); d != "" || v.Ingress.Row == "" || v.Ingress.Table == "" || len(v.Ingress.Events) != 1 {
		t.Errorf("ingress %v: %s", v.Ingress, d)
	}
	if v.To.Name != "10.1.0.2" || v.To.Endpoint != "default/w" || v.To.Node != testNode || v.From.Address != "10.1.0.3" || len(v.From.Labels) == 0 {
		t.Errorf("parties %v and %v", v.From, v.To)
	}

	if v, err = k.verdict(t, "192.0.2.1", "w", "80/tcp"); err != nil {
		t.Fatal(err)
	}
	isolated := []*varvev1.IsolatingSpec{{Policy: ref, Revision: 4}}
	if d := cmp.Diff(isolated, v.Ingress.IsolatedBy, protocmp.Transform()); d != "" || v.Allowed || v.Ingress.Reason != "default deny" {
		t.Errorf("verdict %v: %s", v, d)
	}

	if v, err = k.verdict(t, "w", "example.com", "443/tcp"); err != nil || v.Name.GetName() != "example.com" || !v.Allowed {
		t.Errorf("a name: %v, %v", v, err)
	}
	for _, c := range []struct {
		from, to, port string
		code           connect.Code
	}{
		{"", "w", "80/tcp", connect.CodeInvalidArgument},
		{"c", "nobody", "80/tcp", connect.CodeNotFound},
		{"c", "w", "80", connect.CodeInvalidArgument},
		{"c", "2001:db8::1", "80/tcp", connect.CodeInvalidArgument},
		{"example.com", "w", "80/tcp", connect.CodeInvalidArgument},
	} {
		_, err := k.verdict(t, c.from, c.to, c.port)
		codeIs(t, err, c.code)
	}
}

// What audit mode lets pass says so, as a whole and in its direction.
func TestVerdictAudited(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "w", "web", "10.1.0.2", 2)
	k.endpoint(t, "c", "client", "10.1.0.3", 3)
	text := strings.Replace(manifest("a", "80"), "{name: a}", "{name: a, annotations: {policy.varve.net/audit-mode: Enabled}}", 1)
	if _, err := k.apply(t, text); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		port    string
		audited bool
		reason  string
	}{{"80/tcp", false, "rule"}, {"81/tcp", true, "default deny"}} {
		v, err := k.verdict(t, "c", "w", c.port)
		if err != nil || !v.Allowed || v.Audited != c.audited || v.Egress.Audited || v.Ingress.Audited != c.audited || v.Ingress.Reason != c.reason {
			t.Errorf("port %s: %v, %v", c.port, v, err)
		}
	}
}

// Of an endpoint elsewhere the verdict is that of its own node.
func TestVerdictElsewhere(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "c", "client", "10.1.0.3", 3)
	k.elsewhere(t, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "n2", Addresses: [][]byte{{192, 0, 2, 2}}}}})
	k.elsewhere(t, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
		Ref: &eventpb.EndpointRef{Namespace: "default", Name: "w"}, Incarnation: 1, Node: "n2",
		Labels: map[string]string{"app": "web"}, Addresses: [][]byte{{10, 2, 0, 2}}, Mac: []byte{2, 0, 0, 0, 0, 9},
	}}})
	if _, err := k.apply(t, manifest("a", "80")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from, port string
		allowed    bool
	}{{"c", "80/tcp", true}, {"c", "81/tcp", false}, {"192.0.2.2", "22/tcp", true}} {
		v, err := k.verdict(t, c.from, "w", c.port)
		if err != nil || v.Allowed != c.allowed || v.To.Node != "n2" || len(v.Ingress.Rules)+len(v.Ingress.IsolatedBy) != 1 {
			t.Errorf("from %s, port %s: %v, %v", c.from, c.port, v, err)
		}
	}
}

// Of the past the verdict is the one that was given then, with the rules, rows and
// parties of then.
func TestVerdictOfThePast(t *testing.T) {
	k := newKit(t)
	ctx := t.Context()
	k.endpoint(t, "w", "web", "10.1.0.2", 2)
	k.endpoint(t, "c", "client", "10.1.0.3", 3)
	was := map[uint64]*varvev1.VerdictResponse{}
	note := func() {
		t.Helper()
		v, err := k.verdict(t, "c", "w", "80/tcp")
		if err != nil || v.At != nil {
			t.Fatalf("now: %v, %v", v, err)
		}
		was[v.Revision] = v
	}
	note()
	for _, port := range []string{"80", "81"} {
		if _, err := k.apply(t, manifest("a", port)); err != nil {
			t.Fatal(err)
		}
		note()
	}
	k.node(t, &eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{
		Ref: &eventpb.EndpointRef{Namespace: "default", Name: "c"}, Incarnation: 1,
	}}})
	if _, err := k.verdict(t, "c", "w", "80/tcp"); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("of who is gone: %v", err)
	}
	outcomes := map[bool]int{}
	for revision, want := range was {
		resp, err := k.Policies.Verdict(ctx, connect.NewRequest(&varvev1.VerdictRequest{From: "c", To: "w", Port: "80/tcp", At: fmt.Sprint(revision)}))
		if err != nil {
			t.Fatal(err)
		}
		if resp.Msg.At.GetRevision() != revision || resp.Msg.At.TimeUnixNs == 0 {
			t.Errorf("at %d: the moment is %v", revision, resp.Msg.At)
		}
		resp.Msg.At = nil
		if d := cmp.Diff(want, resp.Msg, protocmp.Transform()); d != "" {
			t.Errorf("at %d (-then +now):\n%s", revision, d)
		}
		outcomes[want.Allowed]++
	}
	if outcomes[true] != 2 || outcomes[false] != 1 {
		t.Errorf("outcomes %v, want 2 allowed and 1 denied", outcomes)
	}
	for at, code := range map[string]connect.Code{"1": connect.CodeNotFound, "99": connect.CodeOutOfRange, "yesterday": connect.CodeInvalidArgument} {
		_, err := k.Policies.Verdict(ctx, connect.NewRequest(&varvev1.VerdictRequest{From: "c", To: "w", Port: "80/tcp", At: at}))
		codeIs(t, err, code)
	}
}
