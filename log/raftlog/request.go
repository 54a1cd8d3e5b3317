package raftlog

import (
	"context"
	"sync"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// request is one Append: a group of events that is proposed whole.
type request struct {
	ctx    context.Context
	events [][]byte
	size   int         // bytes they take in a batch
	answer chan answer // of capacity 1, answered exactly once unless ctx ends

	buffer []byte // the events one behind the other
}

type answer struct {
	results []log.Result
	err     error
}

// requests are those whose answer was taken: nobody knows of them any more.
var requests = sync.Pool{New: func() any { return &request{answer: make(chan answer, 1)} }}

func newRequest(ctx context.Context) *request {
	r := requests.Get().(*request)
	r.ctx = ctx
	return r
}

// maxReuse is the largest buffer that a request keeps for the next one.
const maxReuse = 4096

// reuse makes a request another one's, once its answer was taken.
func (r *request) reuse() {
	if cap(r.buffer) > maxReuse {
		return
	}
	*r = request{events: r.events[:0], answer: r.answer, buffer: r.buffer[:0]}
	requests.Put(r)
}

// add encodes one more event.
func (r *request) add(e *eventpb.Event) error {
	start := len(r.buffer)
	b, err := log.AppendEvent(r.buffer, e)
	if err != nil {
		return err
	}
	r.buffer = b
	// When the buffer moves, the events before stay where they are.
	r.events = append(r.events, b[start:len(b):len(b)])
	r.size += len(b) - start + log.BatchEventOverhead
	return nil
}
