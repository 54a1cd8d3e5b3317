package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/gencluster"
	"github.com/varve-net/varve/projections"
)

const dnsPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: ns%03[1]d}
spec:
  endpointSelector: {matchLabels: {tier: web}}
  egress:
  - toPorts: [{ports: [{port: "53", protocol: UDP}], rules: {dns: [{matchPattern: "*.n%[2]d.io"}]}}]
  - toFQDNs: [{matchPattern: "*.n%[2]d.io"}]
`

// smallCluster has endpoints of gencluster.Node among others.
func smallCluster(t *rapid.T) (g *gencluster.Cluster, change func() error) {
	g, err := gencluster.New(gencluster.Config{Namespaces: 3, Pods: 4, LocalPods: 5, Nodes: 3})
	if err != nil {
		t.Fatal(err)
	}
	pods := 100
	return g, func() error {
		ns := rapid.IntRange(0, 2).Draw(t, "namespace")
		pods++
		switch rapid.IntRange(0, 6).Draw(t, "change") {
		case 0:
			return g.AddPod(ns, pods, rapid.SampledFrom([]string{gencluster.Node, "node01"}).Draw(t, "node"))
		case 1:
			for e := range g.State.View().EndpointsIn(fmt.Sprintf("ns%03d", ns)) {
				return g.RemovePod(e.Ref)
			}
			return nil
		case 2:
			return g.Relabel(ns, map[string]string{"team": fmt.Sprint("team", pods)})
		case 3:
			return g.SetPolicies(gencluster.OnePolicy(ns, pods))
		case 4:
			return g.SetPolicies(fmt.Sprintf(dnsPolicy, ns, rapid.IntRange(0, 2).Draw(t, "name")))
		case 5:
			for p := range g.State.View().Policies() {
				if p.Policy.Ref.Name == "names" {
					return g.DeletePolicy(p.Policy.Ref)
				}
			}
		}
		return nil
	}
}

func TestLocalEndpointsAreFollowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, change := smallCluster(t)
		l := newLocals(gencluster.Node)
		older := g.State.View()
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			for range rapid.IntRange(0, 3).Draw(t, "batch") {
				if err := change(); err != nil {
					t.Fatal(err)
				}
			}
			view := g.State.View()
			if rapid.IntRange(0, 5).Draw(t, "back") == 0 {
				view = older
			}
			var want []*fsm.Endpoint
			for e := range view.Endpoints() {
				if e.Node == gencluster.Node {
					want = append(want, e)
				}
			}
			slices.SortFunc(want, func(a, b *fsm.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
			if got := l.of(view); !slices.Equal(got, want) {
				t.Fatalf("%d local endpoints, want %d: %v, %v", len(got), len(want), got, want)
			}
		}
	})
}

// Rules of names are not made anew where nothing about names changed, and the file is as
// if they had been.
func TestDNSRulesFollowTheTables(t *testing.T) {
	alike := 0
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		g, change := smallCluster(t)
		path := filepath.Join(dir, "rules")
		d := &dnsRules{
			path: path, cluster: "default", node: gencluster.Node, local: newLocals(gencluster.Node),
			proxy: &fakeProxy{rules: path}, logger: slog.New(slog.DiscardHandler),
		}
		p := projections.New(gencluster.Node, projections.Options{})
		failed := fmt.Errorf("the kernel said no")
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			view := g.State.View()
			tables, delta, err := p.Update(view)
			if err != nil {
				t.Fatal(err)
			}
			fails := rapid.IntRange(0, 5).Draw(t, "fails") == 0
			if d.alike(d.local.of(view), &delta) {
				alike++
			}
			err = d.around(context.Background(), view, tables, &delta, func() error {
				if fails {
					return failed
				}
				return nil
			})
			if fails {
				if err != failed { // the very one
					t.Fatalf("the kernel's error became %v", err)
				}
				p.Forget()
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := rulesOf("default", gencluster.Node, d.local.of(view), tables); !sameRules(d.inFile, want) {
				t.Fatalf("rules %+v, want %+v", d.inFile, want)
			}
		}
	})
	if alike == 0 {
		t.Error("all rules were always made anew")
	}
}
