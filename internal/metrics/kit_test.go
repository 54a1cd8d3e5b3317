package metrics

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/version"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/raftlog"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

const (
	testCluster = "test"
	testNode    = "n1"
)

// kernel stands for the datapath.
type kernel struct {
	counters []dataplane.Counter
	lost     uint64
	fail     error
	entered  chan struct{} // if set, told of each read of the counters,
	proceed  chan struct{} // which then waits for this
}

func (k *kernel) Counters() ([]dataplane.Counter, uint64, error) {
	if k.entered != nil {
		k.entered <- struct{}{}
		<-k.proceed
	}
	return k.counters, k.lost, k.fail
}

func (k *kernel) Capacities() map[string]int {
	return map[string]int{"ipcache": 100, "ipcache_lpm": 10, "endpoints": 4, "classes": 50, "policy": 50, "ct4": 1000, "ct6": 500}
}

// kit is an agent without a kernel: a real log, and rounds that succeed on demand.
type kit struct {
	*Metrics
	t       *testing.T
	log     *raftlog.Log
	kernel  *kernel
	inForce atomic.Uint64
	unready map[fsm.EndpointRef]string
	tables  *projections.Tables // of the last round
	health  error
	seq     uint64
}

func newKit(t *testing.T) *kit {
	t.Helper()
	k := &kit{
		t: t, kernel: &kernel{}, unready: map[fsm.EndpointRef]string{},
		Metrics: New(version.Info{Version: "v1", Commit: "abc", Go: "go1"}, slog.New(slog.DiscardHandler)),
	}
	var err error
	k.log, err = raftlog.Open(t.Context(), raftlog.Config{
		Dir: t.TempDir(), Cluster: testCluster, ReserveBytes: 1, Observe: k.ObserveCommit,
		Raft: cluster.RaftConfig(cluster.Identity{Cluster: testCluster, Node: testNode, ServerID: "server-1"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.log.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return k
}

func (k *kit) attach() {
	k.Attach(Sources{
		Node: testNode, Log: k.log, Datapath: k.kernel,
		InForce: func() log.Revision { return log.Revision(k.inForce.Load()) },
		Unready: func() map[fsm.EndpointRef]string { return k.unready },
		Health:  func() error { return k.health },
		Flows: func() flows.Stats {
			return flows.Stats{Bytes: 4096, FromNS: 1.5e9, Observed: 17, Lost: 2, Overflowed: 3}
		},
	})
}

// append appends one event, of this node if it is a fact.
func (k *kit) append(e *eventpb.Event) log.Result {
	k.t.Helper()
	e.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_ADMIN, Name: "test"}
	e.Origin = &eventpb.Origin{Cluster: testCluster, Node: testNode}
	if kind, err := log.KindOf(e); err == nil && kind.IsNodeFact() {
		k.seq++
		e.Actor.Role, e.JournalSeq = eventpb.Role_ROLE_NODE, k.seq
	}
	stream, err := log.StreamOf(e)
	if err != nil {
		k.t.Fatal(err)
	}
	e.Stream = stream
	results, err := k.log.Append(k.t.Context(), e)
	if err != nil {
		k.t.Fatal(err)
	}
	return results[0]
}

func (k *kit) mustAppend(e *eventpb.Event) log.Revision {
	k.t.Helper()
	r := k.append(e)
	if r.Outcome != log.OutcomeApplied {
		k.t.Fatalf("%+v", r)
	}
	return r.Revision
}

// round builds the tables of the newest view and says that stats was written.
func (k *kit) round(stats dataplane.Stats, err error) log.Revision {
	k.t.Helper()
	view := k.log.View()
	tables, berr := projections.Build(view, testNode, projections.Options{})
	if berr != nil {
		k.t.Fatal(berr)
	}
	k.tables = tables
	k.ObserveRound(Round{
		Revision: view.Revision(), Build: time.Millisecond, Sync: 3 * time.Millisecond, Ended: time.Now(),
		Tables: tables, Stats: stats, Err: err,
	})
	if err == nil {
		k.inForce.Store(uint64(view.Revision()))
	}
	return view.Revision()
}

func joined() *eventpb.Event {
	return &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: testNode, EndpointCidrs: []string{"10.1.0.0/24"}}}}
}

func endpointRef(name string) *eventpb.EndpointRef {
	return &eventpb.EndpointRef{Namespace: "default", Name: name}
}

func created(name string, last byte) *eventpb.Event {
	return &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
		Ref: endpointRef(name), Incarnation: 1, Node: testNode, Labels: map[string]string{"app": name},
		Addresses: [][]byte{{10, 1, 0, last}}, Mac: []byte{2, 0, 0, 0, 0, last},
	}}}
}

func policyRef(name string) *eventpb.PolicyRef {
	return &eventpb.PolicyRef{Kind: policy.KindCiliumNetworkPolicy, Namespace: "default", Name: name}
}

// policySet admits a range, so that a policy has a row in ipcache_lpm.
func policySet(t *testing.T, name string) *eventpb.Event {
	t.Helper()
	sets, _, err := policy.Parse("test", []byte(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: default, name: `+name+`}
spec:
  endpointSelector: {}
  ingress: [{fromCIDR: [203.0.113.0/24]}]
`), policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: sets[0]}}
}

func policyDeleted(name string) *eventpb.Event {
	return &eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: policyRef(name)}}}
}

// get is the status and the body of a page.
func get(t *testing.T, s *Server, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + s.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func serve(t *testing.T, m *Metrics) *Server {
	t.Helper()
	s, err := m.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

var errTest = errors.New("the counters are gone")

func counter(r abi.Reason, d abi.Direction, packets, bytes uint64) dataplane.Counter {
	return dataplane.Counter{Reason: r, Direction: d, Packets: packets, Bytes: bytes}
}
