package projections

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
)

// dnsRows is the rows of the egress table of app=web, for everyone and for pods of
// app=dns that name port 53 "dns": "any 53/UDP allow dns(a.io.)".
func dnsRows(t *testing.T, rules string) []string {
	t.Helper()
	c := newCluster(t)
	c.apply("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\nspec:\n  endpointSelector: {}\n" + rules)
	e := env{policies: c.policies}
	labels := policy.EndpointLabels("default", "default", nil, map[string]string{"app": "dns"}, "")
	rs := e.selectRules(policy.Egress, labels, nil, Options{})
	ids := newIDs("default")
	scope := e.newScope(rs, ids)
	table := e.newTable(rs, scope, ids)
	u := e.newUniverse(policy.Egress, []variant{{
		identity: &fsm.Identity{ID: 256, Labels: labels}, number: 256, ports: []fsm.NamedPort{{Name: "dns", Protocol: 17, Port: 53}},
	}}, nil, ids)
	matches := make(map[string][]match)
	for _, key := range scope.keys {
		matches[key] = u.matches(scope.items[key])
	}
	scope.divide(u, matches, ids)
	pod := &class{base: basePod}
	for _, m := range scope.members {
		if u.peers[m.peer].number == 256 {
			pod = m.class
		}
	}
	var out []string
	add := func(who string, decisions []decision) {
		for _, d := range decisions {
			verdict := "allow"
			if d.verdict == abi.VerdictDeny {
				verdict = "deny"
			}
			line := fmt.Sprintf("%s %d/%d/%d %s", who, d.node.protocol, d.node.port, d.node.bits, verdict)
			if d.dns != nil {
				line += " " + d.dns.String()
			}
			out = append(out, line)
		}
	}
	add("any", table.anyRows())
	add("dns", table.classRows(pod))
	return out
}

func TestDNSRows(t *testing.T) {
	const toDNS = "toEndpoints: [{matchLabels: {app: dns}}]"
	const udp53 = `ports: [{port: "53", protocol: UDP}]`
	for _, test := range []struct{ name, rules, want string }{
		{"one rule", `
  egress:
  - ` + toDNS + `
    toPorts: [{` + udp53 + `, rules: {dns: [{matchName: b.io}, {matchName: a.io}]}}]
`, "dns 17/53/16 allow dns(a.io.,b.io.)"},
		{"names of two rules add up", `
  egress:
  - ` + toDNS + `
    toPorts: [{` + udp53 + `, rules: {dns: [{matchName: a.io}]}}]
  - toPorts: [{` + udp53 + `, rules: {dns: [{matchName: b.io}]}}]
`, "any 17/53/16 allow dns(b.io.)\ndns 17/53/16 allow dns(a.io.,b.io.)"},
		{"a plain rule for the port opens every name, and it is still looked at", `
  egress:
  - ` + toDNS + `
    toPorts: [{` + udp53 + `, rules: {dns: [{matchName: a.io}]}}, {` + udp53 + `}]
`, "dns 17/53/16 allow dns(*)"},
		{"a plain rule of everyone opens the names of a narrower one", `
  egress:
  - ` + toDNS + `
    toPorts: [{` + udp53 + `, rules: {dns: [{matchName: a.io}]}}]
  - toPorts: [{` + udp53 + `}]
`, "any 17/53/16 allow\ndns 17/53/16 allow dns(*)"},
		{"a plain rule of a narrower peer opens them for it", `
  egress:
  - ` + toDNS + `
    toPorts: [{` + udp53 + `}]
  - toPorts: [{` + udp53 + `, rules: {dns: [{matchName: a.io}]}}]
`, "any 17/53/16 allow dns(a.io.)\ndns 17/53/16 allow dns(*)"},
		{"a plain rule for more ports opens nothing", `
  egress:
  - ` + toDNS + `
  - toPorts: [{ports: [{port: "53", endPort: 54}, {port: "0", protocol: UDP}]}]
  - ` + toDNS + `
    toPorts: [{` + udp53 + `, rules: {dns: [{matchName: a.io}]}}]
`, "any 6/53/16 allow\nany 17/0/0 allow\nany 132/53/16 allow\nany 6/54/16 allow\nany 132/54/16 allow\ndns 0/0/0 allow\ndns 17/53/16 allow dns(a.io.)"},
		{"a named port", `
  egress:
  - ` + toDNS + `
    toPorts: [{ports: [{port: dns, protocol: UDP}], rules: {dns: [{matchName: a.io}]}}]
`, "dns 17/53/16 allow dns(a.io.)"},
		{"a named port of everyone, and a number", `
  egress:
  - toPorts: [{ports: [{port: dns, protocol: UDP}], rules: {dns: [{matchName: a.io}]}}]
  - toPorts: [{` + udp53 + `, rules: {dns: [{matchName: b.io}]}}]
`, "any 17/53/16 allow dns(b.io.)\ndns 17/53/16 allow dns(a.io.,b.io.)"},
		{"a deny denies", `
  egress:
  - ` + toDNS + `
    toPorts: [{` + udp53 + `, rules: {dns: [{matchName: a.io}]}}]
  egressDeny:
  - ` + toDNS + `
    toPorts: [{ports: [{port: "0", protocol: UDP}]}]
`, "dns 17/0/0 deny"},
		{"names and groups select no one yet", `
  egress:
  - toFQDNs: [{matchName: a.io}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
  - toGroups: [{aws: {securityGroupsIds: [sg-1]}}]
`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			rows := dnsRows(t, test.rules)
			want := strings.Split(test.want, "\n")
			if test.want == "" {
				want = nil
			}
			for _, list := range [][]string{rows, want} {
				slices.Sort(list)
			}
			if diff := cmp.Diff(want, rows); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// A rule without a peer that any address can be still isolates.
func TestNamesAndGroupsIsolate(t *testing.T) {
	for _, peers := range []string{"toFQDNs: [{matchName: a.io}]", "toGroups: [{aws: {securityGroupsIds: [sg-1]}}]"} {
		c := newCluster(t)
		c.addNode("one", false)
		e := c.addPod("one", "web", "10.0.0.1")
		c.apply("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\nspec:\n  endpointSelector: {}\n  egress: [{" + peers + "}]\n")
		a := ask(t, c.build(), e, abi.Egress, baseWorldIPv4, 6, 443)
		if a.Verdict != abi.VerdictDeny || !a.Default {
			t.Errorf("%s: %+v", peers, a)
		}
	}
}

// A change of names alone is a change of the rows.
func TestNamesAreContent(t *testing.T) {
	rows := func(name string) []uint64 {
		c := newCluster(t)
		c.addNode("one", false)
		c.addPod("one", "web", "10.0.0.1")
		c.apply("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\nspec:\n  endpointSelector: {}\n" +
			"  egress: [{toPorts: [{ports: [{port: \"53\", protocol: UDP}], rules: {dns: [{matchName: " + name + "}]}}]}]\n")
		var out []uint64
		for row := range c.build().Policy.All() {
			out = append(out, row.Key.Table, row.Value.Row)
		}
		return out
	}
	a, b := rows("a.io"), rows("b.io")
	if len(a) != 2 || len(b) != 2 || a[0] == b[0] || a[1] == b[1] || !slices.Equal(a, rows("A.io.")) {
		t.Errorf("%x, %x", a, b)
	}
}
