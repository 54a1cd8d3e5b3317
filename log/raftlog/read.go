package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// View is the state of the head, or of a revision just before it.
func (l *Log) View() fsm.View { return *l.view.Load() }

// Head implements log.Reader.
func (l *Log) Head() (log.Revision, log.Hash) { return l.feed.last() }

// First implements log.Reader. It is 1 in an empty log.
func (l *Log) First() log.Revision { return l.history.First() }

// Changed is closed when the head has moved from what it is now. To follow the
// state: take Changed first, then View, then wait.
func (l *Log) Changed() <-chan struct{} { return l.feed.next() }

// Wait returns once a revision has been applied, so that a View taken then
// contains it. The error is ctx's or why the log has stopped.
func (l *Log) Wait(ctx context.Context, revision log.Revision) error {
	if l.feed.wait(ctx, revision, l.stopped) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("wait for revision %d: %w", revision, err)
	}
	return fmt.Errorf("wait for revision %d: %w", revision, l.Err())
}

// Read implements log.Reader. Revisions after the head do not exist yet and are
// left out.
func (l *Log) Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error {
	head, _ := l.Head()
	return l.history.Read(ctx, max(first, 1), min(last, head), fn)
}

// History is where records and checkpoints are kept. Only its readers, and what
// maintains it beside appends (checkpoints, Pack, DropBefore), are for others.
func (l *Log) History() *history.History { return l.history }

// Verify checks every record from a revision on, as history.Verify does.
func (l *Log) Verify(ctx context.Context, from log.Revision) error {
	return l.history.Verify(ctx, from)
}

// Snapshot makes a snapshot now and lets Raft compact its log. Raft makes them by
// itself, too.
func (l *Log) Snapshot(ctx context.Context) error {
	err := l.await(ctx, l.raft.Snapshot())
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// chunk is how many records Subscribe takes from memory at once.
const chunk = 256

// Subscribe implements log.Reader. It ends with log.ErrCompacted if the revision
// after the given one is no longer kept, and with Err if the log stops.
func (l *Log) Subscribe(ctx context.Context, after log.Revision, fn func(log.Record) error) error {
	buf := make([]log.Record, chunk)
	next := after + 1
	var cursor *history.Cursor
	defer func() {
		if cursor != nil {
			cursor.Close()
		}
	}()
	for {
		n, head, wait := l.feed.from(next, buf)
		switch {
		case n > 0:
			if cursor != nil {
				cursor.Close()
				cursor = nil
			}
			for _, r := range buf[:n] {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := fn(r); err != nil {
					return err
				}
				next++
			}
		case wait != nil:
			select {
			case <-wait:
			case <-ctx.Done():
				return ctx.Err()
			case <-l.stopped:
				return l.Err()
			}
		default:
			if cursor == nil {
				var err error
				if cursor, err = l.history.Cursor(next); err != nil {
					return err
				}
			}
			// Up to the head of a moment ago: by then the feed may hold the rest.
			for ; next <= head; next++ {
				if err := ctx.Err(); err != nil {
					return err
				}
				r, err := cursor.Next()
				if errors.Is(err, io.EOF) {
					return &log.CorruptError{Revision: next, What: "it is committed but not in history"}
				}
				if err != nil {
					return err
				}
				if err := fn(r); err != nil {
					return err
				}
			}
		}
	}
}
