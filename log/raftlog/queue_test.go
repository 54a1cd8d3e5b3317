package raftlog

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-net/varve/log"
)

func requestOf(ctx context.Context, name string, events, size int) *request {
	r := &request{ctx: ctx, size: size, answer: make(chan answer, 1)}
	for range events {
		r.events = append(r.events, []byte(name))
	}
	return r
}

func names(batch []*request) string {
	s := ""
	for _, r := range batch {
		s += string(r.events[0])
	}
	return s
}

// Entries are filled in order, groups stay whole, and who has given up is left
// out.
func TestQueueCut(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	ctx := t.Context()
	q := newQueue(&Config{MaxBatchEvents: 4, MaxBatchBytes: 100 + log.BatchOverhead})
	for _, r := range []*request{
		requestOf(ctx, "a", 2, 10), requestOf(gone, "x", 2, 90), requestOf(ctx, "b", 2, 10), // 4 events
		requestOf(ctx, "c", 1, 60), requestOf(ctx, "d", 1, 40), // 100 bytes
		requestOf(ctx, "e", 1, 50), requestOf(ctx, "f", 1, 51), // too many bytes together
		requestOf(gone, "y", 1, 1),
	} {
		if err := q.put(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"ab", "cd", "e", "f"} {
		batch, ok := q.take()
		if !ok || names(batch) != want {
			t.Errorf("took %q, %v; want %q", names(batch), ok, want)
		}
	}
	if waiting, _ := q.state(); waiting != 0 {
		t.Errorf("%d still wait", waiting)
	}
}

func TestQueueClose(t *testing.T) {
	q := newQueue(&Config{MaxBatchEvents: 4, MaxBatchBytes: 100})
	r := requestOf(t.Context(), "a", 1, 1)
	if err := q.put(r); err != nil {
		t.Fatal(err)
	}
	first, second := errors.New("first"), errors.New("second")
	q.close(first)
	q.close(second)
	if a := <-r.answer; a.err != first {
		t.Errorf("who waits gets %v", a.err)
	}
	if err := q.put(r); err != first {
		t.Errorf("who comes later gets %v", err)
	}
	if batch, ok := q.take(); ok {
		t.Errorf("took %q", names(batch))
	}
}

func TestQueueLinger(t *testing.T) {
	const linger = time.Millisecond
	for name, tc := range map[string]struct {
		recent, before int             // requests of the entry before, and that came meanwhile
		come           []time.Duration // when others come, after take began
		want           int
		at             time.Duration
	}{
		"a lone client goes at once":            {1, 0, []time.Duration{5 * linger}, 1, 5 * linger},
		"the first ever goes at once":           {0, 1, nil, 1, 0},
		"all who were answered are waited for":  {3, 1, []time.Duration{1, 2, 3, 4}, 4, 3},
		"not longer than the linger":            {3, 1, []time.Duration{1, 2 * linger}, 2, linger},
		"nothing is missing: nothing to wait":   {0, 3, []time.Duration{1}, 3, 0},
		"others came although none was waiting": {2, 0, []time.Duration{linger, linger + 5}, 2, linger + 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(&Config{MaxBatchEvents: 100, MaxBatchBytes: 10_000, Linger: linger})
				q.recent = tc.recent
				put := func() { q.put(requestOf(t.Context(), "r", 1, 1)) }
				for range tc.before {
					put()
				}
				for _, after := range tc.come {
					time.AfterFunc(after, put)
				}
				start := time.Now()
				batch, ok := q.take()
				if took := time.Since(start); !ok || len(batch) != tc.want || took != tc.at {
					t.Errorf("took %d after %v; want %d after %v", len(batch), took, tc.want, tc.at)
				}
				time.Sleep(time.Second) // the fake clock's: the timers above end in this bubble
			})
		})
	}
}

// A request whose Append has returned is not in the way of those who wait.
func TestAppendContextEnds(t *testing.T) {
	l := open(t, testConfig(t.TempDir()))
	for i := range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		id := fmt.Sprint("id", i)
		results, err := l.Append(ctx, namespaceSet("a", id))
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		// A retry with the same request id is safe, whatever became of the first.
		again := mustAppend(t, l, namespaceSet("a", id))[0]
		if err == nil && (again.Outcome != log.OutcomeRepeat || again.Revision != results[0].Revision) {
			t.Errorf("first %+v, then %+v", results[0], again)
		}
	}
	if head, _ := l.Head(); head != 50 {
		t.Errorf("head %d, want 50", head)
	}
}
