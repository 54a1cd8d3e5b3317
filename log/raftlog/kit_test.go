package raftlog

import (
	"context"
	"fmt"
	"testing"

	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

const testCluster = "test"

// testConfig is a Config whose log does nothing by itself: snapshots are made on
// request only.
func testConfig(dir string) Config {
	return Config{
		Dir: dir, Cluster: testCluster,
		Raft:              cluster.RaftConfig(cluster.Identity{Cluster: testCluster, Node: "n1", ServerID: "server-1"}),
		SnapshotThreshold: 1 << 40,
		ReserveBytes:      1,
	}
}

func open(t testing.TB, c Config) *Log {
	t.Helper()
	l, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	return l
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// namespaceSet is an event that is applied; each id is another request.
func namespaceSet(name, id string) *eventpb.Event {
	return &eventpb.Event{
		Actor:     &eventpb.Actor{Role: eventpb.Role_ROLE_ADMIN, Name: "test"},
		Origin:    &eventpb.Origin{Cluster: testCluster, Node: "n1"},
		RequestId: id,
		Stream:    "namespace/" + name,
		Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{
			Name: name, Labels: map[string]string{"request": id},
		}},
	}
}

func mustAppend(t testing.TB, l *Log, events ...*eventpb.Event) []log.Result {
	t.Helper()
	results, err := l.Append(t.Context(), events...)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// fill appends n events, one by one, with ids of their own.
func fill(t testing.TB, l *Log, prefix string, n int) {
	t.Helper()
	for i := range n {
		id := fmt.Sprintf("%s-%d", prefix, i)
		if r := mustAppend(t, l, namespaceSet(fmt.Sprintf("ns%d", i%7), id))[0]; r.Outcome != log.OutcomeApplied {
			t.Fatalf("%s: %+v", id, r)
		}
	}
}

// allIDs reads the whole log, checks that it is dense, and returns the revision
// of each request id.
func allIDs(t testing.TB, l *Log) map[string]log.Revision {
	t.Helper()
	ids := map[string]log.Revision{}
	next := l.First()
	head, _ := l.Head()
	err := l.Read(t.Context(), next, head, func(r log.Record) error {
		if r.Revision != next {
			return fmt.Errorf("revision %d, want %d", r.Revision, next)
		}
		next++
		e, err := log.Unmarshal(r.Event)
		if err != nil {
			return err
		}
		if earlier, twice := ids[e.RequestId]; twice {
			return fmt.Errorf("request %s is at revisions %d and %d", e.RequestId, earlier, r.Revision)
		}
		ids[e.RequestId] = r.Revision
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if next != head+1 {
		t.Fatalf("read up to revision %d, head is %d", next-1, head)
	}
	return ids
}

// lastRaftIndex is the index of the newest Raft entry.
func lastRaftIndex(l *Log) uint64 { return l.raft.LastIndex() }
