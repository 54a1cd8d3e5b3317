package projections_test

import (
	"slices"
	"testing"
	"time"

	"github.com/varve-net/varve/internal/gencluster"
	"github.com/varve-net/varve/projections"
)

func generated(b *testing.B, c gencluster.Config) *gencluster.Cluster {
	b.Helper()
	g, err := gencluster.New(c)
	if err != nil {
		b.Fatal(err)
	}
	return g
}

func update(b *testing.B, p *projections.Projection, g *gencluster.Cluster) (*projections.Tables, projections.Delta) {
	b.Helper()
	t, d, err := p.Update(g.State.View())
	if err != nil {
		b.Fatal(err)
	}
	return t, d
}

func reportRows(b *testing.B, t *projections.Tables) {
	b.Helper()
	b.ReportMetric(float64(t.IPCache.Len()), "ipcache-rows")
	b.ReportMetric(float64(t.Classes.Len()), "class-rows")
	b.ReportMetric(float64(t.Policy.Len()), "policy-rows")
}

// each measures Update after each of what prepare does, and reports the spread.
func each(b *testing.B, g *gencluster.Cluster, prepare func(n int) error) {
	b.Helper()
	p := projections.New(gencluster.Node, projections.Options{})
	update(b, p, g)
	var took []time.Duration
	rows, n := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		if err := prepare(n); err != nil {
			b.Fatal(err)
		}
		n++
		b.StartTimer()
		began := time.Now()
		_, d := update(b, p, g)
		took = append(took, time.Since(began))
		if d.From == nil {
			b.Fatal("all was built anew")
		}
		rows += d.Len()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-us")
	b.ReportMetric(float64(rows)/float64(n), "rows")
}

func BenchmarkUpdate(b *testing.B) {
	b.Run("full", func(b *testing.B) {
		g := generated(b, gencluster.Typical())
		b.ReportAllocs()
		var t *projections.Tables
		for b.Loop() {
			t, _ = update(b, projections.New(gencluster.Node, projections.Options{}), g)
		}
		reportRows(b, t)
	})
	b.Run("scratch", func(b *testing.B) {
		g := generated(b, gencluster.Typical())
		b.ReportAllocs()
		for b.Loop() {
			if _, err := projections.Build(g.State.View(), gencluster.Node, projections.Options{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("policy", func(b *testing.B) {
		g := generated(b, gencluster.Typical())
		each(b, g, func(n int) error { return g.SetPolicies(gencluster.OnePolicy(n%110, n%30000)) })
	})
	b.Run("identity", func(b *testing.B) {
		g := generated(b, gencluster.Typical())
		each(b, g, func(n int) error { return g.AddPod(n%500, 1000+n, "node01") })
	})
	b.Run("namespace", func(b *testing.B) {
		c := gencluster.Typical()
		c.Namespaces, c.Pods = 10, 1000
		g := generated(b, c)
		each(b, g, func(n int) error { return g.Relabel(3, map[string]string{"team": []string{"team4", "team5"}[n%2]}) })
	})
}

func BenchmarkAdversary(b *testing.B) {
	adversary := func(b *testing.B) *gencluster.Cluster {
		c := gencluster.Typical()
		c.LocalPods = 10
		g := generated(b, c)
		if err := g.SetPolicies(gencluster.Adversary(1000)); err != nil {
			b.Fatal(err)
		}
		return g
	}
	b.Run("full", func(b *testing.B) {
		g := adversary(b)
		b.ReportAllocs()
		var t *projections.Tables
		for b.Loop() {
			t, _ = update(b, projections.New(gencluster.Node, projections.Options{}), g)
		}
		reportRows(b, t)
	})
	b.Run("identity", func(b *testing.B) {
		g := adversary(b)
		each(b, g, func(n int) error { return g.AddPod(n%500, 1000+n, "node01") })
	})
	b.Run("policy", func(b *testing.B) {
		g := adversary(b)
		each(b, g, func(n int) error { return g.SetPolicies(gencluster.OnePolicy(n%10, n%30000)) })
	})
}
