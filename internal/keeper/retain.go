package keeper

import (
	"context"
	"errors"
	"fmt"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// retain lets go of the oldest segments that exceed the limits. What stays begins
// with a checkpoint, so every revision that is kept can be answered:
//
//	segments  | dropped | dropped |   kept   |   kept   | written to |
//	                              ^ a checkpoint of the revision before
func (k *Keeper) retain(ctx context.Context) (bool, error) {
	if k.MaxAge == 0 && k.MaxBytes == 0 {
		return false, nil
	}
	h := k.Log.History()
	segments, err := h.Segments()
	if err != nil {
		return false, err
	}
	first, err := k.keepFrom(ctx, segments)
	if err != nil || first <= h.First() {
		return false, err
	}
	if err := k.drop(ctx, first); err != nil {
		return true, fmt.Errorf("retention: let go of revisions %d to %d: %w", h.First(), first-1, err)
	}
	return true, nil
}

// keepFrom is the first revision of the oldest segment to keep.
func (k *Keeper) keepFrom(ctx context.Context, segments []history.Segment) (log.Revision, error) {
	keep := 0
	var bytes int64
	for i := len(segments) - 1; i >= 0; i-- {
		if bytes += segments[i].Bytes; k.MaxBytes > 0 && bytes > k.MaxBytes {
			keep = i + 1
			break
		}
	}
	if k.MaxAge > 0 {
		oldest := k.Now().Add(-k.MaxAge).UnixNano()
		for keep < len(segments)-1 {
			last, err := k.Past.Record(ctx, segments[keep].Last)
			if errors.Is(err, log.ErrCorrupt) {
				break // what is damaged has no age
			}
			if err != nil {
				return 0, err
			}
			if last.TimeNS >= oldest {
				break
			}
			keep++
		}
	}
	if keep = min(keep, len(segments)-1); keep < 0 {
		return 0, nil
	}
	return segments[keep].First, nil
}

// drop lets go of what is before a revision.
func (k *Keeper) drop(ctx context.Context, first log.Revision) error {
	h := k.Log.History()
	if k.before(first-1) != first-1 || first-1 < h.First() {
		view, err := k.Past.Once(ctx, first-1)
		if err != nil {
			return err
		}
		if err := k.write(view); err != nil {
			return err
		}
	}
	// A restart must not look for a record that is gone.
	if err := k.Log.Snapshot(ctx); err != nil {
		return err
	}
	from := h.First()
	if err := h.DropBefore(first); err != nil {
		return err
	}
	k.Logger.Info("retention let go of the oldest records", "from", from, "to", first-1)
	return nil
}
