package raftlog

import (
	"context"
	"fmt"
	"time"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// Append implements log.Appender. Each event's time is set to the clock's as
// Append is called, so the caller must not share events with others. More errors
// than the interface names: log.ErrTooLarge for a group that does not fit into
// one Raft entry, log.ErrInvalid for no events or a nil one, log.ErrClosed, or
// what Err returns once the log has stopped by itself.
func (l *Log) Append(ctx context.Context, events ...*eventpb.Event) ([]log.Result, error) {
	p, err := l.Propose(ctx, events...)
	if err != nil {
		return nil, err
	}
	return p.Wait(ctx)
}

// Propose implements log.Proposer. A group whose ctx has ended when its turn comes
// is not proposed.
func (l *Log) Propose(ctx context.Context, events ...*eventpb.Event) (log.Pending, error) {
	r, err := l.request(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	if err := l.queue.put(r); err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	return r, nil
}

// Ready implements log.Pending.
func (r *request) Ready() bool { return len(r.answer) > 0 }

// Wait implements log.Pending.
func (r *request) Wait(ctx context.Context) ([]log.Result, error) {
	select {
	case a := <-r.answer:
		return a.unpack()
	default:
	}
	select {
	case a := <-r.answer:
		return a.unpack()
	case <-r.ctx.Done(): // it may have been left out of its entry
		return r.ended(r.ctx)
	case <-ctx.Done():
		return r.ended(ctx)
	}
}

func (r *request) ended(ctx context.Context) ([]log.Result, error) {
	select {
	case a := <-r.answer: // what is known counts more
		return a.unpack()
	default:
		return nil, fmt.Errorf("append: %w", ctx.Err())
	}
}

func (a answer) unpack() ([]log.Result, error) {
	if a.err != nil {
		return nil, fmt.Errorf("append: %w", a.err)
	}
	return a.results, nil
}

// request encodes events and checks that they fit into one entry.
func (l *Log) request(ctx context.Context, events []*eventpb.Event) (*request, error) {
	c := &l.config
	if len(events) == 0 {
		return nil, fmt.Errorf("%w: no events", log.ErrInvalid)
	}
	if len(events) > c.MaxBatchEvents {
		return nil, fmt.Errorf("%d events in one group, at most %d are allowed; append them in several: %w", len(events), c.MaxBatchEvents, log.ErrTooLarge)
	}
	r := &request{ctx: ctx, events: make([][]byte, len(events)), answer: make(chan answer, 1)}
	now := c.Clock()
	for i, e := range events {
		if e == nil {
			return nil, fmt.Errorf("event %d of the group: %w: nil", i, log.ErrInvalid)
		}
		e.TimeUnixNs = now
		b, err := log.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("event %d of the group: %w", i, err)
		}
		r.events[i] = b
		r.size += len(b) + log.BatchEventOverhead
	}
	if most := c.MaxBatchBytes - log.BatchOverhead; r.size > most {
		return nil, fmt.Errorf("a group of %d bytes, at most %d are allowed; append it in several: %w", r.size, most, log.ErrTooLarge)
	}
	return r, ctx.Err()
}

// propose turns requests into Raft entries until the queue is closed. One entry
// is in flight at a time: while it is being made durable, the next one gathers.
func (l *Log) propose() {
	defer close(l.proposer)
	for {
		batch, ok := l.queue.take()
		if !ok {
			return
		}
		if len(batch) == 0 {
			continue
		}
		began := time.Now()
		results, err := l.commit(batch)
		seen := Commit{Took: time.Since(began), Results: results, Err: err}
		for _, r := range batch {
			n := len(r.events)
			seen.Events += n
			if err != nil {
				r.answer <- answer{err: err}
				continue
			}
			r.answer <- answer{results: results[:n:n]}
			results = results[n:]
		}
		if l.config.Observe != nil {
			l.config.Observe(seen)
		}
		l.watchClock()
	}
}

// commit proposes one entry and returns the results of all its events once it
// is durable and applied.
func (l *Log) commit(batch []*request) ([]log.Result, error) {
	if err := l.config.checkSpace(l.config.ReserveBytes); err != nil {
		return nil, err
	}
	events := batch[0].events
	if len(batch) > 1 {
		events = nil
		for _, r := range batch {
			events = append(events, r.events...)
		}
	}
	f := l.raft.Apply(log.EncodeBatch(events), 0)
	// A client's context does not end the proposal: others are in the same entry.
	if err := l.await(context.Background(), f); err != nil {
		return nil, err
	}
	a := f.Response().(answer)
	return a.results, a.err
}
