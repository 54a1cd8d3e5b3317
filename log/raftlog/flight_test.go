package raftlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/varve-net/varve/log"
)

// An entry is taken out once, by whoever comes first, and known by its very bytes.
func TestFlight(t *testing.T) {
	var f flight
	entryOf := func(data string) *entry {
		e := &entry{data: []byte(data), durable: make(chan struct{})}
		f.add(e)
		return e
	}
	first, second := entryOf("same"), entryOf("same")
	if got := f.land([]byte("same")); got != nil {
		t.Error("bytes that were read from the disk are taken for an entry under way")
	}
	if got := f.land(second.data); got != second {
		t.Errorf("landed %p, want %p", got, second)
	}
	<-second.durable
	if f.lose(second) || f.land(second.data) != nil {
		t.Error("an entry was taken out twice")
	}
	select {
	case <-first.durable:
		t.Error("an entry that nobody took out lets the next one go")
	default:
	}
	if !f.lose(first) || f.land(first.data) != nil {
		t.Error("an entry that was lost landed")
	}
	<-first.durable
	if f.land(nil) != nil || len(f.entries) != 0 {
		t.Error("something is left")
	}
}

// pending proposes one event.
func pending(t *testing.T, l *Log, id string) log.Pending {
	t.Helper()
	p, err := l.Propose(t.Context(), namespaceSet("a", id))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// until waits for a condition that somebody else brings about.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// holdApplied lets the machine apply entries, but not show them: readers of the feed
// have its lock.
func holdApplied(l *Log) (release func()) {
	l.feed.mu.Lock()
	return sync.OnceFunc(l.feed.mu.Unlock)
}

// While an entry is applied, the next one is made durable and a third one gathers.
// Nobody is answered before all of it: durable, applied, and to be read.
func TestTheNextEntryIsSyncedMeanwhile(t *testing.T) {
	l := open(t, testConfig(t.TempDir()))
	fill(t, l, "before", 1)
	last := func() uint64 {
		n, err := l.files.entries.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := last()
	release := holdApplied(l)
	defer release()
	var all []log.Pending
	for i := range 5 {
		all = append(all, pending(t, l, fmt.Sprint(i)))
		if i < 2 {
			until(t, "an entry is durable", func() bool { return last() == before+uint64(i)+1 })
		}
	}
	// The machine holds the first, so Raft holds the second, and with that the proposer.
	if waiting, _ := l.queue.state(); waiting != 3 {
		t.Errorf("%d requests gather, want 3", waiting)
	}
	for i, p := range all {
		if p.Ready() {
			t.Errorf("event %d was answered before it could be read", i)
		}
	}
	if at := last(); at != before+2 {
		t.Errorf("Raft's last entry is %d, want %d", at, before+2)
	}
	release()
	for i, p := range all {
		results, err := p.Wait(t.Context())
		if err != nil || results[0].Outcome != log.OutcomeApplied || results[0].Revision != log.Revision(i)+2 {
			t.Errorf("event %d: %+v, %v", i, results, err)
		}
	}
	if at := last(); at != before+3 {
		t.Errorf("Raft's last entry is %d, want %d: the three had to share one", at, before+3)
	}
}

// A disk that fails under the second entry leaves the first one its answer: that is
// durable and applied. The second and all after it are told why.
func TestDiskFailsUnderTheNextEntry(t *testing.T) {
	dir := t.TempDir()
	l := open(t, testConfig(dir))
	release := holdApplied(l)
	defer release()
	first := pending(t, l, "first")
	until(t, "the first entry is being applied", func() bool {
		l.flight.mu.Lock()
		defer l.flight.mu.Unlock()
		return len(l.flight.entries) == 0
	})
	until(t, "the machine has passed its check of the log's end", func() bool {
		last, _ := l.history.Last()
		return last == 1
	})
	if err := l.files.entries.Close(); err != nil {
		t.Fatal(err)
	}
	second := pending(t, l, "second")
	until(t, "the log has stopped", func() bool { return l.Err() != nil })
	if _, err := l.Append(t.Context(), namespaceSet("a", "third")); !errors.Is(err, l.Err()) {
		t.Errorf("after the log's end: %v, want %v", err, l.Err())
	}
	if first.Ready() {
		t.Error("the first was answered before it could be read")
	}
	release()
	if results, err := first.Wait(t.Context()); err != nil || results[0].Revision != 1 {
		t.Errorf("the first is durable and applied, its answer is %+v, %v", results, err)
	}
	if _, err := second.Wait(t.Context()); !errors.Is(err, l.Err()) {
		t.Errorf("the second is on no disk: %v, want %v", err, l.Err())
	}
	if err := l.Close(context.Background()); err != nil {
		t.Logf("Close: %v", err)
	}
	l = open(t, testConfig(dir))
	if ids := allIDs(t, l); len(ids) != 1 || ids["first"] != 1 {
		t.Errorf("after a restart there is %v", ids)
	}
}

// Clients with several groups under way, who repeat some of them and give up others:
// each has its own events in its own order, once, under the revisions it was told, and
// reads what it wrote. Another state that applies the records one by one is the same.
func TestManyEntriesUnderWay(t *testing.T) {
	const clients, each, window = 12, 120, 7
	c := testConfig(t.TempDir())
	c.Linger = -1 // many small entries
	l := open(t, c)
	told := make([]map[string]log.Revision, clients)
	var wait sync.WaitGroup
	for client := range clients {
		told[client] = map[string]log.Revision{}
		random := rand.New(rand.NewPCG(uint64(client), 1))
		wait.Go(func() {
			if err := manyUnderWay(t.Context(), l, client, each, window, random, told[client]); err != nil {
				t.Errorf("client %d: %v", client, err)
			}
		})
	}
	wait.Wait()
	ids := allIDs(t, l)
	for client, revisions := range told {
		for id, revision := range revisions {
			if ids[id] != revision {
				t.Errorf("client %d was told that %s is at revision %d, it is at %d", client, id, revision, ids[id])
			}
		}
		for i := 1; i < each; i++ {
			before, after := ids[fmt.Sprintf("c%d-%d", client, i-1)], ids[fmt.Sprintf("c%d-%d", client, i)]
			if before >= after {
				t.Errorf("client %d: event %d is at revision %d, event %d at %d", client, i-1, before, i, after)
			}
		}
	}
	if err := l.Verify(t.Context(), 1); err != nil {
		t.Error(err)
	}
	sameAsReplay(t, l)
}

type sent struct {
	id      string
	pending log.Pending
	again   bool // the same was proposed before
}

// manyUnderWay proposes events to one stream and notes the revisions that it is told.
func manyUnderWay(ctx context.Context, l *Log, client, each, window int, random *rand.Rand, told map[string]log.Revision) error {
	name := fmt.Sprintf("ns%d", client)
	var under []sent
	last := log.Revision(0)
	settle := func() error {
		s := under[0]
		under = under[1:]
		results, err := s.pending.Wait(ctx)
		if err != nil {
			return err
		}
		r := results[0]
		switch {
		case s.again && (r.Outcome != log.OutcomeRepeat || r.Revision != told[s.id]):
			return fmt.Errorf("%s again: %+v, the first is at %d", s.id, r, told[s.id])
		case !s.again && (r.Outcome != log.OutcomeApplied || r.Revision <= last):
			return fmt.Errorf("%s: %+v after revision %d", s.id, r, last)
		case !s.again:
			told[s.id], last = r.Revision, r.Revision
		}
		view := l.View()
		if ns, ok := view.Namespace(name); view.Revision() < r.Revision || !ok || ns.Revision < r.Revision {
			return fmt.Errorf("%s was answered with revision %d, then the view is %d and has %+v", s.id, r.Revision, view.Revision(), ns)
		}
		return nil
	}
	propose := func(id string, again bool) error {
		p, err := l.Propose(ctx, namespaceSet(name, id))
		under = append(under, sent{id, p, again})
		return err
	}
	for i := range each {
		id := fmt.Sprintf("c%d-%d", client, i)
		err := propose(id, false)
		if err == nil && random.IntN(5) == 0 {
			err = propose(id, true)
		}
		if err == nil && random.IntN(5) == 0 {
			err = givenUp(ctx, l, fmt.Sprintf("given-up-%d-%d", client, i), random, told)
		}
		for err == nil && len(under) > window {
			err = settle()
		}
		if err != nil {
			return err
		}
	}
	for len(under) > 0 {
		if err := settle(); err != nil {
			return err
		}
	}
	return nil
}

// givenUp is an append whose context ends at some time. If it is answered all the same,
// the answer is its own.
func givenUp(ctx context.Context, l *Log, id string, random *rand.Rand, told map[string]log.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(random.IntN(2000))*time.Microsecond)
	defer cancel()
	results, err := l.Append(ctx, namespaceSet("given-up", id))
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	if err == nil {
		told[id] = results[0].Revision
	}
	return err
}
