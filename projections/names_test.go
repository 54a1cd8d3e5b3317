package projections

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/bpf/abi"
)

// The seed's example: who may ask which names, and who may reach which answers.
func TestTablesOfNames(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false)
	e := c.addPod("one", "web", "10.0.0.1")
	c.apply(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {app: dns}}]
    toPorts: [{ports: [{port: "53", protocol: ANY}], rules: {dns: [{matchPattern: "*.example.com"}, {matchName: api.io}]}}]
  - toFQDNs: [{matchPattern: "*.example.com"}]
  - toFQDNs: [{matchName: api.io}, {matchName: www.io}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
`)
	c.addPod("one", "dns", "10.0.0.53")
	tables := c.build()
	ep, ok := tables.Endpoints.Get(EndpointKey{e.ID})
	if !ok || ep.Value.Egress.Flags != abi.PolicyEnforced|abi.PolicyFQDN|abi.PolicyAsks || ep.Value.Ingress.Flags != 0 {
		t.Fatalf("endpoint %+v", ep)
	}
	var asked []NameSet
	for q := range tables.Questions.All() {
		asked = append(asked, q.Value)
		if len(q.Cause.Rules) != 1 || q.Cause.Rules[0].Index != 0 {
			t.Errorf("question caused by %v", q.Cause)
		}
		if !slices.ContainsFunc(slices.Collect(tables.Policy.All()), func(r *PolicyRow) bool {
			return r.Value.Row == q.Key.Row && r.Value.Flags == abi.PolicyDNS && r.Value.Verdict == abi.VerdictAllow
		}) {
			t.Errorf("no policy row %#x asks", q.Key.Row)
		}
	}
	if diff := cmp.Diff([]NameSet{"*.example.com.\napi.io."}, slices.Compact(asked)); diff != "" {
		t.Errorf("questions (-want +got):\n%s", diff)
	}
	open := map[NameSet][]abi.PolicyKey{}
	for l := range tables.Learned.All() {
		if l.Key.Table != ep.Value.Egress.Table || !abi.IsOwnClass(l.Key.Class) {
			t.Errorf("learned %+v", l.Key)
		}
		open[l.Value] = nil
		for r := range tables.Policy.All() {
			if r.Key.Class == l.Key.Class {
				open[l.Value] = append(open[l.Value], r.Key)
			}
		}
	}
	if all, web := open["*.example.com."], open["api.io.\nwww.io."]; len(open) != 2 || len(all) != 1 || all[0].Protocol != 0 ||
		len(web) != 1 || web[0].Protocol != 6 || web[0].PortBE != [2]byte{1, 187} {
		t.Errorf("opened %+v", open)
	}
}
