package past

import (
	"context"
	"fmt"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/replay"
	"github.com/varve-net/varve/log"
)

// Verified is what Verify found.
type Verified struct {
	First, Last log.Revision
	Chain       log.Hash // at Last
	// From is where the replay began: 0, or the oldest checkpoint.
	From log.Revision
	// Digest is that of the state to which the replay led; zero if there was none.
	Digest      log.Hash
	Checkpoints int // that were compared with the replay
}

// Verifier checks stored bytes: history.History.
type Verifier interface {
	// Verify checks every record from a revision on: its checksum, that none is
	// missing, and the hash chain.
	Verify(ctx context.Context, from log.Revision) error
}

// Verify checks all that is kept, up to a revision: the records' checksums, density
// and chain, then replays them and compares outcomes, times and every checkpoint
// with the replay. The error is ctx's or a *log.CorruptError that names the first
// bad revision and what it is in.
func (p *Past) Verify(ctx context.Context, store Verifier, last log.Revision) (Verified, error) {
	v := Verified{First: p.Log.First(), Last: last}
	if err := store.Verify(ctx, 1); err != nil {
		return v, err
	}
	if last == 0 {
		return v, nil
	}
	// Nothing that was kept of earlier answers is used: what is on disk is asked.
	state, err := p.oldestState(ctx)
	if err != nil {
		return v, err
	}
	v.From = state.View().Revision()
	for _, at := range p.checkpointsUpTo(last) {
		if at < v.From {
			continue
		}
		if err := replay.Run(ctx, p.Log, at, state); err != nil {
			return v, err
		}
		if err := p.compare(ctx, at, state.View()); err != nil {
			return v, err
		}
		v.Checkpoints++
	}
	if err := replay.Run(ctx, p.Log, last, state); err != nil {
		return v, err
	}
	view := state.View()
	v.Chain, v.Digest = view.Chain(), view.Digest()
	if view.Revision() != last {
		return v, &log.CorruptError{Revision: view.Revision() + 1, What: "the record is missing"}
	}
	return v, nil
}

// oldestState is the state before the first record.
func (p *Past) oldestState(ctx context.Context) (*fsm.State, error) {
	first := p.Log.First()
	if first == 1 {
		return fsm.New(p.Cluster), nil
	}
	if p.Checkpoints != nil {
		for _, at := range p.Checkpoints.Checkpoints() {
			if at+1 < first {
				continue
			}
			return p.checkpoint(ctx, at)
		}
	}
	return nil, fmt.Errorf("records begin at revision %d and there is no checkpoint to replay them from: %w", first, log.ErrCompacted)
}

func (p *Past) checkpointsUpTo(last log.Revision) []log.Revision {
	if p.Checkpoints == nil {
		return nil
	}
	var out []log.Revision
	for _, at := range p.Checkpoints.Checkpoints() {
		if at <= last {
			out = append(out, at)
		}
	}
	return out
}

// compare holds a checkpoint to the state of its revision.
func (p *Past) compare(ctx context.Context, at log.Revision, want fsm.View) error {
	state, err := p.checkpoint(ctx, at)
	if err != nil {
		return err
	}
	if got := state.View(); got.Digest() != want.Digest() {
		return &log.CorruptError{Revision: at, What: fmt.Sprintf(
			"the checkpoint has state digest %s, a replay of the records gives %s", got.Digest(), want.Digest())}
	}
	return nil
}
