package raftlog

import (
	"context"
	"sync"

	"github.com/varve-net/varve/log"
)

// feed holds the newest records in memory, so that readers at the tail do not
// touch the disk, and tells them of new ones. Older records are in history.
type feed struct {
	mu      sync.Mutex
	ring    []log.Record // of feedRecords, once there was one; a record's place is its revision modulo that
	held    int          // consecutive ones in it; the last one is the head
	bytes   int          // of their events
	head    log.Revision
	chain   log.Hash
	changed chan struct{} // closed when head moves; nil if no one has asked
}

// Bounds of what a feed holds; the first to be reached counts. An event's memory
// is that of its Raft entry, which is freed when its last event leaves.
const (
	feedRecords = 4096
	feedBytes   = 8 << 20
)

// reset makes the feed end at a revision without holding records.
func (f *feed) reset(head log.Revision, chain log.Hash) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ring, f.held, f.bytes = nil, 0, 0
	f.head, f.chain = head, chain
	f.wake()
}

// publish adds records that follow the head. It keeps their events.
func (f *feed) publish(records []log.Record) {
	if len(records) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ring == nil {
		f.ring = make([]log.Record, feedRecords)
	}
	for i := range records {
		r := &records[i]
		if f.held == feedRecords {
			f.forget(r.Revision - feedRecords)
		}
		*f.at(r.Revision) = *r
		f.held++
		f.bytes += len(r.Event)
		for f.held > 1 && f.bytes > feedBytes {
			f.forget(r.Revision + 1 - log.Revision(f.held))
		}
	}
	last := &records[len(records)-1]
	f.head, f.chain = last.Revision, last.Chain
	f.wake()
}

func (f *feed) at(revision log.Revision) *log.Record { return &f.ring[revision%feedRecords] }

// forget drops the oldest record.
func (f *feed) forget(oldest log.Revision) {
	r := f.at(oldest)
	f.bytes -= len(r.Event)
	f.held--
	*r = log.Record{}
}

func (f *feed) wake() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// last is the head and its chain value.
func (f *feed) last() (log.Revision, log.Hash) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.head, f.chain
}

// next is closed once the head has moved from what it is now.
func (f *feed) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nextLocked()
}

func (f *feed) nextLocked() <-chan struct{} {
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

// from copies records beginning with a revision into buf, as many as fit. With
// none: either the revision is older than what is held (wait is nil, head says
// how far history goes), or it does not exist yet (wait is closed when it may).
func (f *feed) from(revision log.Revision, buf []log.Record) (n int, head log.Revision, wait <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision > f.head {
		return 0, f.head, f.nextLocked()
	}
	behind := f.head - revision // of the head; 0 is the head itself
	if behind >= log.Revision(f.held) {
		return 0, f.head, nil
	}
	for n = 0; n < len(buf) && revision <= f.head; n++ {
		buf[n] = *f.at(revision)
		revision++
	}
	return n, f.head, nil
}

// wait returns once the head is at or after a revision, or a context or the log
// has ended (stopped).
func (f *feed) wait(ctx context.Context, revision log.Revision, stopped <-chan struct{}) (reached bool) {
	for {
		f.mu.Lock()
		if f.head >= revision {
			f.mu.Unlock()
			return true
		}
		changed := f.nextLocked()
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		case <-stopped:
			return false
		}
	}
}
