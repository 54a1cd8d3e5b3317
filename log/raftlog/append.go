package raftlog

import (
	"context"
	"fmt"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// Append implements log.Appender. Each event's time is set to the clock's as
// Append is called, so the caller must not share events with others. More errors
// than the interface names: log.ErrTooLarge for a group that does not fit into
// one Raft entry, log.ErrInvalid for no events or a nil one, log.ErrClosed, or
// what Err returns once the log has stopped by itself.
func (l *Log) Append(ctx context.Context, events ...*eventpb.Event) ([]log.Result, error) {
	r, err := l.put(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	select {
	case a := <-r.answer:
		r.reuse()
		return a.unpack()
	case <-ctx.Done(): // it may have been left out of its entry
		return r.ended(ctx)
	}
}

// Propose implements log.Proposer. A group whose ctx has ended when its turn comes
// is not proposed.
func (l *Log) Propose(ctx context.Context, events ...*eventpb.Event) (log.Pending, error) {
	r, err := l.put(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	return r, nil
}

// put makes events a request that waits for its entry.
func (l *Log) put(ctx context.Context, events []*eventpb.Event) (*request, error) {
	r, err := l.request(ctx, events)
	if err != nil {
		return nil, err
	}
	return r, l.queue.put(r)
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
	r := newRequest(ctx)
	now := c.Clock()
	for i, e := range events {
		if e == nil {
			return nil, fmt.Errorf("event %d of the group: %w: nil", i, log.ErrInvalid)
		}
		e.TimeUnixNs = now
		if err := r.add(e); err != nil {
			return nil, fmt.Errorf("event %d of the group: %w", i, err)
		}
	}
	if most := c.MaxBatchBytes - log.BatchOverhead; r.size > most {
		return nil, fmt.Errorf("a group of %d bytes, at most %d are allowed; append it in several: %w", r.size, most, log.ErrTooLarge)
	}
	return r, ctx.Err()
}
