package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/raftlog"
)

// clusterGroup is how many events share a Raft entry when the cluster is written.
const clusterGroup = 64

// localNode is the agent's; the mix has all others.
const localNode = "bench-local"

// localEndpoints are connected here, with a namespace and interfaces each.
const localEndpoints = 110

// runAgent starts an agent over the log of a cluster of 10,000 endpoints elsewhere
// and 110 here, under 2,500 policies.
func runAgent(ctx context.Context, p *plan, out sink) error {
	dir := filepath.Join(p.dir, "agent")
	defer os.RemoveAll(dir)
	if err := writeCluster(ctx, filepath.Join(dir, "state")); err != nil {
		return err
	}
	pt := &path{name: "agent", label: "agent"}
	local := func(script string) error {
		return pt.shell(ctx, fmt.Sprintf("for i in $(seq %d); do n=vbench-agent-$i; %s; done", localEndpoints, script))
	}
	if err := errors.Join(pt.namespaces(ctx), local("ip netns del $n 2>/dev/null || true; ip netns add $n")); err != nil {
		return err
	}
	defer func() {
		pt.remove()
		_ = local("ip netns del $n || true")
		_ = unmount(filepath.Join(dir, "bpf"))
	}()
	if err := p.connect(ctx, dir, pt); err != nil {
		return err
	}
	const of = "10,000 endpoints elsewhere, 110 here, 2,500 policies"
	for round := range p.rounds {
		if err := p.agentRound(ctx, dir, pt, out, of); err != nil {
			return err
		}
		p.say("agent: round %d of %d", round+1, p.rounds)
	}
	return nil
}

// startLocal starts the agent of the cluster.
func (p *plan) startLocal(ctx context.Context, dir string, pt *path) (*agent, error) {
	return p.startAgent(ctx, dir, pt.node(), "--node-name", localNode, "--ipv4-range", "10.200.0.0/24", "--node-ip", "192.0.2.200")
}

// connect adds the endpoints of this node.
func (p *plan) connect(ctx context.Context, dir string, pt *path) error {
	a, err := p.startLocal(ctx, dir, pt)
	if err != nil {
		return err
	}
	defer a.stop()
	c, err := api.New(a.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range localEndpoints {
		_, err := c.Endpoints.Add(ctx, connect.NewRequest(&varvev1.AddEndpointRequest{
			Namespace: fmt.Sprintf("team-%d", i%50), Name: fmt.Sprintf("local-%d", i), Netns: fmt.Sprintf("/run/netns/vbench-agent-%d", i+1),
			Labels: map[string]string{"app": fmt.Sprintf("app-%d", i%40), "tier": "web", "version": "v1"},
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) agentRound(ctx context.Context, dir string, pt *path, out sink, of string) error {
	a, err := p.startLocal(ctx, dir, pt)
	if err != nil {
		return err
	}
	defer a.stop()
	out.add("start to enforcing, s", of, "varve agent", a.took.Seconds())
	s, err := a.status(ctx, true)
	if err != nil {
		return err
	}
	rows := uint64(0)
	for _, t := range s.Tables {
		rows += t.Rows
	}
	for _, d := range s.Differences {
		return fmt.Errorf("kernel differs from the tables: %v", d)
	}
	out.add("rows in the kernel", of, "varve agent", float64(rows))
	for _, key := range []string{"VmRSS", "VmHWM"} {
		kb, err := procStatus(a.cmd.Process.Pid, key)
		if err != nil {
			return err
		}
		out.add(key+", MiB", of, "varve agent", float64(kb)/1024)
	}
	return a.applyPolicies(ctx, out, of)
}

// applyPolicies sets policies of endpoints of this node one after the other, each with
// selectors of its own, and notes how long each takes over the API until it is on disk
// and in force. Then it takes them away.
func (a *agent) applyPolicies(ctx context.Context, out sink, of string) error {
	c, err := api.New(a.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	var took []time.Duration
	for i := range localEndpoints {
		manifest := fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bench-%[1]d, namespace: team-%[2]d}
spec:
  endpointSelector: {matchLabels: {app: app-%[3]d}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: app-%[4]d}}, {matchLabels: {k8s:io.kubernetes.pod.namespace: team-%[5]d, version: v1}}]
    toPorts: [{ports: [{port: "%[6]d", protocol: TCP}]}]
`, i, i%50, i%40, (i+7)%40, (i+3)%50, 1000+i)
		began := time.Now()
		if _, err := c.Policies.Apply(ctx, connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: manifest, Source: "bench"})); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	out.add("a policy over the API, ms until in force", of, "p50", ms(took[len(took)/2]))
	out.add("a policy over the API, ms until in force", of, "p99", ms(took[len(took)*99/100]))
	for i := range localEndpoints {
		ref := &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: fmt.Sprintf("team-%d", i%50), Name: fmt.Sprintf("bench-%d", i)}
		if _, err := c.Policies.Delete(ctx, connect.NewRequest(&varvev1.DeletePolicyRequest{Ref: ref})); err != nil {
			return err
		}
	}
	return nil
}

// procStatus is a figure of /proc/PID/status, in kB.
func procStatus(pid int, key string) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && name == key {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		}
	}
	return 0, fmt.Errorf("process %d: no %s", pid, key)
}

// writeCluster makes the state directory of an agent that knows the cluster.
func writeCluster(ctx context.Context, dir string) (err error) {
	m := mix.Standard(0)
	m.Events = m.Nodes + m.Namespaces + m.Endpoints + m.Policies
	id, err := cluster.LoadOrCreate(dir, m.Cluster, localNode)
	if err != nil {
		return err
	}
	l, err := raftlog.Open(ctx, raftlog.Config{Dir: filepath.Join(dir, "log"), Cluster: m.Cluster, Raft: cluster.RaftConfig(id)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close(ctx)) }()
	var group []*eventpb.Event
	flush := func() error {
		if len(group) == 0 {
			return nil
		}
		results, err := l.Append(ctx, group...)
		for _, r := range results {
			if r.Outcome != log.OutcomeApplied {
				return fmt.Errorf("revision %d: %s", r.Revision, r.Reason)
			}
		}
		group = group[:0]
		return err
	}
	for b, err := range m.All() {
		if err != nil {
			return err
		}
		e, err := log.Unmarshal(b)
		if err != nil {
			return err
		}
		if group = append(group, e); len(group) == clusterGroup {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
