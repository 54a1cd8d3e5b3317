package past

import (
	"context"
	"errors"
	"fmt"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/replay"
	"github.com/varve-net/varve/log"
)

// Walk calls fn with the state at each of the revisions, which ascend, as one State
// passes through them: what changed between two of them is known
// (fsm.View.ChangesSince). It stops at the first error of fn, which it returns.
func (p *Past) Walk(ctx context.Context, revisions []log.Revision, fn func(fsm.View) error) error {
	if len(revisions) == 0 {
		return nil
	}
	if err := p.take(ctx); err != nil {
		return err
	}
	state, err := p.start(ctx, revisions[0], 0)
	p.give()
	if err != nil {
		return fmt.Errorf("state at revision %d: %w", revisions[0], err)
	}
	for _, at := range revisions {
		if err := replay.Run(ctx, p.Log, at, state); err != nil {
			return fmt.Errorf("state at revision %d: %w", at, err)
		}
		if err := fn(state.View()); err != nil {
			return err
		}
	}
	return nil
}

// Replayable is the oldest revision that can be told.
func (p *Past) Replayable() (log.Revision, error) {
	first := p.Log.First()
	if first == 1 {
		return 0, nil
	}
	if p.Checkpoints != nil {
		for _, at := range p.Checkpoints.Checkpoints() {
			if at+1 >= first {
				return at, nil
			}
		}
	}
	return 0, errors.Join(log.ErrCompacted, fmt.Errorf("records begin at revision %d and there is no checkpoint", first))
}
