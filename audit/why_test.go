package audit

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

const guard = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: guard, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: http}]}]
  - fromCIDR: [192.0.2.0/24]
    icmps: [{fields: [{type: 8, family: IPv4}]}]`

var guardRef = policy.Ref{Kind: policy.KindCiliumNetworkPolicy, Namespace: "shop", Name: "guard"}

// incident is a short history with a little of everything:
//
//	1 node one joins               6 web relabelled to intruder
//	2 namespace shop is set        7 the policy is deleted
//	3 shop/web with 10.0.0.5       8 web is deleted
//	4 shop/db with 10.0.0.6        9 shop/thief with 10.0.0.5
//	5 the policy guard            10 the policy guard again
func incident(t *testing.T) *memory {
	m := newMemory(t)
	m.must(m.join("one", 1))
	m.must(m.namespace("shop", map[string]string{"env": "prod"}))
	m.must(m.pod("one", "shop", "web", 5, map[string]string{"app": "web"}))
	m.must(m.pod("one", "shop", "db", 6, map[string]string{"app": "db"}, &eventpb.NamedPort{Name: "http", Protocol: 6, Port: 8080}))
	m.apply(guard)
	m.must(m.relabel("shop", "web", map[string]string{"app": "intruder"}))
	m.must(m.delete(guardRef))
	m.must(m.remove("shop", "web"))
	m.must(m.pod("one", "shop", "thief", 5, map[string]string{"app": "web"}))
	m.apply(guard)
	return m
}

func why(t *testing.T, m *memory, from, to, port string, at log.Revision) (*Why, error) {
	t.Helper()
	p, err := ParsePort(port)
	if err != nil {
		t.Fatal(err)
	}
	return (&Auditor{Past: m}).Why(t.Context(), Question{From: from, To: to, Port: p}, at)
}

// text is an answer in a few lines.
func text(w *Why) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: egress %s, ingress %s\n", w.Outcome, w.Answer.Egress.Reason, w.Answer.Ingress.Reason)
	for _, e := range w.Events {
		fmt.Fprintf(&b, "%d %s: %s\n", e.Revision, e.Kind, strings.Join(e.Roles, "; "))
	}
	if w.Flip != nil {
		fmt.Fprintf(&b, "since %d: %s", w.Flip.Revision, w.FlipEvent.Text)
	}
	return b.String()
}

func TestWhy(t *testing.T) {
	m := incident(t)
	for _, c := range []struct {
		name, from, to, port string
		at                   log.Revision
		want                 string
	}{
		{"a rule with a named port", "shop/web", "shop/db", "http", 5, `
allowed: egress not isolated, ingress rule
2 namespace-set: from: namespace shop has its labels; to: namespace shop has its labels
3 endpoint-created: from: endpoint shop/web is created; from: endpoint shop/web gets identity 256; from: identity 256 is allocated
4 endpoint-created: to: endpoint shop/db is created; to: endpoint shop/db gets identity 257; to: identity 257 is allocated
5 policy-set: ingress: rule cnp/shop/guard ingress[0] decides
since 4: creates endpoint shop/db with 10.0.0.6 fd00::6 on node one, labels app=db`},
		{"after the relabel", "shop/web", "shop/db", "8080/tcp", 6, `
denied: egress not isolated, ingress default deny
2 namespace-set: from: namespace shop has its labels; to: namespace shop has its labels
3 endpoint-created: from: endpoint shop/web is created
4 endpoint-created: to: endpoint shop/db is created; to: endpoint shop/db gets identity 257; to: identity 257 is allocated
5 policy-set: ingress: policy cnp/shop/guard isolates shop/db, and no rule admits
6 endpoint-updated: from: last change of endpoint shop/web; from: endpoint shop/web gets identity 258; from: identity 258 is allocated
since 6: changes endpoint shop/web, labels app=intruder`},
		{"after the policy's deletion", "shop/web", "shop/db", "8080", 7, `
allowed: egress not isolated, ingress not isolated
2 namespace-set: from: namespace shop has its labels; to: namespace shop has its labels
3 endpoint-created: from: endpoint shop/web is created
4 endpoint-created: to: endpoint shop/db is created; to: endpoint shop/db gets identity 257; to: identity 257 is allocated
6 endpoint-updated: from: last change of endpoint shop/web; from: endpoint shop/web gets identity 258; from: identity 258 is allocated
since 7: deletes policy cnp/shop/guard`},
		{"an address is whoever has it: first web", "10.0.0.5", "shop/db", "8080", 6, `
denied: egress not isolated, ingress default deny
2 namespace-set: from: namespace shop has its labels; to: namespace shop has its labels
3 endpoint-created: from: endpoint shop/web is created
4 endpoint-created: to: endpoint shop/db is created; to: endpoint shop/db gets identity 257; to: identity 257 is allocated
5 policy-set: ingress: policy cnp/shop/guard isolates shop/db, and no rule admits
6 endpoint-updated: from: last change of endpoint shop/web; from: endpoint shop/web gets identity 258; from: identity 258 is allocated
since 6: changes endpoint shop/web, labels app=intruder`},
		{"then thief, under the policy that was set again", "10.0.0.5", "shop/db", "8080", 10, `
allowed: egress not isolated, ingress rule
2 namespace-set: from: namespace shop has its labels; to: namespace shop has its labels
3 endpoint-created: from: identity 256 is allocated
4 endpoint-created: to: endpoint shop/db is created; to: endpoint shop/db gets identity 257; to: identity 257 is allocated
9 endpoint-created: from: endpoint shop/thief is created; from: endpoint shop/thief gets identity 256
10 policy-set: ingress: rule cnp/shop/guard ingress[0] decides
since 7: deletes policy cnp/shop/guard`},
		{"ICMP from outside", "192.0.2.9", "shop/db", "8/icmp", 10, `
allowed: egress no policy guards it, ingress rule
2 namespace-set: to: namespace shop has its labels
4 endpoint-created: to: endpoint shop/db is created; to: endpoint shop/db gets identity 257; to: identity 257 is allocated
10 policy-set: ingress: rule cnp/shop/guard ingress[1] decides
since 4: creates endpoint shop/db with 10.0.0.6 fd00::6 on node one, labels app=db`},
		{"outside, of another port", "192.0.2.9", "shop/db", "8080", 10, `
denied: egress no policy guards it, ingress default deny
2 namespace-set: to: namespace shop has its labels
4 endpoint-created: to: endpoint shop/db is created; to: endpoint shop/db gets identity 257; to: identity 257 is allocated
10 policy-set: ingress: policy cnp/shop/guard isolates shop/db, and no rule admits
since 10: sets policy cnp/shop/guard: 2 ingress`},
		{"a name", "shop/db", "api.example.com", "443", 10, `
allowed: egress not isolated, ingress no policy guards it
2 namespace-set: from: namespace shop has its labels
4 endpoint-created: from: endpoint shop/db is created; from: endpoint shop/db gets identity 257; from: identity 257 is allocated
since 4: creates endpoint shop/db with 10.0.0.6 fd00::6 on node one, labels app=db`},
		{"the host", "10.0.0.1", "shop/db", "8080", 10, `
allowed: egress no policy guards it, ingress rule
1 node-joined: from: node one has address 10.0.0.1
2 namespace-set: to: namespace shop has its labels
4 endpoint-created: to: endpoint shop/db is created; to: endpoint shop/db gets identity 257; to: identity 257 is allocated
since 4: creates endpoint shop/db with 10.0.0.6 fd00::6 on node one, labels app=db`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := why(t, m, c.from, c.to, c.port, c.at)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimSpace(c.want), strings.TrimSpace(text(w))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Who is gone is named with the moment to ask about instead.
func TestWhyOfWhoIsGone(t *testing.T) {
	m := incident(t)
	_, err := why(t, m, "shop/web", "shop/db", "80", 10)
	absent, ok := errors.AsType[*AbsentError](err)
	if !ok || !errors.Is(err, ErrAbsent) || absent.LastSeen != 7 || absent.Gone.Revision != 8 {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "--at 7") || !strings.Contains(err.Error(), "deletes endpoint shop/web") {
		t.Errorf("%q names neither the moment nor the event", err)
	}
	_, err = why(t, m, "shop/nobody", "shop/db", "80", 10)
	if absent, ok := errors.AsType[*AbsentError](err); !ok || absent.LastSeen != 0 {
		t.Errorf("got %v", err)
	}
	if _, err = why(t, m, "shop/db", "shop/thief", "http", 10); !errors.Is(err, ErrAbsent) {
		t.Errorf("a port that the destination does not have: %v", err)
	}
}

// After a retention, events that are gone are named and not invented.
func TestWhyAfterRetention(t *testing.T) {
	m := incident(t)
	m.first = 5
	w, err := why(t, m, "shop/web", "shop/db", "8080", 6)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range w.Events {
		if e.Kept != (e.Revision > 5) || e.Kept != (e.Text != "") {
			t.Errorf("%+v", e)
		}
	}
	if _, err := why(t, m, "shop/web", "shop/db", "8080", 4); !errors.Is(err, log.ErrCompacted) {
		t.Errorf("before what is kept: %v", err)
	}
	w, err = why(t, m, "shop/db", "shop/db", "8080", 10)
	if err != nil || w.Flip != nil || w.HeldFrom != 5 {
		t.Errorf("%+v, %v: want it unchanged from revision 5 on", w, err)
	}
}

func TestQuestionsThatMakeNoSense(t *testing.T) {
	m := incident(t)
	for _, c := range []struct{ from, to, says string }{
		{"", "shop/db", "from: empty"},
		{"shop/db", "", "to: empty"},
		{"reserved:nonsense", "shop/db", "from"},
		{"www.example.com", "shop/db", "a name opens no connection"},
		{"shop/db", "a..b", "to"},
	} {
		if _, err := why(t, m, c.from, c.to, "80", 5); !errors.Is(err, ErrQuestion) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q to %q: %v", c.from, c.to, err)
		}
	}
	for _, p := range []string{"", "0", "65536", "http/nope", "-", "80/xyz", "http/icmp", "300/icmp"} {
		if got, err := ParsePort(p); !errors.Is(err, ErrQuestion) {
			t.Errorf("port %q: %+v, %v", p, got, err)
		}
	}
	for text, want := range map[string]string{"80": "80/tcp", "53/UDP": "53/udp", "HTTP": "http", "dns/udp": "dns/udp", "8/icmp": "8/icmp", "128/ICMPv6": "128/icmpv6"} {
		if got, err := ParsePort(text); err != nil || got.String() != want {
			t.Errorf("port %q: %q, %v; want %q", text, got, err, want)
		}
	}
}
