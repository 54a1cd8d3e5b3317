package dataplane_test

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/gencluster"
	"github.com/varve-net/varve/internal/testns"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

var changes = flag.Int("hammer.changes", 60, "changes that TestHammer makes; 10000 for all")

// variants of a policy on the server: each admits the client, a pod elsewhere and an
// address outside to port 7000, and none of them to port 7001, each by other rules.
// {n} is the number of the variant.
var variants = []string{
	`ingress: [{fromEntities: [all], toPorts: [{ports: [{port: "7000", protocol: TCP}]}]}]`,
	`ingress:
  - fromEndpoints: [{matchLabels: {pod: client}}, {matchLabels: {pod: elsewhere, k8s:io.kubernetes.pod.namespace: ns001}}]
    toPorts: [{ports: [{port: "7000", protocol: TCP}]}]
  - fromCIDR: [203.0.113.0/24]
    toPorts: [{ports: [{port: "7000"}]}]`,
	`ingress:
  - fromEntities: [cluster, world]
    toPorts: [{ports: [{port: "6990", endPort: 7000, protocol: TCP}]}]`,
	`ingress:
  - fromEntities: [all]
  ingressDeny:
  - fromEntities: [all]
    toPorts: [{ports: [{port: "7001", endPort: 7009, protocol: TCP}]}]`,
	`ingress:
  - fromEndpoints: [{matchExpressions: [{key: tier, operator: Exists}, {key: k8s:io.kubernetes.pod.namespace, operator: Exists}]}]
    toPorts: [{ports: [{port: "7000", protocol: TCP}, {port: "{n}", protocol: TCP}]}]
  - fromCIDRSet: [{cidr: 203.0.0.0/8, except: [203.0.112.0/24, 203.0.113.8/32]}]
    toPorts: [{ports: [{port: "7000", protocol: TCP}]}]`,
	`ingress:
  - fromEndpoints: [{matchExpressions: [{key: io.cilium.k8s.namespace.labels.team, operator: In, values: [team0, team1, team2]}]}]
    toPorts: [{ports: [{port: "7000", protocol: TCP}]}]
  - fromCIDR: [203.0.113.7/32, 203.0.0.0/16]
    toPorts: [{ports: [{port: "7000", protocol: TCP}]}]
  ingressDeny:
  - fromCIDR: [198.51.100.0/24]
  - fromEndpoints: [{matchLabels: {version: v1}}]
    toPorts: [{ports: [{port: "7001", protocol: TCP}]}]`,
}

func gate(variant, n int) string {
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: gate}
spec:
  endpointSelector: {matchLabels: {pod: server}}
  %s
`, strings.ReplaceAll(variants[variant], "{n}", fmt.Sprint(8000+n%1000)))
}

// hammered is a cluster whose tables are in real maps, and packets that run through
// the real programs meanwhile.
type hammered struct {
	t        *testing.T
	cluster  *gencluster.Cluster
	proj     *projections.Projection
	syncer   *dataplane.Syncer
	objs     *bpf.Objects
	bind     map[uint32]int
	step     atomic.Int64
	variant  atomic.Int64
	serial   int
	packets  atomic.Int64
	ns       *testns.NS
	ifindex  map[string]uint32
	endpoint map[string]*fsm.Endpoint
}

func newHammered(t *testing.T) *hammered {
	t.Helper()
	h := &hammered{t: t, bind: make(map[uint32]int), ifindex: make(map[string]uint32), endpoint: make(map[string]*fsm.Endpoint)}
	var err error
	h.must(func() error { h.ns, err = testns.New("hammer"); return err }())
	t.Cleanup(func() { h.must(h.ns.Close()) })
	h.must(h.ns.Do(func() error {
		for _, name := range []string{"client", "server"} {
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "0"}); err != nil {
				return err
			}
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			h.ifindex[name] = uint32(l.Attrs().Index)
		}
		return nil
	}))
	h.objs, err = bpf.LoadUnpinned(map[string]uint32{"ct4": 65536, "ct6": 1024, "ipcache": 32768})
	h.must(err)
	t.Cleanup(func() { h.must(h.objs.Close()) })
	h.must(h.objs.SetConfig(abi.DefaultConfig(dataplane.DefaultGatewayMAC)))
	h.syncer = dataplane.NewSyncer(dataplane.MapsOf(h.objs))

	h.cluster, err = gencluster.New(gencluster.Config{Namespaces: 8, Pods: 4, LocalPods: 12, Nodes: 3})
	h.must(err)
	for name, ref := range map[string]fsm.EndpointRef{"client": gencluster.Pod(0, 0), "server": gencluster.Pod(0, 1), "elsewhere": gencluster.Pod(1, 3)} {
		h.must(h.cluster.Label(ref, map[string]string{"pod": name, "tier": "api", "version": "v1"}))
		h.endpoint[name], _ = h.cluster.State.View().Endpoint(ref)
	}
	for _, name := range []string{"client", "server"} {
		h.bind[h.endpoint[name].ID] = int(h.ifindex[name])
	}
	h.must(h.cluster.SetPolicies(gate(0, 0)))
	h.proj = projections.New(gencluster.Node, projections.Options{})
	h.sync()
	return h
}

func (h *hammered) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *hammered) sync() {
	h.t.Helper()
	tables, delta, err := h.proj.Update(h.cluster.State.View())
	h.must(err)
	_, err = h.syncer.Enforce(h.t.Context(), tables, delta, h.bind)
	h.must(err)
	h.must(h.syncer.Clean())
}

// change does one or several things at once, of which none changes what the hammered
// connections may do.
func (h *hammered) change(r *rand.Rand) {
	h.t.Helper()
	for range 1 + r.IntN(3) {
		h.serial++
		switch r.IntN(8) {
		case 0, 1, 2:
			variant := r.IntN(len(variants))
			h.variant.Store(int64(variant))
			h.must(h.cluster.SetPolicies(gate(variant, h.serial)))
		case 3: // the namespace of client and server, or that of elsewhere
			h.must(h.cluster.Relabel(r.IntN(2), map[string]string{"team": fmt.Sprintf("team%d", r.IntN(3))}))
		case 4: // identities of the ends
			name := []string{"client", "server", "elsewhere"}[r.IntN(3)]
			h.must(h.cluster.Label(h.endpoint[name].Ref, map[string]string{"pod": name, "tier": "api", "version": fmt.Sprintf("v%d", r.IntN(3)), "serial": fmt.Sprint(h.serial % 50)}))
		case 5: // an identity
			h.must(h.cluster.AddPod(r.IntN(8), 1000+h.serial, "node01"))
			if old := gencluster.Pod(r.IntN(8), 1000+h.serial-50); r.IntN(2) == 0 {
				if _, ok := h.cluster.State.View().Endpoint(old); ok {
					h.must(h.cluster.RemovePod(old))
				}
			}
		case 6: // another policy of the same endpoints
			h.must(h.cluster.SetPolicies(gencluster.OnePolicy(r.IntN(2), r.IntN(500))))
		case 7:
			ref := policy.Ref{Kind: policy.KindCiliumNetworkPolicy, Namespace: "ns000", Name: "extra"}
			if _, ok := h.cluster.State.View().Policy(ref); ok {
				h.must(h.cluster.DeletePolicy(ref))
			}
		}
	}
	h.sync()
}

// Verdicts of a TC program.
const (
	tcOK       = 0
	tcShot     = 2
	tcRedirect = 7
)

// shot is a packet whose verdict is the same whatever changes.
type shot struct {
	name    string
	at      string // the interface
	prog    *ebpf.Program
	frame   []byte
	want    uint32
	renew   bool // another source port each time: a new flow
	context skbContext
}

// skbContext is struct __sk_buff up to ifindex; the kernel takes a prefix.
type skbContext struct {
	_       [10]uint32
	Ifindex uint32
	_       [37]uint32
}

const (
	syn = 2
	ack = 16

	sourcePortAt = 14 + 20
)

// tcp is an Ethernet frame with a TCP segment. Nobody checks its checksums.
func tcp(srcMAC, dstMAC [6]byte, src, dst netip.Addr, srcPort, dstPort uint16, flags byte) []byte {
	b := append(append(dstMAC[:], srcMAC[:]...), 8, 0)
	b = append(b, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, policy.ProtoTCP, 0, 0)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, srcPort), dstPort)
	return append(b, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
}

func (h *hammered) shots() []*shot {
	client, server, elsewhere := h.endpoint["client"], h.endpoint["server"], h.endpoint["elsewhere"]
	outside := netip.MustParseAddr("203.0.113.7")
	gateway := dataplane.DefaultGatewayMAC
	from, to := h.objs.FromContainer, h.objs.ToContainer
	out := func(port uint16, flags byte) []byte {
		return tcp(client.MAC, gateway, client.IPv4, server.IPv4, 1000, port, flags)
	}
	in := func(src netip.Addr, port uint16, flags byte) []byte {
		return tcp(gateway, server.MAC, src, server.IPv4, 1000, port, flags)
	}
	all := []*shot{
		{name: "new flow of the client", at: "client", prog: from, frame: out(7000, syn), want: tcRedirect, renew: true},
		{name: "flow of the client", at: "client", prog: from, frame: out(7000, ack), want: tcRedirect},
		{name: "reply to the client", at: "server", prog: from, frame: tcp(server.MAC, gateway, server.IPv4, client.IPv4, 7000, 1000, ack), want: tcRedirect},
		{name: "new flow of elsewhere", at: "server", prog: to, frame: in(elsewhere.IPv4, 7000, syn), want: tcOK, renew: true},
		{name: "flow of elsewhere", at: "server", prog: to, frame: in(elsewhere.IPv4, 7000, ack), want: tcOK},
		{name: "new flow of outside", at: "server", prog: to, frame: in(outside, 7000, syn), want: tcOK, renew: true},
		{name: "flow of outside", at: "server", prog: to, frame: in(outside, 7000, ack), want: tcOK},
		{name: "denied flow of the client", at: "client", prog: from, frame: out(7001, syn), want: tcShot, renew: true},
		{name: "denied segment of the client", at: "client", prog: from, frame: out(7001, ack), want: tcShot},
		{name: "denied flow of elsewhere", at: "server", prog: to, frame: in(elsewhere.IPv4, 7001, syn), want: tcShot, renew: true},
		{name: "denied flow of outside", at: "server", prog: to, frame: in(outside, 7001, syn), want: tcShot, renew: true},
	}
	for _, s := range all {
		s.context.Ifindex = h.ifindex[s.at]
	}
	return all
}

// fire sends one packet and compares its verdict.
func (h *hammered) fire(s *shot, n uint16) error {
	if s.renew {
		binary.BigEndian.PutUint16(s.frame[sourcePortAt:], 2000+n%60000)
	}
	h.packets.Add(1)
	got, err := s.prog.Run(&ebpf.RunOptions{Data: s.frame, Context: s.context})
	if err == nil && got != s.want {
		err = fmt.Errorf("verdict %d, want %d", got, s.want)
	}
	if err != nil {
		return fmt.Errorf("%s at change %d, policy variant %d: %w", s.name, h.step.Load(), h.variant.Load(), err)
	}
	return nil
}

// TestHammer sends packets without pause while policies are replaced, pods and
// namespaces get other labels and identities come and go, several at once: what the
// old policy and the new allow passes, and what both deny is dropped, at every moment
// in between.
func TestHammer(t *testing.T) {
	h := newHammered(t)
	shots := h.shots()
	run, stop := context.WithCancel(t.Context())
	group, ctx := errgroup.WithContext(run)
	group.Go(func() error {
		return h.ns.Do(func() error {
			for n := uint16(0); ctx.Err() == nil; n++ {
				for _, s := range shots {
					if err := h.fire(s, n); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
	r := rand.New(rand.NewPCG(1, 2))
	for range *changes {
		if ctx.Err() != nil {
			break
		}
		if n := h.step.Add(1); n%1000 == 0 {
			t.Logf("change %d", n)
		}
		h.change(r)
	}
	stop()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d packets during %d changes", h.packets.Load(), h.step.Load())
	if h.packets.Load() < int64(*changes) {
		t.Errorf("only %d packets during %d changes", h.packets.Load(), *changes)
	}
}
