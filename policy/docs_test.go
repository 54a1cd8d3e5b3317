package policy

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
)

// samples is, for each field of the table in docs/policy.md, a spec that uses it.
var samples = map[string]string{
	"spec.endpointSelector":  "endpointSelector: {matchLabels: {app: web}}\ningress: [{}]",
	"spec.nodeSelector":      "nodeSelector: {}\ningress: [{}]",
	"spec.enableDefaultDeny": "endpointSelector: {}\nenableDefaultDeny: {ingress: false}\ningress: [{}]",
	"spec.description":       "endpointSelector: {}\ndescription: d\ningress: [{}]",
	"spec.labels":            "endpointSelector: {}\nlabels: [{key: k}]\ningress: [{}]",
	"spec.log":               "endpointSelector: {}\nlog: {value: v}\ningress: [{}]",
	"fromEndpoints":          "endpointSelector: {}\ningress: [{fromEndpoints: [{}]}]",
	"toEndpoints":            "endpointSelector: {}\negress: [{toEndpoints: [{}]}]",
	"fromEntities":           "endpointSelector: {}\ningress: [{fromEntities: [world]}]",
	"toEntities":             "endpointSelector: {}\negress: [{toEntities: [world]}]",
	"fromCIDR":               "endpointSelector: {}\ningress: [{fromCIDR: [10.0.0.0/8]}]",
	"toCIDR":                 "endpointSelector: {}\negress: [{toCIDR: [10.0.0.0/8]}]",
	"fromCIDRSet":            "endpointSelector: {}\ningress: [{fromCIDRSet: [{cidr: 10.0.0.0/8}]}]",
	"toCIDRSet":              "endpointSelector: {}\negress: [{toCIDRSet: [{cidr: 10.0.0.0/8}]}]",
	"cidrGroupRef":           "endpointSelector: {}\negress: [{toCIDRSet: [{cidrGroupRef: g}]}]",
	"cidrGroupSelector":      "endpointSelector: {}\negress: [{toCIDRSet: [{cidrGroupSelector: {}}]}]",
	"toFQDNs":                "endpointSelector: {}\negress: [{toFQDNs: [{matchName: a.io}]}]",
	"toGroups":               "endpointSelector: {}\negress: [{toGroups: [{aws: {region: eu}}]}]",
	"fromGroups":             "endpointSelector: {}\ningress: [{fromGroups: [{aws: {region: eu}}]}]",
	"toServices":             "endpointSelector: {}\negress: [{toServices: [{k8sService: {serviceName: s}}]}]",
	"fromNodes":              "endpointSelector: {}\ningress: [{fromNodes: [{}]}]",
	"toNodes":                "endpointSelector: {}\negress: [{toNodes: [{}]}]",
	"fromRequires":           "endpointSelector: {}\ningress: [{fromRequires: [{}]}]",
	"toRequires":             "endpointSelector: {}\negress: [{toRequires: [{}]}]",
	"authentication":         "endpointSelector: {}\ningress: [{authentication: {mode: required}}]",
	"toPorts.ports":          toPorts(""),
	"toPorts.rules.dns":      toPorts(", rules: {dns: [{matchName: a.io}]}"),
	"toPorts.rules.http":     toPorts(", rules: {http: [{method: GET}]}"),
	"toPorts.rules.kafka":    toPorts(", rules: {kafka: [{topic: t}]}"),
	"toPorts.rules.l7":       toPorts(", rules: {l7: [{}]}"),
	"toPorts.rules.l7proto":  toPorts(", rules: {l7proto: x}"),
	"toPorts.listener":       toPorts(", listener: {name: l}"),
	"toPorts.terminatingTLS": toPorts(", terminatingTLS: {}"),
	"toPorts.originatingTLS": toPorts(", originatingTLS: {}"),
	"toPorts.serverNames":    toPorts(", serverNames: [a]"),
	"icmps":                  "endpointSelector: {}\ningress: [{icmps: [{fields: [{type: 8}]}]}]",
	"ingressDeny":            "endpointSelector: {}\ningressDeny: [{}]",
	"egressDeny":             "endpointSelector: {}\negressDeny: [{}]",
}

func toPorts(more string) string {
	return "endpointSelector: {}\negress: [{toPorts: [{ports: [{port: \"53\", protocol: TCP}]" + more + "}]}]"
}

var (
	docsRow   = regexp.MustCompile(`(?m)^\| (.*?) \| (enforced|kept|refused) \| .*\|$`)
	docsField = regexp.MustCompile("`([^`]+)`")
)

// The table of docs/policy.md has every field that a rule or spec can have, and says
// of each what Parse does.
func TestDocsTableOfFields(t *testing.T) {
	doc, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	states := make(map[string]string)
	for _, row := range docsRow.FindAllStringSubmatch(string(doc), -1) {
		for _, field := range docsField.FindAllStringSubmatch(row[1], -1) {
			states[field[1]] = row[2]
		}
	}
	for field, spec := range samples {
		state, ok := states[field]
		if !ok {
			t.Errorf("%s: not in the table", field)
			continue
		}
		in := cnp(spec)
		if field == "spec.nodeSelector" {
			in = ccnp(spec)
		}
		_, _, err := Parse("", []byte(in), Options{})
		if refused := errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrInvalid); refused != (state == "refused") || !refused && err != nil {
			t.Errorf("%s: %s in the table, but Parse says %v", field, state, err)
		}
		for _, e := range FieldErrors(err) {
			if e.Remedy == "" || !strings.Contains(e.Problem, ": ") {
				t.Errorf("%s: refused without reason or remedy: %v", field, e)
			}
		}
	}
	for _, s := range []schema{specSchema, sides[Ingress].allow, sides[Egress].allow, sides[Ingress].deny, sides[Egress].deny, toPortsSchema, l7Schema, cidrSetSchema} {
		known := append([]string(nil), s.fields...)
		for f := range s.unsupported {
			known = append(known, f)
		}
		for _, f := range known {
			found := false
			for field := range states {
				found = found || field == f || strings.HasSuffix(field, "."+f)
			}
			if !found && !strings.Contains(" ingress egress toPorts rules cidr except ", " "+f+" ") {
				t.Errorf("%s: not in the table of docs/policy.md", f)
			}
		}
	}
}
