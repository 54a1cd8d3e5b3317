package faults

import (
	"context"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/raftlog"
)

// ahead appends an event as an agent does whose clock is hours ahead. The agent's own
// clock cannot be set without setting everybody's.
func (n *node) ahead(by time.Duration) {
	n.t.Helper()
	id, err := cluster.LoadOrCreate(n.state, "default", "node")
	if err != nil {
		n.t.Fatal(err)
	}
	l, err := raftlog.Open(n.t.Context(), raftlog.Config{
		Dir: filepath.Join(n.state, "log"), Cluster: id.Cluster, Raft: cluster.RaftConfig(id),
		Clock: func() int64 { return time.Now().Add(by).UnixNano() },
	})
	if err != nil {
		n.t.Fatal(err)
	}
	_, err = l.Append(n.t.Context(), &eventpb.Event{
		Actor:  &eventpb.Actor{Role: eventpb.Role_ROLE_ADMIN, Name: "test"},
		Origin: &eventpb.Origin{Cluster: id.Cluster, Node: "node"}, Stream: "namespace/ahead",
		Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: "ahead"}},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := l.Close(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// check is what status says of one thing.
func (n *node) check(name string) *varvev1.Check {
	n.t.Helper()
	resp, err := n.client.Agent.Status(n.t.Context(), connect.NewRequest(&varvev1.StatusRequest{}))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range resp.Msg.Checks {
		if c.Name == name {
			return c
		}
	}
	n.t.Fatalf("status has no check %s", name)
	return nil
}

// times of all records, in order.
func (n *node) times() (all []int64) {
	n.t.Helper()
	stream, err := n.client.Log.Read(n.t.Context(), connect.NewRequest(&varvev1.ReadRequest{}))
	if err != nil {
		n.t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		all = append(all, stream.Msg().TimeUnixNs)
	}
	if err := stream.Err(); err != nil {
		n.t.Fatal(err)
	}
	return all
}

// An agent whose clock was hours ahead and went back goes on: appends are taken, in
// order, at the log's time, traffic is judged as before, and it says what is wrong.
func TestClockThatWentBack(t *testing.T) {
	n := newNode(t)
	a := n.start()
	if c := n.check("clock"); !c.Ok {
		t.Errorf("with a clock that is right: %s", c.Message)
	}
	acked := n.appendMany("before", 3)
	tr := n.traffic()
	n.stop(a)
	n.ahead(3 * time.Hour)
	a = n.start()
	maps.Copy(acked, n.appendMany("after", 3))
	if err := n.holds(acked); err != nil {
		t.Error(err)
	}
	all := n.times()
	for i := range all[1:] {
		if all[i+1] < all[i] {
			t.Errorf("revision %d goes back in time", i+2)
		}
	}
	if last := time.Unix(0, all[len(all)-1]); time.Until(last) < 2*time.Hour {
		t.Errorf("the last event is at %s: the log's time went back", last)
	}
	if c := n.check("clock"); c.Ok || !strings.Contains(c.Message, "behind the log's time") || !strings.Contains(c.Message, "set the clock right") {
		t.Errorf("the check says ok=%v, %q", c.Ok, c.Message)
	}
	if !strings.Contains(a.log(), "the clock is behind the log's time") {
		t.Errorf("the agent's log does not say it:\n%s", a.log())
	}
	tr.goesOn("clock behind")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := n.client.Policies.Delete(ctx, connect.NewRequest(&varvev1.DeletePolicyRequest{Ref: &eventpb.PolicyRef{
		Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: "default", Name: "p",
	}})); err != nil {
		t.Fatal(err)
	}
	if err := tr.stranger.ExchangeTCP(tr.server, patience); err != nil {
		t.Errorf("a policy that was deleted is still in force: %v", err)
	}
}
