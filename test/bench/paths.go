package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// A path is one way for packets from namespace a to namespace b of its own.
type path struct {
	name  string // of its namespaces: NAME-n (the node), NAME-a, NAME-b
	label string // as reported
	to    string // b's address
	agent int    // process of the agent, if there is one
	only  string // the one mode in which it differs from another path; empty: all
	setup func(ctx context.Context, pt *path) (func() error, error)
}

const (
	addrA = "10.1.0.1"
	addrB = "10.1.0.2"
)

func (pt *path) node() string { return "vbench-" + pt.name + "-n" }
func (pt *path) a() string    { return "vbench-" + pt.name + "-a" }
func (pt *path) b() string    { return "vbench-" + pt.name + "-b" }

// shell runs a script of ip(8) and its like, with $N, $A and $B for the namespaces.
func (pt *path) shell(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, "bash", "-euc", script)
	cmd.Env = append(cmd.Environ(), "N="+pt.node(), "A="+pt.a(), "B="+pt.b())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", pt.label, err, out.String())
	}
	return nil
}

func (pt *path) namespaces(ctx context.Context) error {
	return pt.shell(ctx, `for n in $N $A $B; do ip netns del $n 2>/dev/null || true; ip netns add $n; ip -n $n link set lo up; done`)
}

func (pt *path) remove() {
	// What is not there need not be removed.
	_ = pt.shell(context.Background(), `for n in $A $B $N; do ip netns del $n 2>/dev/null || true; done`)
}

// routedPod defines pod: a veth pair from a namespace to the node, an address of its own
// and the usual link-local gateway, as Calico and Cilium do.
const routedPod = `
pod() {
  ip -n $N link add $2 type veth peer name eth0 netns $1
  ip -n $N link set $2 up; ip -n $1 link set eth0 up
  ip -n $1 addr add $3/32 dev eth0
  h=$(ip netns exec $N cat /sys/class/net/$2/address); m=$(ip netns exec $1 cat /sys/class/net/eth0/address)
  ip -n $1 neigh replace 169.254.1.1 lladdr $h dev eth0 nud permanent
  ip -n $1 route add 169.254.1.1 dev eth0 scope link
  ip -n $1 route add default via 169.254.1.1 dev eth0
  ip -n $N route add $3/32 dev $2
  ip -n $N neigh replace $3 lladdr $m dev $2 nud permanent
}
`

// routed gives each end such a pair.
const routed = routedPod + `
pod $A va ` + addrA + `; pod $B vb ` + addrB + `
`

const forward = "\nip netns exec $N sysctl -qw net.ipv4.ip_forward=1\n"

func script(text string) func(context.Context, *path) (func() error, error) {
	return func(ctx context.Context, pt *path) (func() error, error) {
		return func() error { return nil }, pt.shell(ctx, text)
	}
}

// firewall loads rules with a command in the node's namespace.
func firewall(tool, rules string, before string) func(context.Context, *path) (func() error, error) {
	return func(ctx context.Context, pt *path) (func() error, error) {
		if err := pt.shell(ctx, routed+forward+before); err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", pt.node()}, strings.Fields(tool)...)...)
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %.2000s", pt.label, err, out)
		}
		return func() error { return nil }, nil
	}
}

// paths in the order of the report. The first is what others are compared with.
func (p *plan) paths() []*path {
	return []*path{
		{name: "veth", label: "veth pair", to: addrB, setup: script(`
ip -n $A link add eth0 type veth peer name eth0 netns $B
for n in $A $B; do ip -n $n link set eth0 up; done
ip -n $A addr add ` + addrA + `/24 dev eth0; ip -n $B addr add ` + addrB + `/24 dev eth0`)},
		{name: "peer", label: "redirect_peer alone", to: addrB, setup: redirectPeer},
		{name: "varve", label: "varve", setup: p.varvePath()},
		{name: "big", label: "varve, BIG TCP", only: "stream", setup: p.varvePath("--enable-ipv4-big-tcp", "--enable-ipv6-big-tcp")},
		{name: "route", label: "IP forwarding", to: addrB, setup: script(routed + forward)},
		{name: "bridge", label: "bridge", to: addrB, setup: script(`
ip -n $N link add br0 type bridge; ip -n $N link set br0 up
pod() { ip -n $N link add $2 type veth peer name eth0 netns $1; ip -n $N link set $2 master br0 up; ip -n $1 link set eth0 up; ip -n $1 addr add $3/24 dev eth0; }
pod $A va ` + addrA + `; pod $B vb ` + addrB)},
		{name: "ipt", label: "iptables, 1,000 services", to: addrB, setup: firewall("iptables-legacy-restore", iptablesRules(services), ipsetScript())},
		{name: "nft", label: "nftables, 1,000 services", to: addrB, setup: firewall("nft -f -", nftablesRules(services), "")},
	}
}

// services that the peers hold, as a cluster of some size does.
const services = 1000
