package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/dnsrpc"
)

const (
	// dnsEndpoints are on varve's node, and dnsPatterns in force, while it is measured.
	dnsEndpoints = 100
	dnsPatterns  = 10000
	// dnsKnown is how many names are asked for again and again.
	dnsKnown = 20000
	// addrNode is where forwarders of the node listen.
	addrNode = "10.1.0.53"
)

// dnsOutstanding are the numbers of questions under way.
var dnsOutstanding = []int{1, 100}

const (
	dnsRate     = "queries/s"
	dnsMean     = "mean, us"
	dnsP99      = "p99, us"
	dnsCPU      = "CPU of its processes, us a query"
	dnsCPUWhole = "CPU of the machine, us a query"
	dnsLost     = "lost"
)

// dnsSubject is who answers a client's questions: a path from the client's namespace
// over the node's to the upstream's, and what runs on the node.
type dnsSubject struct {
	*path
	processes []int
	kinds     []dnsKind
}

// dnsKind is the names that a subject is asked for.
type dnsKind struct {
	label  string
	prefix string // of known names; others have one of their own each time
	known  bool
}

// runDNS lets a client ask an upstream in another namespace for names, directly and
// by way of forwarders on the node between.
func runDNS(ctx context.Context, p *plan, out sink) error {
	subjects := p.dnsSubjects()
	for _, s := range subjects {
		defer s.remove()
		if err := s.namespaces(ctx); err != nil {
			return err
		}
		down, err := s.setup(ctx, s.path)
		if err != nil {
			return fmt.Errorf("%s: %w", s.label, err)
		}
		defer down()
	}
	for round := range p.rounds {
		for _, n := range dnsOutstanding {
			for i := range subjects {
				s := subjects[(i+round)%len(subjects)]
				for _, kind := range s.kinds {
					if err := p.measureDNS(ctx, out, s, kind, n, round); err != nil {
						return fmt.Errorf("%s, %d outstanding: %w", kind.label, n, err)
					}
				}
			}
		}
		p.say("dns: round %d of %d", round+1, p.rounds)
	}
	return nil
}

func (p *plan) measureDNS(ctx context.Context, out sink, s *dnsSubject, kind dnsKind, outstanding, round int) error {
	under := []string{"nsenter", "--net=/run/netns/" + s.a()}
	args := []string{"dns-load", "-to", s.to, "-outstanding", strconv.Itoa(outstanding), "-seconds", fmt.Sprint(p.length.Seconds())}
	if kind.known {
		args = append(args, "-prefix", kind.prefix, "-names", strconv.Itoa(dnsKnown))
		// Those whose time is up in between are made known again.
		var l DNSLoad
		prime := []string{"dns-load", "-to", s.to, "-outstanding", "100", "-prefix", kind.prefix, "-names", strconv.Itoa(dnsKnown), "-once"}
		if err := runSelfUnder(ctx, under, &l, prime...); err != nil {
			return err
		}
		if l.Lost > 0 {
			return fmt.Errorf("%d of %d names are not known", l.Lost, dnsKnown)
		}
	} else {
		args = append(args, "-prefix", fmt.Sprintf("%c%d-%d-", newPrefix, round, outstanding))
	}
	// What the subjects before left to do, of which varve's journal is the most, must
	// not be counted here.
	if err := dnsSettle(ctx, s.processes); err != nil {
		return err
	}
	before, err := dnsCPUTime(s.processes)
	if err != nil {
		return err
	}
	var l DNSLoad
	if err := runSelfUnder(ctx, under, &l, args...); err != nil {
		return err
	}
	after, err := dnsCPUTime(s.processes)
	if err != nil {
		return err
	}
	if l.Queries == 0 {
		return errors.New("nothing was answered")
	}
	// What they put off, they have yet to do for these queries.
	if err := dnsSettle(ctx, s.processes); err != nil {
		return err
	}
	settled, err := dnsCPUTime(s.processes)
	if err != nil {
		return err
	}
	of := fmt.Sprintf("%d outstanding", outstanding)
	out.add(dnsRate, of, kind.label, float64(l.Queries)/l.Seconds)
	out.add(dnsMean, of, kind.label, l.MeanMicros)
	out.add(dnsP99, of, kind.label, l.P99Micros)
	if len(s.processes) > 0 {
		out.add(dnsCPU, of, kind.label, (settled.processes-before.processes).Seconds()*1e6/float64(l.All))
	}
	out.add(dnsCPUWhole, of, kind.label, (after.machine-before.machine).Seconds()*1e6/float64(l.All))
	out.add(dnsLost, of, kind.label, float64(l.Lost))
	return nil
}

// dnsTime is CPU time that was used until a moment.
type dnsTime struct {
	processes time.Duration
	machine   time.Duration // by all processes and the kernel
}

// tick is the unit of times in /proc (USER_HZ).
const tick = 10 * time.Millisecond

func dnsCPUTime(processes []int) (t dnsTime, err error) {
	for _, pid := range processes {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return t, err
		}
		// The name in the second field may have spaces; user and system time are the 12th
		// and 13th field behind it.
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) < 13 {
			return t, fmt.Errorf("process %d: %q", pid, b)
		}
		for _, field := range f[11:13] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return t, fmt.Errorf("process %d: %w", pid, err)
			}
			t.processes += time.Duration(n) * tick
		}
	}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line) // cpu user nice system idle iowait irq softirq ...
	if len(f) < 8 {
		return t, fmt.Errorf("/proc/stat: %q", line)
	}
	for i, field := range f[1:8] {
		if i == 3 || i == 4 {
			continue
		}
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return t, fmt.Errorf("/proc/stat: %w", err)
		}
		t.machine += time.Duration(n) * tick
	}
	return t, nil
}

// dnsSettle returns once processes have little to do.
func dnsSettle(ctx context.Context, processes []int) error {
	const pause, little, limit = 200 * time.Millisecond, 20 * time.Millisecond, time.Minute
	for end := time.Now().Add(limit); time.Now().Before(end); {
		before, err := dnsCPUTime(processes)
		if err != nil {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		after, err := dnsCPUTime(processes)
		if err != nil {
			return err
		}
		if after.processes-before.processes <= little {
			return nil
		}
	}
	return fmt.Errorf("processes %d have been busy for %s", processes, limit)
}

// dnsPolicies lets the endpoints ask for the names of all patterns, and reach what
// they are told. A list of names has at most 1,024 in a policy, so there are several.
func dnsPolicies() (manifests []string) {
	const each = 1000
	for first := 0; first < dnsPatterns; first += each {
		var ask, reach strings.Builder
		for i := range each {
			fmt.Fprintf(&ask, "        - matchPattern: '*.%s'\n", dnsDomain(first+i))
			fmt.Fprintf(&reach, "    - matchPattern: '*.%s'\n", dnsDomain(first+i))
		}
		manifests = append(manifests, fmt.Sprintf(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names-%d, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: bench}}
  egress:
  - toEntities: [world]
    toPorts:
    - ports: [{port: "53", protocol: UDP}]
      rules:
        dns:
%s  - toFQDNs:
%s    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
`, first, &ask, &reach))
	}
	return manifests
}

// startDNSAgent is an agent with its proxy, the upstream and the endpoints, of which
// the first is the client.
func (p *plan) startDNSAgent(ctx context.Context, s *dnsSubject) (down func() error, err error) {
	stopUpstream, err := startUpstream(ctx, s.path, routedPod+"pod $B vb "+addrB)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(p.dir, s.name)
	name := func(i int) string {
		if i == 0 {
			return s.a()
		}
		return fmt.Sprintf("%s-%d", s.a(), i)
	}
	others := func(ctx context.Context, script string) error {
		return s.shell(ctx, fmt.Sprintf("for i in $(seq %d); do n=$A-$i; %s; done", dnsEndpoints-1, script))
	}
	var a *agent
	down = func() error {
		errs := []error{stopUpstream()}
		if a != nil {
			errs = append(errs, a.stop())
		}
		_ = others(context.WithoutCancel(ctx), "ip netns del $n || true")
		return errors.Join(append(errs, unmount(filepath.Join(dir, "bpf")))...)
	}
	err = func() error {
		if err := others(ctx, "ip netns del $n 2>/dev/null || true; ip netns add $n"); err != nil {
			return err
		}
		if a, err = p.startAgent(ctx, dir, s.node(), "--dns-proxy", "child", "--dns-socket", filepath.Join(dir, "d"), "--node-ip", addrNode); err != nil {
			return err
		}
		c, err := api.New(a.socket)
		if err != nil {
			return err
		}
		defer c.Close()
		for _, m := range dnsPolicies() {
			if _, err := c.Policies.Apply(ctx, connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: m})); err != nil {
				return err
			}
		}
		for i := range dnsEndpoints {
			_, err := c.Endpoints.Add(ctx, connect.NewRequest(&varvev1.AddEndpointRequest{
				Name: "client-" + strconv.Itoa(i), Labels: map[string]string{"app": "bench"}, Netns: "/run/netns/" + name(i),
			}))
			if err != nil {
				return err
			}
		}
		if err := a.awaitReady(ctx); err != nil {
			return err
		}
		proxy := dnsrpc.NewClient(filepath.Join(dir, "d"))
		defer proxy.Close()
		st, err := proxy.Status(ctx)
		if err != nil {
			return err
		}
		s.processes = []int{a.pid(), st.PID}
		return nil
	}()
	if err != nil {
		return nil, errors.Join(err, down())
	}
	return down, nil
}
