package raftlog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// sameAsReplay checks that the log's view is what its events give from zero.
func sameAsReplay(t testing.TB, l *Log) {
	t.Helper()
	view := l.View()
	state := fsm.New(testCluster)
	err := l.Read(t.Context(), 1, view.Revision(), func(r log.Record) error {
		again, _, err := state.Apply(append([]byte(nil), r.Event...))
		if err == nil && (again.Chain != r.Chain || again.TimeNS != r.TimeNS || again.Outcome != r.Outcome || again.Reason != r.Reason) {
			err = fmt.Errorf("revision %d: replay gives %+v, history has %+v", r.Revision, again, r)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if replayed := state.View(); replayed.Digest() != view.Digest() || replayed.Chain() != view.Chain() || replayed.Revision() != view.Revision() {
		t.Errorf("replay from zero: revision %d, digest %s; the view: revision %d, digest %s",
			replayed.Revision(), replayed.Digest(), view.Revision(), view.Digest())
	}
}

func TestConcurrentAppends(t *testing.T) {
	const clients, each = 32, 25
	dir := t.TempDir()
	l := open(t, testConfig(dir))
	acked := make([]map[string]log.Revision, clients)
	var wait sync.WaitGroup
	for c := range clients {
		acked[c] = map[string]log.Revision{}
		wait.Go(func() {
			last := log.Revision(0)
			for i := range each {
				id := fmt.Sprintf("c%d-%d", c, i)
				results, err := l.Append(t.Context(), namespaceSet(fmt.Sprintf("ns%d", c), id))
				if err != nil {
					t.Error(err)
					return
				}
				r := results[0]
				if r.Outcome != log.OutcomeApplied || r.Revision <= last || r.Head < r.Revision {
					t.Errorf("%s: %+v after revision %d", id, r, last)
				}
				last = r.Revision
				acked[c][id] = r.Revision
				if v := l.View(); v.Revision() < r.Revision {
					t.Errorf("acknowledged revision %d, the view is of %d", r.Revision, v.Revision())
				}
			}
		})
	}
	wait.Wait()
	check := func(l *Log) {
		t.Helper()
		if head, chain := l.Head(); head != clients*each || chain != l.View().Chain() {
			t.Errorf("head %d, want %d", head, clients*each)
		}
		ids := allIDs(t, l)
		for _, of := range acked {
			for id, revision := range of {
				if ids[id] != revision {
					t.Errorf("%s was acknowledged at %d and is at %d", id, revision, ids[id])
				}
			}
		}
		if err := l.Verify(t.Context(), 1); err != nil {
			t.Error(err)
		}
		sameAsReplay(t, l)
	}
	check(l)
	if entries := lastRaftIndex(l); entries >= clients*each {
		t.Errorf("%d Raft entries for %d events: appends were not gathered", entries, clients*each)
	}
	digest := l.View().Digest()
	closeLog(t, l)
	l = open(t, testConfig(dir))
	check(l)
	if l.View().Digest() != digest {
		t.Errorf("digest %s before the restart, %s after", digest, l.View().Digest())
	}
}

// Whether a state comes from a snapshot and a tail, or from the Raft log alone,
// it is the same.
func TestSnapshotAndTail(t *testing.T) {
	dir := t.TempDir()
	c := testConfig(dir)
	c.NoTrailingLogs = true
	l := open(t, c)
	var digest log.Hash
	for round := range 4 {
		fill(t, l, fmt.Sprintf("r%d", round), 30)
		if err := l.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if first, err := l.files.entries.FirstIndex(); err != nil || first != 0 {
			t.Errorf("round %d: the Raft log begins at %d, %v: it was not compacted", round, first, err)
		}
		fill(t, l, fmt.Sprintf("r%d-tail", round), 7)
		digest = l.View().Digest()
		closeLog(t, l)
		l = open(t, c)
		if l.View().Digest() != digest {
			t.Fatalf("round %d: digest %s before the restart, %s after", round, digest, l.View().Digest())
		}
		sameAsReplay(t, l)
	}
	if n := len(allIDs(t, l)); n != 4*37 {
		t.Errorf("%d events, want %d", n, 4*37)
	}
	// Nothing new: no error, and it restarts from the snapshot alone.
	for range 2 {
		if err := l.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	closeLog(t, l)
	l = open(t, c)
	if l.View().Digest() != digest {
		t.Error("from the snapshot alone the digest differs")
	}
}

// A group is one Raft entry; each event has its own result, in order.
func TestGroup(t *testing.T) {
	l := open(t, testConfig(t.TempDir()))
	before := lastRaftIndex(l)
	bad := namespaceSet("x", "bad")
	bad.Stream = "namespace/other"
	stale := namespaceSet("a", "stale")
	expected := uint64(99)
	stale.ExpectedRevision = &expected
	results := mustAppend(t, l,
		namespaceSet("a", "1"), bad, stale, namespaceSet("a", "1"), namespaceSet("b", "2"))
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprintf("%d@%d", r.Outcome, r.Revision))
	}
	want := fmt.Sprintf("%d@1 %d@2 %d@1 %d@1 %d@3", log.OutcomeApplied, log.OutcomeRejected, log.OutcomeConflict, log.OutcomeRepeat, log.OutcomeApplied)
	if s := strings.Join(got, " "); s != want {
		t.Errorf("results %s, want %s", s, want)
	}
	if entries := lastRaftIndex(l) - before; entries != 1 {
		t.Errorf("%d Raft entries for one group", entries)
	}
	if head, _ := l.Head(); head != 3 {
		t.Errorf("head %d", head)
	}
	// An entry that takes no revision is acknowledged, too.
	if r := mustAppend(t, l, namespaceSet("a", "1"))[0]; r.Outcome != log.OutcomeRepeat || r.Revision != 1 {
		t.Errorf("a retry: %+v", r)
	}
}

func TestClockStamps(t *testing.T) {
	c := testConfig(t.TempDir())
	var clock atomic.Int64 // read by the watcher after an answer, too
	clock.Store(5000)
	c.Clock = clock.Load
	l := open(t, c)
	for _, now := range []int64{5000, 7000, 6000, 8000} {
		clock.Store(now)
		e := namespaceSet("a", fmt.Sprint(now))
		e.TimeUnixNs = 1
		mustAppend(t, l, e)
	}
	var stamped, effective []int64
	err := l.Read(t.Context(), 1, 4, func(r log.Record) error {
		e, err := log.Unmarshal(r.Event)
		stamped, effective = append(stamped, e.GetTimeUnixNs()), append(effective, r.TimeNS)
		return err
	})
	if err != nil || fmt.Sprint(stamped) != "[5000 7000 6000 8000]" || fmt.Sprint(effective) != "[5000 7000 7000 8000]" {
		t.Errorf("stamped %v, effective %v, %v", stamped, effective, err)
	}
}

func TestAppendRefuses(t *testing.T) {
	c := testConfig(t.TempDir())
	c.MaxBatchEvents, c.MaxBatchBytes = 3, 2000
	l := open(t, c)
	long := namespaceSet("long", "long")
	long.Actor.Name = strings.Repeat("x", 2000)
	tooLong := namespaceSet("long", "long")
	tooLong.Actor.Name = strings.Repeat("x", log.MaxEventBytes)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx    context.Context
		events []*eventpb.Event
		want   error
	}{
		"no events":        {t.Context(), nil, log.ErrInvalid},
		"nil":              {t.Context(), []*eventpb.Event{namespaceSet("a", "a"), nil}, log.ErrInvalid},
		"too many":         {t.Context(), []*eventpb.Event{namespaceSet("a", "a"), namespaceSet("a", "b"), namespaceSet("a", "c"), namespaceSet("a", "d")}, log.ErrTooLarge},
		"group too long":   {t.Context(), []*eventpb.Event{long}, log.ErrTooLarge},
		"event too long":   {t.Context(), []*eventpb.Event{tooLong}, log.ErrTooLarge},
		"not UTF-8":        {t.Context(), []*eventpb.Event{namespaceSet("\xff", "a")}, log.ErrInvalid},
		"context is ended": {ended, []*eventpb.Event{namespaceSet("a", "a")}, context.Canceled},
	} {
		if _, err := l.Append(tc.ctx, tc.events...); !errors.Is(err, tc.want) {
			t.Errorf("%s: error %v, want %v", name, err, tc.want)
		}
	}
	if head, _ := l.Head(); head != 0 {
		t.Errorf("head %d", head)
	}
	fill(t, l, "after", 3)
	closeLog(t, l)
	if _, err := l.Append(t.Context(), namespaceSet("a", "a")); !errors.Is(err, log.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := l.Wait(t.Context(), 9); !errors.Is(err, log.ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
	if err := l.Subscribe(t.Context(), 3, nil); !errors.Is(err, log.ErrClosed) {
		t.Errorf("Subscribe after Close: %v", err)
	}
	if err := l.Err(); !errors.Is(err, log.ErrClosed) {
		t.Errorf("Err after Close: %v", err)
	}
}

// Appends that are waiting when the log is closed get an answer: a result that
// holds, or ErrClosed.
func TestCloseUnderLoad(t *testing.T) {
	dir := t.TempDir()
	l := open(t, testConfig(dir))
	var acked sync.Map
	var wait sync.WaitGroup
	for c := range 16 {
		wait.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("c%d-%d", c, i)
				results, err := l.Append(t.Context(), namespaceSet("a", id))
				if err != nil {
					if !errors.Is(err, log.ErrClosed) {
						t.Error(err)
					}
					return
				}
				acked.Store(id, results[0].Revision)
			}
		})
	}
	if err := l.Wait(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	wait.Wait()
	l = open(t, testConfig(dir))
	ids := allIDs(t, l)
	acked.Range(func(id, revision any) bool {
		if ids[id.(string)] != revision {
			t.Errorf("%s was acknowledged at %d and is at %d", id, revision, ids[id.(string)])
		}
		return true
	})
}

func TestConfigRefuses(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"Dir":            func(c *Config) { c.Dir = "" },
		"Cluster":        func(c *Config) { c.Cluster = "" },
		"Raft":           func(c *Config) { c.Raft = nil },
		"LocalID":        func(c *Config) { c.Raft.LocalID = "" },
		"MaxBatchEvents": func(c *Config) { c.MaxBatchEvents = -1 },
		"MaxBatchBytes":  func(c *Config) { c.MaxBatchBytes = log.MaxBatchBytes + 1 },
	} {
		c := testConfig(t.TempDir())
		change(&c)
		if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
}
