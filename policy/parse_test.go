package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

const allowAll = "endpointSelector: {}\ningress: [{fromEntities: [all]}]"

func TestParseManyObjects(t *testing.T) {
	list := "kind: List\napiVersion: v1\nmetadata: {resourceVersion: \"\"}\nitems:\n- " +
		strings.ReplaceAll(np("podSelector: {}"), "\n", "\n  ")
	in := "---\n# a comment only\n---\n" + cnp(allowAll) + "---\n" + ccnp(allowAll) + "---\n" + list
	sets, warnings, err := Parse("f", []byte(in), Options{})
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	var got []string
	for _, s := range sets {
		got = append(got, Ref{s.Ref.Kind, s.Ref.Namespace, s.Ref.Name}.String())
	}
	if diff := cmp.Diff([]string{"cnp/alpha/p", "ccnp/p", "np/alpha/p"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, _, err := Parse("f", []byte(cnp(allowAll)+"---\n"+cnp(allowAll)), Options{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("one policy twice: %v", err)
	}
}

func TestParseSpecAndSpecs(t *testing.T) {
	in := cnp(allowAll) + "specs:\n- endpointSelector: {}\n  egress: [{}]\n"
	sets, _, err := Parse("", []byte(in), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s := sets[0].Specs; len(s) != 2 || len(s[0].Ingress) != 1 || len(s[1].Egress) != 1 {
		t.Errorf("%v", s)
	}
}

func TestParseMetadata(t *testing.T) {
	in := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p",
		"labels":{"a":"b"},"annotations":{"x":"1"},"uid":"u","resourceVersion":"7","generation":3,
		"creationTimestamp":null,"managedFields":[{"manager":"kubectl","time":"2024-01-01T00:00:00Z"}]},
		"spec":{"podSelector":{}},"status":{"conditions":[{"anything":1.5}]}}`
	sets, _, err := Parse("", []byte(in), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if ns := sets[0].Ref.Namespace; ns != "default" {
		t.Errorf("namespace %q", ns)
	}
	for _, bad := range []string{"name: [p]", "name: p, labels: {a: 1}", "name: P", "name: p, namespace: a.b", "name: 7", "name: p, lables: {}"} {
		in := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {" + bad + "}\nspec: {podSelector: {}}"
		if _, _, err := Parse("", []byte(in), Options{}); err == nil {
			t.Errorf("%s: accepted", bad)
		}
	}
}

// Every problem is reported at its line, not the first alone.
func TestParseReportsAll(t *testing.T) {
	in := cnp(`endpointSelector: {matchLabel: {}}
ingress:
- fromEntities: [wurld]
  toPorts:
  - ports: [{port: "99999"}]
- fromCIDR: ["10.0.0.1"]
`) + "---\nkind: Pod\napiVersion: v1\n"
	_, _, err := Parse("f.yaml", []byte(in), Options{})
	var got []string
	for _, e := range FieldErrors(err) {
		got = append(got, fmt.Sprintf("%d/%d %s", e.Document, e.Line, e.Path))
	}
	want := []string{
		"1/5 spec.endpointSelector.matchLabel",
		"1/7 spec.ingress[0].fromEntities[0]",
		"1/9 spec.ingress[0].toPorts[0].ports[0].port",
		"1/10 spec.ingress[1].fromCIDR[0]",
		"2/12 kind",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	first := "f.yaml:5: spec.endpointSelector.matchLabel: unknown field \"matchLabel\", not supported; did you mean matchLabels?"
	if got := FieldErrors(err)[0].Error(); got != first {
		t.Errorf("got  %s\nwant %s", got, first)
	}
}

func TestParseStopsCounting(t *testing.T) {
	in := cnp("endpointSelector: {}\ningress: [{fromEntities: [" + strings.Repeat("x, ", 500) + "]}]")
	_, _, err := Parse("", []byte(in), Options{})
	if n := len(FieldErrors(err)); n != maxErrors+1 {
		t.Errorf("%d errors", n)
	}
}

func TestParseAliases(t *testing.T) {
	in := strings.Replace(cnp("endpointSelector: {matchLabels: {app: *n}}\ningress: [&r {fromEntities: [all]}, *r]"), "name: p", "name: &n p", 1)
	sets, _, err := Parse("", []byte(in), Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := "subject any:app in (p),ns in (alpha)\nisolates ingress\ningress[0] entity:all at all\ningress[1] entity:all at all\n"
	if diff := cmp.Diff(want, dump(t, sets[0])); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestParseBounds(t *testing.T) {
	bomb := "a0: &a0 [x]\n"
	for i := 1; i < 40; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [*a%d,*a%d]\n", i, i, i-1, i-1)
	}
	for name, in := range map[string]string{
		"alias bomb":      bomb,
		"alias in itself": "a: &a [*a, *a]\n",
		"deep":            strings.Repeat("[", 200) + strings.Repeat("]", 200),
		"long":            strings.Repeat(" ", maxInput+1),
		"long key":        strings.Repeat("k", maxKey+1) + ": 1",
		"long manifest":   strings.Replace(cnp(allowAll), "name: p", "name: p, annotations: {a: \""+strings.Repeat("x", maxManifest)+"\"}", 1),
	} {
		if _, _, err := Parse("", []byte(in), Options{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	for in, want := range map[string]string{
		np("podSelector: {}\npolicyTypes: [Ingress]\negress: [{}]"):                                                                                          "f:7: spec.egress: ignored: policyTypes does not name Egress; add Egress to policyTypes, or remove egress",
		np("policyTypes: [Ingress]"):                                                                                                                         "f:5: spec.podSelector: missing: the policy selects every pod of its namespace, as podSelector: {} does; write podSelector: {} if that is meant",
		cnp("endpointSelector: {matchLabels: {\"k8s:io.kubernetes.pod.namespace\": beta}}\ningress: [{}]"):                                                   "f:5: spec.endpointSelector.matchLabels.k8s:io.kubernetes.pod.namespace: the policy selects in its own namespace, alpha, only; remove the namespace, or write a CiliumClusterwideNetworkPolicy",
		cnp("endpointSelector: {}\nenableDefaultDeny: {egress: true}\ningress: [{}]"):                                                                        "f:6: spec.enableDefaultDeny.egress: without a rule of that direction this isolates nothing; write egress: [{}] to deny all",
		cnp("endpointSelector: {}\negress: [{toCIDR: [10.0.0.1/8]}]"):                                                                                        "f:6: spec.egress[0].toCIDR[0]: 10.0.0.1/8 has host bits set and is taken as 10.0.0.0/8; write it so",
		cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: \"90\", endPort: 80}]}]}]"):                                                          "f:6: spec.ingress[0].toPorts[0].ports[0].endPort: below port: the rule is for port 90 alone; write a last port that is not below the first, or remove it",
		cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{matchLabels: {\"container:a\": b}}]}]"):                                                       "f:6: spec.ingress[0].fromEndpoints[0].matchLabels.container:a: no endpoint has labels of source \"container\"; use k8s: or any:, or no source",
		cnp("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: 80}]}]}]"):                                                                           "f:6: spec.ingress[0].toPorts[0].ports[0].port: a number; Kubernetes wants a string; write \"80\"",
		cnp("endpointSelector: {}\negress: [{toCIDR: [], toEntities: [all]}]"):                                                                               "f:6: spec.egress[0].toCIDR: an empty list selects no one, whoever the rule's other list names; remove it, or write out whom it selects",
		cnp("endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: beta}}\ningress: [{}]"):                                                           "f:5: spec.endpointSelector.matchLabels.io.kubernetes.pod.namespace: selects nothing: the policy selects in its own namespace, alpha, only; remove the namespace, or write a CiliumClusterwideNetworkPolicy",
		cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchName: a.io}]}]"):                                                                                "f:1: toFQDNs without rules.dns on port 53: unless another policy has it, no address is learned and nothing is allowed; add an egress rule to the DNS server with rules.dns",
		cnp("endpointSelector: {}\negress: [{toFQDNs: [{matchName: a.io}]}, {toPorts: [{ports: [{port: \"53\"}], rules: {dns: [{matchPattern: \"*\"}]}}]}]"): "",
		cnp("endpointSelector: {}\ndescription: nothing to warn of\nlabels: [{key: a, value: b}]\ningressDeny: [{}]\n"):                                      "",
	} {
		_, warnings, err := Parse("f", []byte(in), Options{})
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		got := ""
		for _, w := range warnings {
			got += w.String()
		}
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// What the log keeps of a manifest reads back to the same policy.
func TestManifest(t *testing.T) {
	in := strings.Replace(cnp(allowAll+"\ndescription: \"<a&b> \\\"q\\\" \\\\ \\t\\n \\u2028 \\x7f \\xa0 \\ufeff \\U0001F600 é\""),
		"name: p", "name: p, generation: 0x10, annotations: {z: \"1\", a: '2'}", 1)
	sets, _, err := Parse("", []byte(in), Options{Cluster: "c"})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"annotations":{"a":"2","z":"1"},"generation":16,"name":"p","namespace":"alpha"},` +
		`"spec":{"description":"<a&b> \"q\" \\ \t\n \u2028 \u007f ` + "\u00a0" + ` \ufeff 😀 é","endpointSelector":{},"ingress":[{"fromEntities":["all"]}]}}`
	if diff := cmp.Diff(want, sets[0].Manifest); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	again, _, err := Parse("", []byte(sets[0].Manifest), Options{Cluster: "c"})
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(sets[0], again[0]) {
		t.Errorf("%v\n%v", sets[0], again[0])
	}
}
