// Package past answers from the log what was: the state at any revision or time
// and the tables of any node then. It reads a running agent's log or an archive
// (a directory or an exported file) alike.
//
// The state at a revision is replayed from the nearest state before it that is
// known: the empty log, a checkpoint, or one that was asked for lately.
//
//	checkpoint        kept Views of the last question      revision asked for
//	    |..............|..........|.....|...|..|..............|
//	                              ^ a neighbour starts from the one before it
package past

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/replay"
	"github.com/varve-net/varve/log"
)

// Errors of this package. What wraps them names the revision or time.
var (
	// ErrFuture: the question is about a revision or a time that has not come.
	ErrFuture = errors.New("has not come yet")
	// ErrMoment: the text names no moment. The message says what does.
	ErrMoment = errors.New("is no revision and no time")
)

// Log is where a Past reads records: raftlog.Log, history.History or an Archive.
type Log interface {
	Head() (log.Revision, log.Hash)
	// First is the oldest revision kept.
	First() log.Revision
	Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error
}

// Checkpoints is a Log that keeps states beside its records.
type Checkpoints interface {
	// Checkpoints lists the revisions of which there is a checkpoint, ascending.
	Checkpoints() []log.Revision
	// OpenCheckpoint reads one, as View.WriteSnapshot wrote it.
	OpenCheckpoint(log.Revision) (io.ReadCloser, error)
}

// Config is what a Past is made of.
type Config struct {
	Log     Log
	Cluster string
	// Checkpoints is optional; without any, every answer is replayed from zero.
	Checkpoints Checkpoints
	// Now is what "-2h" counts back from; default: the system's clock.
	Now func() time.Time
	// Logger is told of checkpoints that are damaged; optional.
	Logger *slog.Logger
}

// Past answers questions about the past. It is safe for concurrent use; questions
// that need a replay are answered one after the other.
type Past struct {
	Config
	turn   chan struct{} // of capacity 1: held by who replays
	live   *fsm.State    // at the end of the last replay, or nil; the holder's
	views  *recent[log.Revision, fsm.View]
	tables tablesCache
}

// New makes a Past.
func New(config Config) *Past {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Past{Config: config, turn: make(chan struct{}, 1), views: newRecent[log.Revision, fsm.View](keptViews), tables: newTablesCache()}
}

// keptViews is how many Views are kept to start from. Each holds what changed
// between it and its neighbours, a few megabytes at most.
const keptViews = 40

// trail is how far before the revision asked for Views are kept on the way, so
// that an earlier neighbour is a short replay too.
var trail = [...]log.Revision{8192, 2048, 512, 128, 32}

// View is the state at a revision, exactly as every replica had it then. The
// error is ErrFuture, log.ErrCompacted, ctx's, or a *log.CorruptError that names
// the first record on the way that is damaged.
func (p *Past) View(ctx context.Context, revision log.Revision) (fsm.View, error) {
	if err := p.take(ctx); err != nil {
		return fsm.View{}, err
	}
	defer p.give()
	return p.view(ctx, revision)
}

// Once is View of a revision that will hardly be asked for again: it leaves what is
// kept for others as it is.
func (p *Past) Once(ctx context.Context, revision log.Revision) (fsm.View, error) {
	if err := p.take(ctx); err != nil {
		return fsm.View{}, err
	}
	state, err := p.start(ctx, revision, 0)
	p.give()
	if err == nil {
		err = replay.Run(ctx, p.Log, revision, state)
	}
	if err != nil {
		return fsm.View{}, fmt.Errorf("state at revision %d: %w", revision, err)
	}
	v := state.View()
	if v.Revision() != revision {
		return fsm.View{}, fmt.Errorf("state at revision %d: %w", revision, &log.CorruptError{Revision: v.Revision() + 1, What: "the record is missing"})
	}
	return v, nil
}

func (p *Past) take(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Past) give() { <-p.turn }

func (p *Past) view(ctx context.Context, revision log.Revision) (fsm.View, error) {
	head, _ := p.Log.Head()
	if revision > head {
		return fsm.View{}, fmt.Errorf("revision %d: %w; the newest is %d", revision, ErrFuture, head)
	}
	if v, ok := p.views.get(revision); ok {
		return v, nil
	}
	v, err := p.bring(ctx, revision, checkpointWorth)
	if errors.Is(err, log.ErrCorrupt) {
		// A checkpoint after the damage may serve what a replay over it cannot.
		v, err = p.bring(ctx, revision, 0)
	}
	if err != nil {
		return fsm.View{}, fmt.Errorf("state at revision %d: %w", revision, err)
	}
	return v, nil
}

// bring replays up to a revision, and keeps Views on the way. worth is how many events
// are rather replayed than a checkpoint read.
func (p *Past) bring(ctx context.Context, revision, worth log.Revision) (fsm.View, error) {
	state, err := p.next(ctx, revision, worth)
	if err != nil {
		return fsm.View{}, err
	}
	for _, stop := range stops(state.View().Revision(), revision) {
		if err := replay.Run(ctx, p.Log, stop, state); err != nil {
			return fsm.View{}, err
		}
		v := state.View()
		if v.Revision() != stop {
			return fsm.View{}, &log.CorruptError{Revision: v.Revision() + 1, What: "the record is missing"}
		}
		p.views.put(stop, v)
	}
	p.live = state
	return state.View(), nil
}

// next is start, or the State that the last replay left, if none is nearer: it goes on
// at no cost, and what changed since its last View is known (fsm.View.ChangesSince).
func (p *Past) next(ctx context.Context, revision, worth log.Revision) (*fsm.State, error) {
	live := p.live
	p.live = nil // should the replay fail, nobody goes on with half of it
	if live != nil {
		at := live.View().Revision()
		kept, _ := p.views.floor(revision)
		checkpoints := p.checkpointsBefore(revision)
		if at <= revision && kept.Revision() <= at && (len(checkpoints) == 0 || checkpoints[0] <= at+worth) {
			return live, nil
		}
	}
	return p.start(ctx, revision, worth)
}

// checkpointWorth is how many events are replayed in the time that it takes to read a
// checkpoint, or somewhat fewer.
const checkpointWorth = 8192

// stops are the revisions on the way at which to keep a View, the last is to.
func stops(from, to log.Revision) []log.Revision {
	var out []log.Revision
	for _, back := range trail {
		if to > back && to-back > from {
			out = append(out, to-back)
		}
	}
	return append(out, to)
}

// start makes the State from which the replay to a revision is shortest, but for what
// worth says.
func (p *Past) start(ctx context.Context, revision, worth log.Revision) (*fsm.State, error) {
	kept, ok := p.views.floor(revision)
	from := log.Revision(0)
	if ok {
		from = kept.Revision()
	}
	checkpoints := p.checkpointsBefore(revision)
	if worth > 0 && !ok {
		checkpoints = p.withNeighbours(checkpoints, revision)
	}
	var skipped error
	for _, at := range checkpoints {
		if ok && at <= from+worth {
			break
		}
		state, err := p.checkpoint(ctx, at)
		if err == nil {
			return state, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		skipped = errors.Join(skipped, err)
		p.Logger.Warn("a checkpoint is not used", "revision", at, "error", err)
	}
	if ok {
		return fsm.Resume(kept), nil
	}
	if first := p.Log.First(); first > 1 {
		return nil, errors.Join(fmt.Errorf("%w: the oldest that can be replayed is %s", log.ErrCompacted, p.oldest(first)), skipped)
	}
	return fsm.New(p.Cluster), nil
}

// neighbours is how far before a revision others will be asked for, farthest how long
// a replay may be to have them near.
const (
	neighbours = 512
	farthest   = 1 << 17
)

// withNeighbours leaves out a checkpoint shortly before a revision, if there is another
// to begin from: the revisions before the checkpoint would cost a replay of their own
// otherwise. The state of the checkpoint itself is read from it.
//
//	another               checkpoint     asked for
//	   |......................|...............|
//	                   neighbours of it
func (p *Past) withNeighbours(checkpoints []log.Revision, revision log.Revision) []log.Revision {
	if len(checkpoints) == 0 || checkpoints[0] == revision || revision-checkpoints[0] >= neighbours {
		return checkpoints
	}
	another := log.Revision(0)
	switch {
	case len(checkpoints) > 1:
		another = checkpoints[1]
	case p.Log.First() > 1:
		return checkpoints
	}
	if revision-another > farthest {
		return checkpoints
	}
	return checkpoints[1:]
}

// oldest names the oldest state that there is.
func (p *Past) oldest(first log.Revision) string {
	if p.Checkpoints != nil {
		if all := p.Checkpoints.Checkpoints(); len(all) > 0 {
			return fmt.Sprintf("revision %d", all[0])
		}
	}
	return fmt.Sprintf("none: records begin at revision %d and there is no checkpoint", first)
}

// checkpointsBefore lists the checkpoints at or before a revision from which its
// records are kept, the newest first.
func (p *Past) checkpointsBefore(revision log.Revision) []log.Revision {
	if p.Checkpoints == nil {
		return nil
	}
	first := p.Log.First()
	var out []log.Revision
	for _, at := range p.Checkpoints.Checkpoints() {
		if at <= revision && at+1 >= first {
			out = append([]log.Revision{at}, out...)
		}
	}
	return out
}

// checkpoint reads a checkpoint, and refuses it unless it is of the chain that the
// records have.
func (p *Past) checkpoint(ctx context.Context, at log.Revision) (*fsm.State, error) {
	r, err := p.Checkpoints.OpenCheckpoint(at)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	state, err := fsm.ReadSnapshot(r)
	if err != nil {
		return nil, fmt.Errorf("checkpoint of revision %d: %w", at, err)
	}
	return state, p.belongs(ctx, state.View(), at)
}

// belongs checks that a checkpoint is what its name says and of this log.
func (p *Past) belongs(ctx context.Context, v fsm.View, at log.Revision) error {
	problem := ""
	switch {
	case v.Revision() != at:
		problem = fmt.Sprintf("it is of revision %d", v.Revision())
	case v.Cluster() != p.Cluster:
		problem = fmt.Sprintf("it is of cluster %q, the log is of %q", v.Cluster(), p.Cluster)
	case at+1 == p.Log.First():
		if b, ok := p.Log.(interface{ Before() log.Hash }); ok && b.Before() != v.Chain() {
			problem = fmt.Sprintf("its chain value is %s, the records begin after %s", v.Chain(), b.Before())
		}
	case at >= p.Log.First():
		record, err := p.Record(ctx, at)
		if errors.Is(err, log.ErrCorrupt) {
			return p.leads(ctx, v, at)
		}
		if err != nil {
			return err
		}
		if record.Chain != v.Chain() || record.TimeNS != v.TimeNS() {
			problem = fmt.Sprintf("its chain value is %s, the record's is %s", v.Chain(), record.Chain)
		}
	}
	if problem == "" {
		return nil
	}
	return &log.CorruptError{Revision: at, What: "the checkpoint does not belong to the log: " + problem}
}

// leads checks that a checkpoint whose own record is lost is what the record after it
// continues.
func (p *Past) leads(ctx context.Context, v fsm.View, at log.Revision) error {
	head, chain := p.Log.Head()
	if at < head {
		next, err := p.Record(ctx, at+1)
		if err != nil {
			return err
		}
		if log.Next(v.Chain(), log.Leaf(next.Event)) == next.Chain {
			return nil
		}
	} else if v.Chain() == chain {
		return nil
	}
	return &log.CorruptError{Revision: at, What: fmt.Sprintf("the checkpoint does not belong to the log: its chain value %s is not what the records after it continue", v.Chain())}
}

// Record returns one record, with bytes of its own.
func (p *Past) Record(ctx context.Context, revision log.Revision) (log.Record, error) {
	if head, _ := p.Log.Head(); revision > head || revision == 0 {
		return log.Record{}, fmt.Errorf("revision %d: %w; the newest is %d", revision, ErrFuture, head)
	}
	var found log.Record
	err := p.Log.Read(ctx, revision, revision, func(r log.Record) error {
		found = r
		found.Event = append([]byte(nil), r.Event...)
		return nil
	})
	if err == nil && found.Revision != revision {
		err = &log.CorruptError{Revision: revision, What: "the record is missing"}
	}
	return found, err
}
