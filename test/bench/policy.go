package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/internal/gencluster"
	"github.com/varve-net/varve/projections"
)

// policyCluster is a generated cluster whose tables are in the kernel.
type policyCluster struct {
	name    string
	config  gencluster.Config
	adverse int // selectors of the adversary beside the typical policies
}

var policyClusters = []policyCluster{
	{name: "typical", config: gencluster.Typical()},
	{name: "large namespaces", config: gencluster.Config{Namespaces: 10, Pods: 1000, LocalPods: 110, Nodes: 100}},
	{name: "adversary", config: local(10), adverse: 1000},
}

func local(pods int) gencluster.Config {
	c := gencluster.Typical()
	c.LocalPods = pods
	return c
}

// runPolicy measures how long a change takes from the state to the kernel, what it
// allocates and writes, and the memory that the maps take.
func runPolicy(ctx context.Context, p *plan, out sink) error {
	for i := range policyClusters {
		if err := p.policyCluster(ctx, &policyClusters[i], out); err != nil {
			return fmt.Errorf("%s: %w", policyClusters[i].name, err)
		}
	}
	return nil
}

func (p *plan) policyCluster(ctx context.Context, pc *policyCluster, out sink) error {
	g, err := gencluster.New(pc.config)
	if err != nil {
		return err
	}
	if pc.adverse > 0 {
		if err := g.SetPolicies(gencluster.Adversary(pc.adverse)); err != nil {
			return err
		}
	}
	var n *policyNode
	for range p.rounds {
		if n != nil {
			if err := n.close(); err != nil {
				return err
			}
		}
		if n, err = newPolicyNode(g); err != nil {
			return err
		}
		took, err := n.follow(ctx)
		if err != nil {
			return errors.Join(err, n.close())
		}
		out.add("all tables from the state, ms", pc.name, "projection", ms(took.build))
		out.add("all tables from the state, ms", pc.name, "and into the kernel", ms(took.build+took.sync))
		out.add("all tables from the state, MB allocated", pc.name, "projection", float64(took.bytes)/1e6)
	}
	defer func() { err = errors.Join(err, n.close()) }()
	out.add("rows", pc.name, "classes", float64(n.tables.Classes.Len()))
	out.add("rows", pc.name, "policy", float64(n.tables.Policy.Len()))
	out.add("rows", pc.name, "ipcache", float64(n.tables.IPCache.Len()))
	memory, err := n.memory()
	if err != nil {
		return err
	}
	for _, name := range []string{"classes", "policy", "ipcache", "ipcache_lpm"} {
		out.add("kernel memory, MB", pc.name, name, float64(memory[name])/1e6)
	}
	p.say("policy: %s: %d class rows, %d policy rows", pc.name, n.tables.Classes.Len(), n.tables.Policy.Len())

	namespaces := pc.config.Namespaces
	serial := 0
	for _, change := range []struct {
		name  string
		times int
		make  func() error
	}{
		{"an identity of a known class", 50 * p.rounds, func() error {
			return g.AddPod(serial%namespaces, 100_000+serial, "node01")
		}},
		{"a policy", 10 * p.rounds, func() error {
			return g.SetPolicies(gencluster.OnePolicy(serial%min(namespaces, pc.config.LocalPods), serial%30000))
		}},
		{"a namespace gets another label", 2 * p.rounds, func() error {
			return g.Relabel(1, map[string]string{"team": []string{"team4", "team5"}[serial%2]})
		}},
	} {
		var took []policyRound
		for range change.times {
			serial++
			if err := change.make(); err != nil {
				return err
			}
			one, err := n.follow(ctx)
			if err != nil {
				return err
			}
			took = append(took, one)
		}
		report(out, change.name, pc.name, took)
	}
	return nil
}

// report notes the spread of what a kind of change took.
func report(out sink, change, of string, took []policyRound) {
	total := make([]time.Duration, len(took))
	rows, allocs := 0, uint64(0)
	for i, one := range took {
		total[i] = one.build + one.sync
		rows += one.rows
		allocs += one.allocs
	}
	slices.Sort(total)
	out.add(change+", us to in the kernel", of, "p50", us(total[len(total)/2]))
	out.add(change+", us to in the kernel", of, "p99", us(total[len(total)*99/100]))
	out.add(change+", rows written", of, "mean", float64(rows)/float64(len(took)))
	out.add(change+", allocations", of, "mean", float64(allocs)/float64(len(took)))
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }
func us(d time.Duration) float64 { return d.Seconds() * 1e6 }

// policyNode has its tables in BPF maps of its own.
type policyNode struct {
	cluster    *gencluster.Cluster
	projection *projections.Projection
	objs       *bpf.Objects
	syncer     *dataplane.Syncer
	tables     *projections.Tables
	bind       map[uint32]int
}

func newPolicyNode(g *gencluster.Cluster) (*policyNode, error) {
	objs, err := bpf.LoadUnpinned(map[string]uint32{"ct4": 1024, "ct6": 1024})
	if err != nil {
		return nil, err
	}
	n := &policyNode{
		cluster: g, projection: projections.New(gencluster.Node, projections.Options{}), objs: objs,
		syncer: dataplane.NewSyncer(dataplane.MapsOf(objs)), bind: make(map[uint32]int),
	}
	for e := range g.State.View().Endpoints() {
		if e.Node == gencluster.Node {
			n.bind[e.ID] = int(1000 + e.ID)
		}
	}
	return n, nil
}

func (n *policyNode) close() error { return n.objs.Close() }

// policyRound is what one round of the projection loop took.
type policyRound struct {
	build, sync   time.Duration
	rows          int
	allocs, bytes uint64
}

// follow brings tables and kernel to the newest state.
func (n *policyNode) follow(ctx context.Context) (policyRound, error) {
	view := n.cluster.State.View()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	tables, delta, err := n.projection.Update(view)
	if err != nil {
		return policyRound{}, err
	}
	built := time.Now()
	stats, err := n.syncer.Enforce(ctx, tables, delta, n.bind)
	r := policyRound{build: built.Sub(began), sync: time.Since(built), rows: stats.Total()}
	err = errors.Join(err, n.syncer.Clean()) // the agent tells before it
	runtime.ReadMemStats(&after)
	r.allocs, r.bytes = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	n.tables = tables
	return r, err
}

// memory is what each map takes of the kernel's, in bytes.
func (n *policyNode) memory() (map[string]uint64, error) {
	out := make(map[string]uint64)
	for name, m := range n.objs.Maps() {
		bytes, err := memlock(m)
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		out[name] = bytes
	}
	return out, nil
}

// memlock is the field of that name in a map's fdinfo.
func memlock(m *ebpf.Map) (uint64, error) {
	f, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(m.FD()))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "memlock:"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, errors.Join(errors.New("no memlock in fdinfo"), lines.Err())
}
