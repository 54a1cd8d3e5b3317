// Package keeper looks after a node's history beside the appends: it writes
// checkpoints, so that any revision is a short replay away, packs sealed segments,
// lets go of what retention no longer keeps, and reads all of it once a day to find
// what was damaged.
//
// It works in the background and at most a twentieth of the time while events come
// in; what it skipped meanwhile it makes up for once they do not. Nothing waits for
// it, and nothing is lost when it fails: it says so and tries again.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// Log is what a keeper looks after: raftlog.Log.
type Log interface {
	View() fsm.View
	History() *history.History
	// Changed is closed when the head has moved.
	Changed() <-chan struct{}
	// Snapshot makes a snapshot of the head, so that a restart needs no record
	// before it.
	Snapshot(context.Context) error
	// CheckSpace is log.ErrNoSpace while so little is free that appends need it.
	CheckSpace() error
	// Sparing is a writer to w that fails with log.ErrNoSpace before what appends
	// need is used up.
	Sparing(w io.Writer) io.Writer
}

// Config is what a keeper is made of. A zero number means its default.
type Config struct {
	Log  Log
	Past *past.Past
	// Events, the rows that they changed, and Bytes, of records as they were appended,
	// are the distance of two checkpoints: the first to be reached counts. Rows bound
	// the time of a replay, whatever the events are, Bytes that of reading. Defaults
	// 65536, 262144 and 32 MiB.
	Events log.Revision
	Rows   uint64
	Bytes  int64
	// Records are kept as long as neither is exceeded; 0: for ever. What is kept
	// can always be replayed.
	MaxAge   time.Duration
	MaxBytes int64
	Logger   *slog.Logger
	Now      func() time.Time // default: the system's clock
}

const (
	defaultEvents = 65536
	defaultRows   = 4 * defaultEvents
	defaultBytes  = 32 << 20
	// pace is how long the head must have stood still for the node to count as
	// idle, and how often a busy one is looked at.
	pace = time.Second
	// rest is how much longer than it worked a keeper rests on a busy node.
	rest = 19
	// checkEvery is how often the whole history is read.
	checkEvery = 24 * time.Hour
	// retry is how long a keeper waits after an error.
	retry = 10 * time.Second
)

// Keeper looks after one history.
type Keeper struct {
	Config
	damaged map[log.Revision]bool // segments that could not be packed
	cost    uint64                // of the View of the newest checkpoint made here
	checked time.Time             // when the whole history was read last
}

// New makes a Keeper.
func New(config Config) *Keeper {
	if config.Events == 0 {
		config.Events = defaultEvents
	}
	if config.Rows == 0 {
		config.Rows = defaultRows
	}
	if config.Bytes == 0 {
		config.Bytes = defaultBytes
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Keeper{Config: config, damaged: map[log.Revision]bool{}}
}

// Run looks after the history until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	failing := false
	var seen log.Revision
	for ctx.Err() == nil {
		changed := k.Log.Changed()
		head := k.Log.View().Revision()
		began := time.Now()
		did, err := k.round(ctx, head == seen)
		wait := pace
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			failing, wait = true, retry
			k.Logger.Error("the history is not looked after; its records are safe, and it is tried again", "error", err)
		case failing:
			failing = false
			k.Logger.Info("the history is looked after again")
		}
		if did && err == nil {
			wait = pace
			if head != seen {
				wait = max(pace, rest*time.Since(began))
			}
		}
		idle := !did && head == seen && err == nil
		seen = head
		if idle {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			case <-time.After(time.Minute): // age counts, too
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// Due does all that is due at present, as on a busy node but without its rests.
func (k *Keeper) Due(ctx context.Context) error {
	for {
		if did, err := k.round(ctx, false); !did || err != nil {
			return err
		}
	}
}

// round does the next thing that is due, and reports whether there was any. Gaps
// between checkpoints are filled on an idle node only.
func (k *Keeper) round(ctx context.Context, idle bool) (did bool, err error) {
	for _, job := range []func(context.Context) (bool, error){k.checkpoint, k.pack, k.retain} {
		if did, err = job(ctx); did || err != nil {
			return did, err
		}
	}
	if !idle {
		return false, nil
	}
	for _, job := range []func(context.Context) (bool, error){k.check, k.beyond, k.fill} {
		if did, err = job(ctx); did || err != nil {
			return did, err
		}
	}
	return false, nil
}

// check reads the whole history from time to time, so that damage is known while
// there may still be a copy.
func (k *Keeper) check(ctx context.Context) (bool, error) {
	if now := k.Now(); now.Sub(k.checked) < checkEvery {
		return false, nil
	}
	h := k.Log.History()
	if err := h.Check(ctx); err != nil {
		return true, fmt.Errorf("check the history: %w", err)
	}
	k.checked = k.Now()
	for _, l := range h.Lost() {
		k.Logger.Error("a part of the history is lost; the rest is served", "first", l.First, "last", l.Last, "error", l.Err)
	}
	return true, nil
}

// beyond makes a checkpoint after the last loss: no replay leads over it.
func (k *Keeper) beyond(context.Context) (bool, error) {
	lost := k.Log.History().Lost()
	view := k.Log.View()
	if len(lost) == 0 || k.before(view.Revision()) >= lost[len(lost)-1].Last {
		return false, nil
	}
	return true, k.write(view)
}

// checkpoint keeps the newest state if it is far enough from the last one kept.
func (k *Keeper) checkpoint(context.Context) (bool, error) {
	view := k.Log.View()
	last := k.before(view.Revision())
	if view.Revision() <= last {
		return false, nil
	}
	if view.Cost() < k.cost {
		k.cost = 0 // another State: a restart, or a snapshot
	}
	if due := view.Revision()-last >= k.Events || view.Cost()-k.cost >= k.Rows; !due {
		bytes, err := k.bytesSince(last)
		if err != nil || bytes < k.Bytes {
			return false, err
		}
	}
	err := k.write(view)
	if err == nil {
		k.cost = view.Cost()
	}
	return true, err
}

// before is the newest checkpoint before a revision, or where the records begin.
func (k *Keeper) before(revision log.Revision) log.Revision {
	h := k.Log.History()
	found := h.First() - 1
	for _, at := range h.Checkpoints() {
		if at <= revision {
			found = max(found, at)
		}
	}
	return found
}

// bytesSince estimates the bytes of the records after a revision, packed or not.
func (k *Keeper) bytesSince(revision log.Revision) (int64, error) {
	segments, err := k.Log.History().Segments()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, s := range segments {
		if s.Last > revision {
			sum += s.Bytes * int64(s.Last-max(revision, s.First-1)) / int64(s.Last-s.First+1)
		}
	}
	return sum, nil
}

func (k *Keeper) write(view fsm.View) error {
	if err := k.Log.CheckSpace(); err != nil {
		return fmt.Errorf("checkpoint of revision %d: %w", view.Revision(), err)
	}
	began := time.Now()
	err := k.Log.History().WriteCheckpoint(view.Revision(), func(w io.Writer) error { return view.WriteSnapshot(k.Log.Sparing(w)) })
	if err == nil {
		k.Logger.Debug("wrote a checkpoint", "revision", view.Revision(), "took", time.Since(began))
	}
	return err
}

// pack packs the oldest sealed segment that is not.
func (k *Keeper) pack(context.Context) (bool, error) {
	h := k.Log.History()
	segments, err := h.Segments()
	if err != nil {
		return false, err
	}
	for _, s := range segments {
		if !s.Sealed || s.Packed || s.Damaged || k.damaged[s.First] {
			continue
		}
		if err := k.Log.CheckSpace(); err != nil {
			return true, fmt.Errorf("pack the history segment of revision %d: %w", s.First, err)
		}
		err := h.Pack(s.First)
		if errors.Is(err, log.ErrCorrupt) {
			// It stays as it is, for whoever restores it, and is said once.
			k.damaged[s.First] = true
			k.Logger.Error("a history segment is damaged", "error", err)
			return true, nil
		}
		return true, err
	}
	return false, nil
}

// fill makes the first checkpoint that is missing between two others, or before the
// newest state.
func (k *Keeper) fill(ctx context.Context) (bool, error) {
	h := k.Log.History()
	from := h.First() - 1
	for _, at := range append(h.Checkpoints(), k.Log.View().Revision()) {
		if at <= from {
			continue
		}
		if at-from > k.Events*3/2 {
			view, err := k.Past.Once(ctx, from+k.Events)
			if errors.Is(err, log.ErrCorrupt) {
				// Past the damage nothing can be replayed from here.
				k.Logger.Debug("no checkpoint behind damage", "error", err)
				from = at
				continue
			}
			if err != nil {
				return true, err
			}
			return true, k.write(view)
		}
		from = at
	}
	return false, nil
}
