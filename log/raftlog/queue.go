package raftlog

import (
	"sync"
	"time"

	"github.com/varve-net/varve/log"
)

// queue gathers the requests that wait for the next Raft entry.
type queue struct {
	maxEvents, maxBytes int
	linger              time.Duration

	mu      sync.Mutex
	waiting []*request
	refuse  error         // of what comes after close
	wake    chan struct{} // of capacity 1: something waits, or refuse is set

	recent int // requests in the entry before; of the proposer alone
}

func newQueue(c *Config) *queue {
	return &queue{
		maxEvents: c.MaxBatchEvents, maxBytes: c.MaxBatchBytes - log.BatchOverhead,
		linger: c.Linger, wake: make(chan struct{}, 1),
	}
}

// put adds a request, or refuses it after close.
func (q *queue) put(r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refuse != nil {
		return q.refuse
	}
	q.waiting = append(q.waiting, r)
	q.notify()
	return nil
}

func (q *queue) notify() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close makes put refuse and answers all that wait.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refuse != nil {
		return
	}
	q.refuse = err
	for _, r := range q.waiting {
		r.answer <- answer{err: err}
	}
	q.waiting = nil
	q.notify()
}

// state is how many requests wait, and whether the queue was closed.
func (q *queue) state() (waiting int, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting), q.refuse != nil
}

// take waits for requests and returns those of the next entry, in the order in
// which they came; false after close.
//
// The entry before is durable by now and is being applied: its clients are answered
// all at once, and come back within microseconds of each other. Without a linger the
// first of them would take along those that came meanwhile, and the rest the next
// entry: for ever two half-filled entries in turn. So take lingers until as many wait
// as came meanwhile and are answered, but no longer than the linger. A lone client
// never waits.
func (q *queue) take() ([]*request, bool) {
	waiting, closed := q.state()
	expect := waiting + q.recent
	for waiting == 0 && !closed {
		<-q.wake
		waiting, closed = q.state()
	}
	if q.linger > 0 && waiting < expect {
		timer := time.NewTimer(q.linger)
		for lingering := true; lingering && waiting < expect && !closed; waiting, closed = q.state() {
			select {
			case <-q.wake:
			case <-timer.C:
				lingering = false
			}
		}
		timer.Stop()
	}
	if closed {
		return nil, false
	}
	batch := q.cut()
	q.recent = len(batch)
	return batch, true
}

// cut removes what fits into one entry. Requests whose context has ended are
// dropped: their Append has returned.
func (q *queue) cut() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	var batch []*request
	events, bytes, n := 0, 0, 0
	for _, r := range q.waiting {
		if r.ctx.Err() == nil {
			if len(batch) > 0 && (events+len(r.events) > q.maxEvents || bytes+r.size > q.maxBytes) {
				break
			}
			batch = append(batch, r)
			events, bytes = events+len(r.events), bytes+r.size
		}
		n++
	}
	left := copy(q.waiting, q.waiting[n:])
	clear(q.waiting[left:])
	q.waiting = q.waiting[:left]
	return batch
}
