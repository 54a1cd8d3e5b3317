package dataplane

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
	"github.com/varve-net/varve/projections"
)

const (
	patience = 2 * time.Minute        // for what must come
	silence  = 250 * time.Millisecond // for what must not
)

var gateways = NodeSpec{Gateway4: netip.MustParseAddr("10.77.0.1"), Gateway6: netip.MustParseAddr("fd77::1")}

// world is a node with pods in namespaces of their own.
type world struct {
	t      testing.TB
	node   *testns.NS
	config Config
	*Dataplane
	pods map[string]*pod
	bind map[uint32]int
}

type pod struct {
	name     string
	id       uint32
	identity uint32
	ns       *testns.NS
	spec     InterfaceSpec
}

func newWorld(t testing.TB, sizes map[string]uint32) *world {
	t.Helper()
	w := &world{t: t, node: newNS(t, "node"), pods: make(map[string]*pod), bind: make(map[uint32]int)}
	dir := t.TempDir()
	if _, err := bpf.MountBPFFS(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.check(bpf.UnmountBPFFS(dir)) })
	w.config = Config{
		PinDir: filepath.Join(dir, "varve"), MapSizes: sizes, EnableIPv4: true, EnableIPv6: true, NewFlowEvents: true,
		Netns: w.node.Path(),
	}
	w.open()
	t.Cleanup(func() { w.check(w.Destroy()) })
	w.check(w.SetupNode(context.Background(), gateways))
	w.awaitLocal(gateways.Gateway6)
	return w
}

// awaitLocal waits for the local route to an address of the node, which the kernel adds
// after it has answered who gave it the address.
func (w *world) awaitLocal(a netip.Addr) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		out, err := w.node.Output(context.Background(), "ip", "-6", "route", "show", "table", "local")
		w.check(err)
		if strings.Contains(out, "local "+a.String()+" ") {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no local route to %s:\n%s", a, out)
		}
	}
}

func newNS(t testing.TB, name string) *testns.NS {
	t.Helper()
	n, err := testns.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) open() {
	w.t.Helper()
	d, err := Open(w.config)
	w.check(err)
	w.Dataplane = d
}

// spec makes a pod with an identity of its own, without an interface.
func (w *world) spec(name string) *pod {
	id := uint32(len(w.pods) + 1)
	p := &pod{name: name, id: id, identity: 1000 + id, ns: newNS(w.t, name)}
	p.spec = InterfaceSpec{
		HostName: "vv" + testns.Suffix(), ContainerName: "eth0", NetnsPath: p.ns.Path(), MAC: [6]byte{2, 0, 0, 0, 7, byte(id)},
		IPv4: netip.AddrFrom4([4]byte{10, 77, 1, byte(id)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd77::1:%d", id)),
		Gateway4: gateways.Gateway4, Gateway6: gateways.Gateway6,
	}
	w.pods[name] = p
	return p
}

// add makes pods with interfaces that are not active yet.
func (w *world) add(names ...string) {
	w.t.Helper()
	for _, name := range names {
		p := w.spec(name)
		ifindex, err := w.EnsureInterface(context.Background(), p.spec)
		w.check(err)
		w.bind[p.id] = ifindex
	}
}

// start makes pods, applies rules and activates the pods.
func (w *world) start(rules []rule, names ...string) {
	w.t.Helper()
	w.add(names...)
	w.apply(rules...)
	for _, name := range names {
		w.check(w.ActivateInterface(context.Background(), w.pods[name].spec))
	}
}

func (w *world) apply(rules ...rule) Stats {
	w.t.Helper()
	stats, err := w.Sync(context.Background(), w.tables(rules...), w.bind)
	w.check(err)
	return stats
}

// rule admits a peer ("any", "host" or a pod's name) in one direction of a pod,
// or only isolates that direction if it has no peer.
type rule struct {
	pod       string
	direction abi.Direction
	peer      string
	protocol  uint8 // 0: every one
	port      uint16
	deny      bool
}

// open lets everything through between pods and from the host.
func everything(names ...string) []rule {
	var out []rule
	for _, n := range names {
		out = append(out, rule{pod: n, direction: abi.Ingress, peer: "any"}, rule{pod: n, direction: abi.Egress, peer: "any"})
	}
	return out
}

// tables are the desired tables for rules; directions without a rule are open.
func (w *world) tables(rules ...rule) *projections.Tables {
	out := modelTables{
		endpoints: make(map[projections.EndpointKey]abi.EndpointValue), prefixes: make(map[prefix]abi.IPCacheValue),
		classes: make(map[abi.ClassKey]abi.ClassValue), policy: make(map[abi.PolicyKey]abi.PolicyValue),
	}
	for _, g := range gateways.gateways() {
		out.prefixes[fullPrefix(g)] = abi.IPCacheValue{Peer: uint64(abi.IdentityHost)}
	}
	for _, p := range w.pods {
		for _, a := range []netip.Addr{p.spec.IPv4, p.spec.IPv6} {
			out.prefixes[fullPrefix(a)] = abi.IPCacheValue{Peer: uint64(p.identity)}
		}
		v := abi.EndpointValue{
			ID: p.id, Identity: p.identity, MAC: p.spec.MAC, IPv4: p.spec.IPv4.As4(), IPv6: p.spec.IPv6.As16(),
			Egress: w.ref(&out, p, abi.Egress, rules), Ingress: w.ref(&out, p, abi.Ingress, rules),
		}
		out.endpoints[projections.EndpointKey{ID: p.id}] = v
	}
	t := &projections.Tables{Node: "node"}
	var errs [4]error
	t.Endpoints, errs[0] = projections.NewEndpoints(tableRows(out.endpoints))
	t.IPCache, errs[1] = projections.NewIPCache(tableRows(out.prefixes))
	t.Classes, errs[2] = projections.NewClasses(tableRows(out.classes))
	t.Policy, errs[3] = projections.NewPolicy(tableRows(out.policy))
	for _, err := range errs {
		w.check(err)
	}
	return t
}

func fullPrefix(a netip.Addr) prefix { return prefix{PrefixLen: fullLength, Addr: abi.AddrFrom(a)} }

func (w *world) ref(out *modelTables, p *pod, d abi.Direction, rules []rule) abi.PolicyRef {
	const lens = 1<<16 | abi.LensAllProtocols
	var mine []rule
	for _, r := range rules {
		if r.pod == p.name && r.direction == d {
			mine = append(mine, r)
		}
	}
	if len(mine) == 0 {
		return abi.PolicyRef{}
	}
	h := fnv.New64a()
	fmt.Fprint(h, mine)
	ref := abi.PolicyRef{Table: h.Sum64(), ClassLens: lens, BaseLens: lens, AnyLens: lens, Flags: abi.PolicyEnforced}
	for _, r := range mine {
		if r.peer != "" && r.peer != "any" && r.peer != "host" {
			ref.Scope = ref.Table ^ 1
		}
	}
	for i, r := range mine {
		class := abi.ClassAny
		switch r.peer {
		case "":
			continue
		case "any":
		case "host":
			class = uint64(abi.IdentityHost)
		default:
			peer := uint64(w.pods[r.peer].identity)
			class = abi.ClassOf(abi.ClassPod, peer)
			out.classes[abi.ClassKey{Scope: ref.Scope, Peer: peer}] = abi.ClassValue{Class: class}
		}
		key := abi.PolicyKey{Table: ref.Table, Class: class, Protocol: r.protocol}
		if r.protocol != 0 {
			key.PortBE, key.PortBits = [2]byte{byte(r.port >> 8), byte(r.port)}, 16
		}
		verdict := abi.VerdictAllow
		if r.deny {
			verdict = abi.VerdictDeny
		}
		out.policy[key] = abi.PolicyValue{Row: uint64(i + 1), Verdict: verdict}
	}
	return ref
}

// ips are a pod's addresses.
func (p *pod) ips() []netip.Addr { return []netip.Addr{p.spec.IPv4, p.spec.IPv6} }

// serve starts TCP and UDP echo servers on a port of both of a pod's addresses.
func (w *world) serve(ns *testns.NS, port uint16, addrs ...netip.Addr) {
	w.t.Helper()
	for _, a := range addrs {
		tcp, err := ns.EchoTCP(netip.AddrPortFrom(a, port))
		w.check(err)
		w.t.Cleanup(func() { w.check(tcp.Close()) })
		udp, err := ns.EchoUDP(netip.AddrPortFrom(a, port))
		w.check(err)
		w.t.Cleanup(func() { w.check(udp.Close()) })
	}
}

// reached is what comes back of TCP, UDP and ICMP.
type reached struct{ TCP, UDP, ICMP bool }

var allBack, noneBack = reached{true, true, true}, reached{}

// reach sends TCP, UDP and ICMP and says which came back, each waited for as long as
// what is wanted of it takes.
func reach(from *testns.NS, to netip.Addr, port uint16, want reached) (got reached) {
	limit := func(want bool) time.Duration {
		if want {
			return patience
		}
		return silence
	}
	got.TCP = from.ExchangeTCP(netip.AddrPortFrom(to, port), limit(want.TCP)) == nil
	got.UDP = from.ExchangeUDP(netip.AddrPortFrom(to, port), limit(want.UDP)) == nil
	got.ICMP = from.Ping(to, limit(want.ICMP)) == nil
	return got
}

// drops is the number of packets dropped for any reason but those that a kernel
// sends on its own accord.
func (w *world) drops() uint64 {
	w.t.Helper()
	counters, _, err := w.Counters()
	w.check(err)
	var n uint64
	for _, c := range counters {
		switch c.Reason {
		case abi.Forwarded, abi.Multicast, abi.NeighbourUnhandled:
		default:
			n += c.Packets
		}
	}
	return n
}

func TestMain(m *testing.M) {
	before := openFiles()
	code := m.Run()
	if after := openFiles(); code == 0 && after > before {
		fmt.Fprintf(os.Stderr, "%d file descriptors were open before the tests, %d after\n", before, after)
		code = 1
	}
	os.Exit(code)
}

// openFiles counts sockets, namespaces, maps and files, but not what the runtime
// keeps for polling and for splicing.
func openFiles() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	n := 0
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		kept := slices.Contains([]string{"anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[pidfd]"}, to)
		if err == nil && !kept && !strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}
