package raftlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// follower checks that records come without gap or repeat.
type follower struct {
	next log.Revision
	last log.Hash
}

func (f *follower) take(r log.Record) error {
	if r.Revision != f.next {
		return fmt.Errorf("revision %d, want %d", r.Revision, f.next)
	}
	if f.next > 1 && f.last != (log.Hash{}) && log.Next(f.last, log.Leaf(r.Event)) != r.Chain {
		return fmt.Errorf("revision %d does not continue the chain", r.Revision)
	}
	f.next, f.last = f.next+1, r.Chain
	return nil
}

var errEnough = errors.New("enough")

// Subscribers that begin anywhere see every record once while the log is written,
// snapshots are made and Raft forgets its entries.
func TestSubscribeWhileCompacting(t *testing.T) {
	const total = 1500
	c := testConfig(t.TempDir())
	c.SnapshotThreshold, c.SnapshotInterval, c.NoTrailingLogs = 10, 5*time.Millisecond, true
	l := open(t, c)
	fill(t, l, "before", 50)
	var wait sync.WaitGroup
	for _, after := range []log.Revision{0, 1, 30, 50, 300} {
		wait.Go(func() {
			f := follower{next: after + 1}
			err := l.Subscribe(t.Context(), after, func(r log.Record) error {
				if err := f.take(r); err != nil || r.Revision < total {
					return err
				}
				return errEnough
			})
			if err != errEnough {
				t.Errorf("after %d: %v", after, err)
			}
		})
	}
	for g := range 10 {
		wait.Go(func() {
			for i := range (total - 50) / 10 {
				if _, err := l.Append(t.Context(), namespaceSet(fmt.Sprint("ns", g), fmt.Sprintf("g%d-%d", g, i))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if first, err := l.files.entries.FirstIndex(); err != nil || first == 1 {
		t.Errorf("the Raft log begins at %d, %v: it was never compacted", first, err)
	}
	sameAsReplay(t, l)
}

// A subscriber that is slower than memory is long goes on from history, and then
// from memory again.
func TestSlowSubscriber(t *testing.T) {
	l := open(t, testConfig(t.TempDir()))
	proceed := make(chan log.Revision)
	reached := make(chan log.Revision)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		f := follower{next: 1}
		until := <-proceed
		done <- l.Subscribe(ctx, 0, func(r log.Record) error {
			for r.Revision > until {
				until = <-proceed
			}
			if err := f.take(r); err != nil {
				return err
			}
			if r.Revision == until {
				reached <- until
			}
			return nil
		})
	}()
	head := log.Revision(0)
	for _, n := range []int{1, 10, feedRecords + 500, 3, 2*feedRecords + 77, 2} {
		for left := n; left > 0; {
			group := min(left, 1000)
			head = appendGroup(t, l, group)
			left -= group
		}
		proceed <- head - 1 // it is held back in the midst of what exists
		if head > 1 {
			<-reached
		}
		proceed <- head
		<-reached
	}
	if l.feed.held == int(head) {
		t.Error("memory never overflowed: the test has shown nothing")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// appendGroup appends n events in one group and returns the head.
func appendGroup(t testing.TB, l *Log, n int) log.Revision {
	t.Helper()
	events := make([]*eventpb.Event, n)
	for i := range events {
		events[i] = namespaceSet("a", "")
	}
	results := mustAppend(t, l, events...)
	return results[n-1].Revision
}

func TestSubscribeEnds(t *testing.T) {
	l := open(t, testConfig(t.TempDir()))
	fill(t, l, "a", 5)
	stop := errors.New("stop")
	if err := l.Subscribe(t.Context(), 2, func(log.Record) error { return stop }); err != stop {
		t.Errorf("fn's error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := l.Subscribe(ctx, 0, func(r log.Record) error {
		if r.Revision == 5 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("context: %v", err)
	}
	if err := l.Subscribe(t.Context(), ^log.Revision(0), nil); !errors.Is(err, log.ErrCompacted) {
		t.Errorf("after the last possible revision: %v", err)
	}
	ended := make(chan error, 1)
	subscribed := make(chan struct{})
	go func() {
		ended <- l.Subscribe(context.Background(), 4, func(log.Record) error {
			close(subscribed)
			return nil
		})
	}()
	<-subscribed
	closeLog(t, l)
	if err := <-ended; !errors.Is(err, log.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestReadBounds(t *testing.T) {
	l := open(t, testConfig(t.TempDir()))
	fill(t, l, "a", 5)
	for _, tc := range []struct{ first, last, from, n log.Revision }{
		{0, 0, 0, 0}, {0, 2, 1, 2}, {2, 4, 2, 3}, {4, 100, 4, 2}, {6, 100, 0, 0}, {3, 2, 0, 0},
	} {
		var got []log.Revision
		if err := l.Read(t.Context(), tc.first, tc.last, func(r log.Record) error {
			got = append(got, r.Revision)
			return nil
		}); err != nil {
			t.Errorf("%+v: %v", tc, err)
		}
		if len(got) != int(tc.n) || tc.n > 0 && got[0] != tc.from {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestWaitAndChanged(t *testing.T) {
	l := open(t, testConfig(t.TempDir()))
	if err := l.Wait(t.Context(), 0); err != nil {
		t.Error(err)
	}
	changed := l.Changed()
	waited := make(chan error, 1)
	go func() { waited <- l.Wait(context.Background(), 3) }()
	fill(t, l, "a", 2)
	<-changed
	if l.View().Revision() == 0 {
		t.Error("changed, but the view is that of the empty log")
	}
	fill(t, l, "b", 1)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Wait(ctx, 99); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
