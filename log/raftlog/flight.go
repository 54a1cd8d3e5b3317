package raftlog

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/varve-net/varve/log"
)

// entry is one Raft entry on its way from the queue to the answers.
type entry struct {
	batch   []*request
	data    []byte
	began   time.Time
	future  raft.Future   // Raft's answer; nil if it was not proposed
	durable chan struct{} // closed once it is, or has no prospect of it
	settled chan struct{} // closed once its requests are answered
}

// flight holds the entries that were proposed and are not yet durable, in order.
// Two take an entry out, whoever comes first: the machine that will apply it, or
// the watcher, once Raft gives it up. Who has taken it answers its requests.
type flight struct {
	mu      sync.Mutex
	entries []*entry
}

func (f *flight) add(e *entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries = append(f.entries, e)
}

// land takes out the entry of which Raft hands data to the machine: the very bytes
// that were proposed. It is nil for what comes from the disk.
func (f *flight) land(data []byte) *entry {
	return f.take(func(e *entry) bool { return len(data) > 0 && &e.data[0] == &data[0] })
}

// lose takes out an entry, if that has not been done.
func (f *flight) lose(lost *entry) bool {
	return f.take(func(e *entry) bool { return e == lost }) != nil
}

func (f *flight) take(which func(*entry) bool) *entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.entries, which)
	if i < 0 {
		return nil
	}
	e := f.entries[i]
	f.entries = slices.Delete(f.entries, i, i+1)
	close(e.durable)
	return e
}

// settle tells the observer of an entry and answers its requests: who has its answer
// finds it counted. Only who has taken the entry out calls it.
func (l *Log) settle(e *entry, results []log.Result, err error) {
	if l.config.Observe != nil {
		events := 0
		for _, r := range e.batch {
			events += len(r.events)
		}
		l.observing.Lock()
		l.config.Observe(Commit{Took: time.Since(e.began), Events: events, Results: results, Err: err})
		l.observing.Unlock()
	}
	for _, r := range e.batch {
		if err != nil {
			r.answer <- answer{err: err}
			continue
		}
		n := len(r.events)
		r.answer <- answer{results: results[:n:n]}
		results = results[n:]
	}
	close(e.settled)
}

// propose turns requests into Raft entries until the queue is closed. One entry at
// a time is made durable; the one before it is applied and answered meanwhile, and
// the one after it gathers.
func (l *Log) propose() {
	proposed := make(chan *entry, 1)
	go l.watch(proposed)
	defer close(proposed)
	for {
		batch, ok := l.queue.take()
		if !ok {
			return
		}
		if len(batch) == 0 {
			continue
		}
		e := &entry{batch: batch, began: time.Now(), durable: make(chan struct{}), settled: make(chan struct{})}
		if err := l.config.checkSpace(l.config.ReserveBytes); err != nil {
			l.settle(e, nil, err)
			proposed <- e
			continue
		}
		e.data = log.EncodeBatch(eventsOf(batch))
		l.flight.add(e)
		e.future = l.raft.Apply(e.data, 0)
		proposed <- e
		<-e.durable
	}
}

func eventsOf(batch []*request) [][]byte {
	if len(batch) == 1 {
		return batch[0].events
	}
	events := make([][]byte, 0, len(batch))
	for _, r := range batch {
		events = append(events, r.events...)
	}
	return events
}

// watch follows entries to their end, in order. One that Raft gives up, or that the
// log's end has overtaken, it answers.
func (l *Log) watch(proposed <-chan *entry) {
	defer close(l.watcher)
	for e := range proposed {
		if e.future != nil {
			// A client's context does not end the proposal: others are in the same entry.
			if err := l.await(context.Background(), e.future); err != nil && l.flight.lose(e) {
				l.settle(e, nil, err)
			}
		}
		<-e.settled
		l.watchClock()
	}
}
