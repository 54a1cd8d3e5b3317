package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"connectrpc.com/connect"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// runDatapath sends packets from one namespace to another over each path, both
// ends on one CPU: between CPUs, wakeups would be most of what is measured.
func runDatapath(ctx context.Context, p *plan, out sink) (err error) {
	paths := p.paths()
	for _, pt := range paths {
		defer pt.remove()
		if err := pt.namespaces(ctx); err != nil {
			return err
		}
		down, err := pt.setup(ctx, pt)
		if err != nil {
			return err
		}
		defer down()
	}
	modes := []struct{ mode, metric string }{
		{"rr", "TCP_RR, 1/s"}, {"crr", "TCP_CRR, 1/s"}, {"udp", "UDP_RR, 1/s"}, {"stream", "stream, Gbit/s"},
	}
	for round := range p.rounds {
		for _, m := range modes {
			for i := range paths {
				pt := paths[(i+round)%len(paths)]
				if pt.only != "" && pt.only != m.mode {
					continue
				}
				t, err := p.traffic(ctx, pt, m.mode)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", pt.label, m.mode, err)
				}
				out.add(m.metric, "both ends on one CPU", pt.label, t.PerSecond)
			}
		}
		for _, pt := range paths {
			if pt.agent == 0 || pt.only != "" {
				continue
			}
			if err := p.measureLive(ctx, pt, out); err != nil {
				return fmt.Errorf("%s, live traffic: %w", pt.label, err)
			}
		}
		if err := p.measureRuns(ctx, out); err != nil {
			return err
		}
		p.say("datapath: round %d of %d", round+1, p.rounds)
	}
	return nil
}

// traffic measures one path in one mode.
func (p *plan) traffic(ctx context.Context, pt *path, mode string) (Traffic, error) {
	var t Traffic
	on := func(namespace string) []string {
		return []string{"nsenter", "--net=/run/netns/" + namespace, "taskset", "-c", "0"}
	}
	s, err := startSelfUnder(ctx, on(pt.b()), "traffic", "-serve", "-mode", mode)
	if err != nil {
		return t, err
	}
	defer s.kill()
	return t, runSelfUnder(ctx, on(pt.a()), &t, "traffic", "-mode", mode, "-to", pt.to, "-seconds", fmt.Sprint(p.length.Seconds()))
}

// redirectPeer is the least that a BPF path over veth pairs can do.
func redirectPeer(ctx context.Context, pt *path) (down func() error, err error) {
	if err := pt.shell(ctx, routed); err != nil {
		return nil, err
	}
	var open []interface{ Close() error }
	down = func() error {
		var errs []error
		for _, c := range open {
			errs = append(errs, c.Close())
		}
		return errors.Join(errs...)
	}
	err = inNamespace(pt.node(), func() error {
		a, err := netlink.LinkByName("va")
		if err != nil {
			return err
		}
		b, err := netlink.LinkByName("vb")
		if err != nil {
			return err
		}
		for _, way := range [][2]int{{a.Attrs().Index, b.Attrs().Index}, {b.Attrs().Index, a.Attrs().Index}} {
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R1, int32(way[1])), asm.Mov.Imm(asm.R2, 0), asm.FnRedirectPeer.Call(), asm.Return()},
			})
			if err != nil {
				return err
			}
			open = append(open, prog)
			l, err := link.AttachTCX(link.TCXOptions{Interface: way[0], Program: prog, Attach: ebpf.AttachTCXIngress})
			if err != nil {
				return err
			}
			open = append(open, l)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("redirect_peer: %w", err), down())
	}
	// The container's gateway is the host side's address; redirect_peer does not
	// rewrite, so each end is told the other's.
	return down, pt.shell(ctx, `
a=$(ip netns exec $A cat /sys/class/net/eth0/address); b=$(ip netns exec $B cat /sys/class/net/eth0/address)
ip -n $A neigh replace 169.254.1.1 lladdr $b dev eth0 nud permanent
ip -n $B neigh replace 169.254.1.1 lladdr $a dev eth0 nud permanent`)
}

// inNamespace calls fn in a thread of its own in a named network namespace.
func inNamespace(name string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName(name)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// benchPolicy makes both ends' both directions be judged by policy.
const benchPolicy = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: both-ends, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: bench}}
  ingress: [{fromEndpoints: [{matchLabels: {app: bench}}]}]
  egress: [{toEndpoints: [{matchLabels: {app: bench}}]}]
`

// varvePath is an agent with these flags and two endpoints.
func (p *plan) varvePath(flags ...string) func(context.Context, *path) (func() error, error) {
	return func(ctx context.Context, pt *path) (func() error, error) { return p.startVarvePath(ctx, pt, flags) }
}

func (p *plan) startVarvePath(ctx context.Context, pt *path, flags []string) (func() error, error) {
	dir := filepath.Join(p.dir, pt.name)
	a, err := p.startAgent(ctx, dir, pt.node(), flags...)
	if err != nil {
		return nil, err
	}
	pt.agent = a.pid()
	down := func() error { return errors.Join(a.stop(), unmount(filepath.Join(dir, "bpf"))) }
	err = func() error {
		c, err := api.New(a.socket)
		if err != nil {
			return err
		}
		defer c.Close()
		for name, namespace := range map[string]string{"a": pt.a(), "b": pt.b()} {
			r, err := c.Endpoints.Add(ctx, connect.NewRequest(&varvev1.AddEndpointRequest{
				Name: name, Labels: map[string]string{"app": "bench"}, Netns: "/run/netns/" + namespace,
			}))
			if err != nil {
				return err
			}
			if name == "b" {
				pt.to = r.Msg.Endpoint.Ipv4
			}
		}
		_, err = c.Policies.Apply(ctx, connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: benchPolicy}))
		return err
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("varve: %w", err), down())
	}
	return down, nil
}

// unmount the agent's own bpffs, if it mounted one.
func unmount(dir string) error {
	if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
