package apiserver

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/raftlog"
	"github.com/varve-net/varve/projections"
)

const (
	testCluster = "test"
	testNode    = "n1"
)

// kit is a server over a real log and a real projection; what acts on a machine
// is left out.
type kit struct {
	*api.Client
	log    *raftlog.Log
	flows  *flows.Store
	socket string
	stop   context.CancelFunc // of the server
}

func newKit(t *testing.T) *kit {
	t.Helper()
	dir := t.TempDir()
	id, err := cluster.LoadOrCreate(dir, testCluster, testNode)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	rlog, err := raftlog.Open(t.Context(), raftlog.Config{
		Dir: filepath.Join(dir, "log"), Cluster: testCluster, Raft: cluster.RaftConfig(id), Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	k := &kit{log: rlog, flows: openFlows(t), socket: filepath.Join(dir, "varve.sock")}
	listener, err := Bind(k.socket, "")
	if err != nil {
		t.Fatal(err)
	}
	srv := New(Config{
		Listener: listener, Cluster: testCluster, Node: testNode, Logger: logger,
		Info: func() Info { return Info{Version: "test", Cluster: testCluster, Node: testNode, PID: os.Getpid()} },
		Log:  rlog, Projector: projector{rlog}, Endpoints: endpoints{}, Kernel: kernel{}, Monitor: monitor{},
		Flows: k.flows, Past: past.New(past.Config{Log: rlog, Cluster: testCluster}),
	})
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	k.stop = stop
	go func() { served <- srv.Serve(ctx) }()
	if k.Client, err = api.New(k.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Client.Close()
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		closing, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := rlog.Close(closing); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	k.node(t, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: testNode, EndpointCidrs: []string{"10.1.0.0/24"}}}})
	return k
}

// node appends a fact as the node itself does.
func (k *kit) node(t *testing.T, e *eventpb.Event) {
	t.Helper()
	k.fact(t, testNode, e)
}

// elsewhere appends a fact as another node does.
func (k *kit) elsewhere(t *testing.T, e *eventpb.Event) {
	t.Helper()
	k.fact(t, "n2", e)
}

func (k *kit) fact(t *testing.T, node string, e *eventpb.Event) {
	t.Helper()
	e.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "test"}
	e.Origin = &eventpb.Origin{Cluster: testCluster, Node: node}
	stream, err := log.StreamOf(e)
	if err != nil {
		t.Fatal(err)
	}
	e.Stream = stream
	if n, ok := k.log.View().Node(node); ok {
		e.JournalSeq = n.JournalSeq + 1
	} else {
		e.JournalSeq = 1
	}
	r, err := k.log.Append(t.Context(), e)
	if err != nil || r[0].Outcome != log.OutcomeApplied {
		t.Fatalf("%s: %+v, %v", stream, r, err)
	}
}

// endpoint records one with a label app.
func (k *kit) endpoint(t *testing.T, name, app, addr string, last byte) {
	t.Helper()
	k.node(t, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
		Ref: &eventpb.EndpointRef{Namespace: "default", Name: name}, Incarnation: 1, Node: testNode,
		Labels: map[string]string{"app": app}, Addresses: [][]byte{{10, 1, 0, last}}, Mac: []byte{2, 0, 0, 0, 0, last},
	}}})
}

// projector projects on demand; there is no kernel to write to.
type projector struct{ log *raftlog.Log }

func (p projector) Wait(ctx context.Context, rev log.Revision) error { return p.log.Wait(ctx, rev) }
func (p projector) Current() *projections.Tables {
	t, err := projections.Build(p.log.View(), testNode, projections.Options{})
	if err != nil {
		return nil
	}
	return t
}
func (p projector) Hold(_ context.Context, fn func(fsm.View, *projections.Tables) error) error {
	return fn(p.log.View(), p.Current())
}
func (p projector) Err() error { return nil }

type endpoints struct{}

func (endpoints) Add(context.Context, Actor, *varvev1.AddEndpointRequest) (fsm.EndpointRef, bool, error) {
	return fsm.EndpointRef{}, false, connect.NewError(connect.CodeUnimplemented, nil)
}
func (endpoints) SetAuditMode(context.Context, Actor, fsm.EndpointRef, bool) error { return nil }

func (endpoints) SetLabels(context.Context, Actor, fsm.EndpointRef, map[string]string, []string) error {
	return nil
}
func (endpoints) Delete(context.Context, Actor, fsm.EndpointRef) (bool, error) { return false, nil }
func (endpoints) State(fsm.EndpointRef) string                                 { return "ready" }

type kernel struct{}

func (kernel) KernelTables(context.Context) (*projections.Tables, error) {
	return &projections.Tables{}, nil
}
func (kernel) Verify(context.Context, *projections.Tables) ([]dataplane.Difference, error) {
	return []dataplane.Difference{{Map: "policy", Kind: dataplane.Missing, Key: "some row", Want: "allow"}}, nil
}
func (kernel) Flows(context.Context, func(dataplane.Flow) error) error { return nil }
func (kernel) Counters() ([]dataplane.Counter, uint64, error)          { return nil, 7, nil }
func (kernel) Capacities() map[string]int                              { return map[string]int{"policy": 100} }
func (kernel) Ifindex(uint32) int                                      { return 42 }
func (kernel) Names(context.Context) ([]dataplane.NameRow, error)      { return nil, nil }

type monitor struct{}

func (monitor) Subscribe(ctx context.Context, _ func(dataplane.Event, uint64) error) error {
	<-ctx.Done()
	return ctx.Err()
}

func codeIs(t *testing.T, err error, want connect.Code) {
	t.Helper()
	if got := connect.CodeOf(err); err == nil || got != want {
		t.Fatalf("got %v, want code %s", err, want)
	}
}
