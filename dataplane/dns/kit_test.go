package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane/dns/relay"
	"github.com/varve-net/varve/dataplane/dns/wire"
	"github.com/varve-net/varve/internal/dnslink"
)

const testPatience = 2 * time.Minute

const (
	podID    = 7
	otherID  = 8
	podTable = 100
	newTable = 200
	// classA is of *.domain.com, classB of api.domain.com, both in podTable.
	classA uint64 = 1<<63 | 0xa
	classB uint64 = 1<<63 | 0xb
)

var (
	podAddr   = netip.MustParseAddr("10.1.0.7")
	otherAddr = netip.MustParseAddr("10.1.0.8")
	far       = netip.MustParseAddr("192.0.2.1")
)

// node is the maps of a node and a proxy that uses them.
type node struct {
	t     testing.TB
	maps  *bpf.Objects
	cfg   Config
	began uint32 // monotonic seconds
	*Proxy
}

func newNode(t testing.TB, change func(*Config)) *node {
	t.Helper()
	dir := t.TempDir()
	if _, err := bpf.MountBPFFS(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bpf.UnmountBPFFS(dir); err != nil {
			t.Error(err)
		}
	})
	pins := filepath.Join(dir, "varve")
	maps, err := bpf.Load(bpf.Options{PinDir: pins, MapSizes: map[string]uint32{
		"ipcache": 64, "ipcache_lpm": 64, "endpoints": 16, "classes": 64, "policy": 64, "ct4": 4096, "ct6": 4096, "events": 4096, "fqdn": 8192,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { maps.Close() })
	n := &node{t: t, maps: maps, began: monotonicSeconds(), cfg: Config{
		Cluster: "test", Node: "n1", StateDir: t.TempDir(), PinDir: pins, MaxAddresses: DefaultMaxAddresses, RejectCode: wire.Refused,
		MaxDelay: time.Minute, Compress: true, Logger: slog.New(slog.DiscardHandler),
	}}
	if change != nil {
		change(&n.cfg)
	}
	n.put(maps.Endpoints.Put(&abi.EndpointKey{Ifindex: 3}, &abi.EndpointValue{
		ID: podID, Identity: 300, IPv4: podAddr.As4(), Egress: abi.PolicyRef{Table: podTable, Flags: abi.PolicyEnforced | abi.PolicyAsks | abi.PolicyFQDN},
	}))
	n.put(maps.IPCache.Put(&abi.IPCacheKey{Addr: abi.AddrFrom(podAddr)}, &abi.IPCacheValue{Peer: 300, Ifindex: 3}))
	n.rules(nodeRules())
	n.open()
	t.Cleanup(n.close)
	return n
}

// nodeRules are those that most tests begin with.
func nodeRules() *dnslink.Rules {
	return &dnslink.Rules{
		Cluster: "test", Node: "n1", Revision: 5, Sets: [][]string{{"*.domain.com."}, {"api.domain.com."}},
		Endpoints: []dnslink.Endpoint{
			{ID: podID, Namespace: "default", Name: "pod", Incarnation: 1, IPv4: podAddr, Tables: []uint64{podTable}},
			{ID: otherID, Namespace: "default", Name: "other", Incarnation: 1, IPv4: otherAddr, Tables: []uint64{podTable}},
		},
		Rows:    []dnslink.Row{{ID: 1000, Set: 0}, {ID: 1001, Set: dnslink.EveryName}},
		Classes: []dnslink.Class{{Table: podTable, ID: classA, Set: 0}, {Table: podTable, ID: classB, Set: 1}, {Table: newTable, ID: classB, Set: 0}},
	}
}

func (n *node) put(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// rules writes the rules file.
func (n *node) rules(r *dnslink.Rules) {
	n.t.Helper()
	n.put(dnslink.WriteRules(filepath.Join(n.cfg.StateDir, "rules"), r))
}

func (n *node) open() {
	n.t.Helper()
	p, err := Open(context.Background(), n.cfg, prometheus.NewRegistry())
	n.put(err)
	n.Proxy = p
	n.keeper.flush = func() {}
}

func (n *node) close() {
	if n.Proxy != nil {
		n.put(n.Proxy.Close())
		n.Proxy = nil
	}
}

// restart is a SIGKILL and a new start.
func (n *node) restart() {
	n.t.Helper()
	n.close()
	n.open()
}

// waiter keeps what it was told.
type waiter struct {
	told int
	err  error
}

func (w *waiter) Learned(err error) { w.told, w.err = w.told+1, err }

// observation of addresses with a TTL.
func observation(endpoint uint32, name string, ttl uint32, addrs ...netip.Addr) *relay.Observation {
	o := &relay.Observation{Endpoint: endpoint, Name: []byte(name)}
	for _, a := range addrs {
		o.Addresses = append(o.Addresses, wire.Address{Addr: a, TTLSeconds: ttl})
	}
	return o
}

// learn makes the pod learn; false if it knew.
func (n *node) learn(o *relay.Observation) bool {
	n.t.Helper()
	if n.keeper.Known(o) {
		return false
	}
	var w waiter
	n.keeper.Learn(o, &w)
	n.keeper.batch(false)
	if w.told != 1 || w.err != nil {
		n.t.Fatalf("told %d times: %v", w.told, w.err)
	}
	return true
}

// row is what the map has of an address: class -> seconds until it expires.
func (n *node) row(endpoint uint32, a netip.Addr) map[uint64]int {
	n.t.Helper()
	var v abi.FQDNValue
	if err := n.maps.FQDN.Lookup(&abi.FQDNKey{Endpoint: endpoint, Addr: abi.AddrFrom(a)}, &v); err != nil {
		return nil
	}
	out := map[uint64]int{}
	for i, c := range v.Class {
		if c != 0 {
			out[c] = int(int64(v.ExpiresSeconds[i]) - int64(monotonicSeconds()))
		}
	}
	return out
}

// expire makes an address of a name one that expired so long ago.
func (n *node) expire(name string, a netip.Addr, ago time.Duration) {
	n.t.Helper()
	n.keeper.mu.Lock()
	defer n.keeper.mu.Unlock()
	e := n.keeper.facts.endpoints[endpointKey{"default", "pod", 1}]
	e.address(name, a).extend(monotonic() - int64(ago))
	n.put(n.keeper.write(e, a))
}

// flow puts a live connection of the pod into the conntrack map.
func (n *node) flow(to netip.Addr) {
	n.t.Helper()
	n.put(n.maps.CT4.Put(&abi.CT4Key{Addr: [2][4]byte{podAddr.As4(), to.As4()}, PortBE: [2][2]byte{{4, 4}, {1, 187}}, Protocol: 6}, &abi.CTValue{ExpiresSeconds: monotonicSeconds() + 1000}))
}

func (n *node) noFlow(to netip.Addr) {
	n.t.Helper()
	n.put(n.maps.CT4.Delete(&abi.CT4Key{Addr: [2][4]byte{podAddr.As4(), to.As4()}, PortBE: [2][2]byte{{4, 4}, {1, 187}}, Protocol: 6}))
}

// events are the names of the journal's facts after a number.
func (n *node) facts(after uint64) (out []string) {
	n.t.Helper()
	if n.journal.Last() <= after {
		return nil
	}
	fs, err := n.Facts(context.Background(), after, 10000, 0)
	n.put(err)
	for _, f := range fs {
		e, err := f.Event()
		n.put(err)
		if o := e.GetDnsObserved(); o != nil {
			s := "observed " + o.Name
			for _, a := range o.Addresses {
				addr, _ := netip.AddrFromSlice(a.Address)
				s += " " + addr.String()
			}
			out = append(out, s)
			continue
		}
		c := e.GetDnsCollected()
		s := "collected " + c.GetName()
		for _, a := range addrsOf(c.GetAddresses()) {
			s += " " + a.String()
		}
		out = append(out, s)
	}
	return out
}
