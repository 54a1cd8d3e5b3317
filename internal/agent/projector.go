package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/metrics"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// retryInterval is how soon a failed write to the kernel is tried again.
const retryInterval = time.Second

// projector makes the kernel follow the log: whenever the state has moved it
// brings the tables to the newest view, has the dataplane write the difference
// and tells those who wait. Many events between two rounds cost one round, and a
// round costs what its events touch.
type projector struct {
	node   string
	views  viewSource
	sync   syncFunc
	logger *slog.Logger
	// clean, if set, removes what a round's sync left, after those who wait know.
	clean func() error
	// observe, if set, is told of every round once those who wait for it know.
	observe func(metrics.Round)

	writing    sync.Mutex // held while a round writes, or someone reads what it wrote
	projection *projections.Projection

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every round's end
	current *projections.Tables
	view    fsm.View     // that current is built from
	tried   log.Revision // newest revision of which the outcome is known
	err     error        // why tried is not in force
}

// viewSource is the log as the projector needs it.
type viewSource interface {
	View() fsm.View
	// Wait returns once the state is at least at the given revision.
	Wait(ctx context.Context, revision log.Revision) error
}

// syncFunc makes the kernel equal to tables, to which a delta leads; see
// dataplane.Syncer.SyncDelta.
type syncFunc func(context.Context, *projections.Tables, projections.Delta) (dataplane.Stats, error)

func newProjector(node string, views viewSource, sync syncFunc, logger *slog.Logger) *projector {
	return &projector{
		node: node, views: views, sync: sync, logger: logger, changed: make(chan struct{}),
		projection: projections.New(node, projections.Options{}),
	}
}

// tables brings the tables to a view. Should what is kept of earlier views be the
// reason of an error, building them from scratch has none.
func (p *projector) tables(view fsm.View) (*projections.Tables, projections.Delta, error) {
	tables, delta, err := p.projection.Update(view)
	if err == nil || errors.Is(err, projections.ErrUnknownNode) {
		return tables, delta, err
	}
	p.logger.Warn("tables are built from scratch", "revision", view.Revision(), "error", err)
	return p.projection.Update(view)
}

// round brings the kernel to the newest view.
func (p *projector) round(ctx context.Context) (dataplane.Stats, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	view := p.views.View()
	seen := metrics.Round{Revision: view.Revision()}
	if self, ok := view.Node(p.node); ok {
		seen.JournalSeq = self.JournalSeq
	}
	began := time.Now()
	tables, delta, err := p.tables(view)
	seen.Build, seen.Tables = time.Since(began), tables
	var stats dataplane.Stats
	if err == nil {
		if stats, err = p.sync(ctx, tables, delta); err != nil && ctx.Err() == nil {
			p.logger.Warn("tables will be built from scratch", "revision", view.Revision(), "error", err)
			p.projection.Forget()
		}
		seen.Sync = time.Since(began) - seen.Build
	}
	if p.observe != nil {
		seen.Ended, seen.Stats, seen.Err = time.Now(), stats, err
		defer p.observe(seen)
	}
	err = p.tell(view, tables, err)
	if err == nil && p.clean != nil {
		if err = p.clean(); err != nil {
			p.projection.Forget()
			err = p.tell(view, tables, err)
		}
	}
	return stats, err
}

// tell lets those who wait know what became of a view.
func (p *projector) tell(view fsm.View, tables *projections.Tables, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tried = view.Revision()
	if p.err = err; err == nil {
		p.current, p.view = tables, view
	} else {
		p.err = fmt.Errorf("revision %d: %w", view.Revision(), err)
	}
	close(p.changed)
	p.changed = make(chan struct{})
	return p.err
}

// run follows the log until ctx ends.
func (p *projector) run(ctx context.Context) error {
	for {
		p.mu.Lock()
		next, failed := p.tried+1, p.err != nil
		p.mu.Unlock()

		wait, cancel := ctx, context.CancelFunc(func() {})
		if failed {
			wait, cancel = context.WithTimeout(ctx, retryInterval)
		}
		err := p.views.Wait(wait, next)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !(failed && errors.Is(err, context.DeadlineExceeded)):
			return err
		}
		began := time.Now()
		stats, err := p.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			p.logger.Error("tables are not in force; the last ones stay", "error", err)
		case stats.Total() > 0:
			p.logger.Debug("tables in force", "revision", p.Current().Revision, "rows", stats.Total(), "took", time.Since(began))
		}
	}
}

// Wait implements apiserver.Projector.
func (p *projector) Wait(ctx context.Context, revision log.Revision) error {
	for {
		p.mu.Lock()
		current, tried, err, changed := p.current, p.tried, p.err, p.changed
		p.mu.Unlock()
		if current != nil && current.Revision >= revision {
			return nil
		}
		if tried >= revision && err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Current implements apiserver.Projector.
func (p *projector) Current() *projections.Tables {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// inForce is the state that is in force and its tables.
func (p *projector) inForce() (fsm.View, *projections.Tables) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view, p.current
}

// Hold implements apiserver.Projector.
func (p *projector) Hold(ctx context.Context, fn func(fsm.View, *projections.Tables) error) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	view, tables := p.view, p.current
	p.mu.Unlock()
	return fn(view, tables)
}

// Err implements apiserver.Projector.
func (p *projector) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
