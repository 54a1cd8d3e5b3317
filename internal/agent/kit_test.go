package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/raftlog"
)

// links stands for the machine: it notes what it is asked, and fails on demand.
type links struct {
	mu    sync.Mutex
	have  map[string]int // host interface -> ifindex
	up    map[string]bool
	mtu   map[string]int
	calls []string
	fail  map[string]error // by call
	next  int
}

func newLinks() *links {
	return &links{have: map[string]int{}, up: map[string]bool{}, mtu: map[string]int{}, fail: map[string]error{}, next: 10}
}

func (l *links) call(name string) error {
	l.calls = append(l.calls, name)
	return l.fail[name]
}

func (l *links) EnsureInterface(_ context.Context, s dataplane.InterfaceSpec) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.call("ensure"); err != nil {
		return 0, err
	}
	if _, ok := l.have[s.HostName]; !ok {
		l.have[s.HostName] = l.next
		l.next++
	}
	l.mtu[s.HostName] = s.MTU
	return l.have[s.HostName], nil
}

func (l *links) ActivateInterface(_ context.Context, s dataplane.InterfaceSpec) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.call("activate"); err != nil {
		return err
	}
	l.up[s.HostName] = true
	return nil
}

func (l *links) RemoveInterface(_ context.Context, host string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.call("remove"); err != nil {
		return err
	}
	delete(l.have, host)
	delete(l.up, host)
	return nil
}

func (l *links) AdoptInterface(_ context.Context, host string) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.call("adopt"); err != nil {
		return 0, err
	}
	if i, ok := l.have[host]; ok {
		return i, nil
	}
	return 0, dataplane.ErrNoInterface
}

func (l *links) ListInterfaces(context.Context) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for n := range l.have {
		names = append(names, n)
	}
	slices.Sort(names)
	return names, nil
}

// node is an agent without a kernel: a real log, and endpoints over links.
type node struct {
	log   *raftlog.Log
	cfg   *Config
	facts *facts
	links *links
	eps   *endpoints
	wait  error // what waiting for the kernel gives
}

var tester = apiserver.Actor{Name: "test"}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	cfg := &Config{
		StateDir: dir, Socket: "s", BPFRoot: "b", Cluster: "test", Node: "n1", Logger: slog.New(slog.DiscardHandler),
		IPv4Range: netip.MustParsePrefix("10.9.0.0/24"), IPv6Range: netip.MustParsePrefix("fd00:9::/64"),
		NodeAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}
	if err := cfg.normalize(); err != nil {
		t.Fatal(err)
	}
	id, err := cluster.LoadOrCreate(dir, cfg.Cluster, cfg.Node)
	if err != nil {
		t.Fatal(err)
	}
	rlog, err := raftlog.Open(t.Context(), raftlog.Config{Dir: filepath.Join(dir, "log"), Cluster: cfg.Cluster, Raft: cluster.RaftConfig(id), Logger: cfg.Logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := rlog.Close(ctx); err != nil && !errors.Is(err, log.ErrClosed) {
			t.Error(err)
		}
	})
	n := &node{log: rlog, cfg: cfg, links: newLinks()}
	n.facts = &facts{log: rlog, view: rlog.View, cluster: cfg.Cluster, node: cfg.Node}
	if err := announce(t.Context(), cfg, n.facts); err != nil {
		t.Fatal(err)
	}
	n.restart()
	return n
}

// restart forgets all that is not in the log or the machine.
func (n *node) restart() {
	n.eps = newEndpoints(n.cfg, n.facts, n.log.View, func(ctx context.Context, r log.Revision) error {
		if n.wait != nil {
			return n.wait
		}
		return n.log.Wait(ctx, r)
	}, n.links)
	n.eps.resync = func(context.Context) error { return nil }
}
