package flows

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
)

// Read calls flow for each flow that was seen in a time, and gap for each part of
// it about which not all is known, both by age; gap may be nil. A flow that was seen
// over more than one block comes once for each. FromNS and toNS are nanoseconds
// since the Unix epoch, both inclusive. What is still in memory comes too. The first
// error of a function ends it.
func (s *Store) Read(ctx context.Context, fromNS, toNS int64, flow func(*Flow) error, gap func(Gap) error) error {
	return s.read(ctx, s.snapshot(), fromNS, toNS, flow, gap)
}

// Follow is Read of all from a moment until now, then it calls live once, then flow
// for each as it is seen, with a Count of 1, until ctx ends or a function fails. A
// reader that is too slow is told how many it missed by a Gap.
func (s *Store) Follow(ctx context.Context, fromNS int64, flow func(*Flow) error, gap func(Gap) error, live func() error) error {
	to := &follower{flows: make(chan Flow, followBuffer)}
	s.mu.Lock()
	segments := s.snapshotLocked()
	s.followers[to] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.followers, to)
		s.mu.Unlock()
	}()
	if err := s.read(ctx, segments, fromNS, s.now().UnixNano(), flow, gap); err != nil {
		return err
	}
	if err := live(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f := <-to.flows:
			s.mu.Lock()
			missed := to.missed
			to.missed = 0
			s.mu.Unlock()
			if missed > 0 && gap != nil {
				if err := gap(Gap{FromNS: f.FirstNS, ToNS: f.FirstNS, Overflowed: missed}); err != nil {
					return err
				}
			}
			if err := flow(&f); err != nil {
				return err
			}
		}
	}
}

// snapshot is the store as it is now, to be read without holding it up.
type snapshot struct {
	segments []segment
	pending  *block // what is still in memory; nil: nothing is ever there
}

func (s *Store) snapshot() snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshotLocked()
}

func (s *Store) snapshotLocked() snapshot {
	var out snapshot
	for _, seg := range s.segments {
		out.segments = append(out.segments, *seg)
	}
	if s.readOnly {
		return out
	}
	out.pending = &block{fromNS: s.fromNS, toNS: s.now().UnixNano(), gap: s.gap, overflowed: s.overflowed}
	for _, f := range s.counts {
		out.pending.fromNS = min(out.pending.fromNS, f.FirstNS)
		out.pending.flows = append(out.pending.flows, *f)
	}
	byAge(out.pending.flows)
	return out
}

func (s *Store) read(ctx context.Context, of snapshot, fromNS, toNS int64, flow func(*Flow) error, gap func(Gap) error) error {
	if gap == nil {
		gap = func(Gap) error { return nil }
	}
	w := window{fromNS: fromNS, toNS: toNS, seenTo: fromNS, flow: flow, gap: gap}
	for i := range of.segments {
		seg := &of.segments[i]
		if seg.toNS != 0 && seg.toNS < fromNS || seg.fromNS > toNS {
			continue
		}
		err := seg.read(seg.end, func(b *block, _ int64) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return w.block(b)
		})
		if problem, ok := errors.AsType[*problemError](err); ok {
			w.damage, err = seg.path+": "+problem.Error(), nil
		}
		if seg.damage != "" {
			w.damage = seg.path + ": " + seg.damage
		}
		// Expiry may have removed it since.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if of.pending != nil {
		if err := w.block(of.pending); err != nil {
			return err
		}
	}
	return w.end()
}

// window is a time of which blocks come in order.
type window struct {
	fromNS, toNS int64
	seenTo       int64 // all before it has been told
	damage       string
	flow         func(*Flow) error
	gap          func(Gap) error
}

func (w *window) block(b *block) error {
	if b.toNS < w.fromNS || b.fromNS > w.toNS {
		return nil
	}
	// Blocks follow each other without a gap, unless nobody watched in between.
	if b.fromNS > w.seenTo && (b.gap || w.damage != "" || w.seenTo == w.fromNS) {
		if err := w.gap(Gap{FromNS: w.seenTo, ToNS: b.fromNS, Damaged: w.damage}); err != nil {
			return err
		}
		w.damage = ""
	}
	if from, to := max(b.fromNS, w.fromNS), min(b.toNS, w.toNS); from < to && (b.lost > 0 || b.overflowed > 0) {
		if err := w.gap(Gap{FromNS: from, ToNS: to, Lost: b.lost, Overflowed: b.overflowed}); err != nil {
			return err
		}
	}
	w.seenTo = max(w.seenTo, b.toNS)
	for i := range b.flows {
		f := &b.flows[i]
		if f.LastNS < w.fromNS || f.FirstNS > w.toNS {
			continue
		}
		if err := w.flow(f); err != nil {
			return err
		}
	}
	return nil
}

// end tells what the blocks did not reach.
func (w *window) end() error {
	if w.seenTo < w.toNS {
		return w.gap(Gap{FromNS: w.seenTo, ToNS: w.toNS, Damaged: w.damage})
	}
	return nil
}

func byAge(all []Flow) {
	slices.SortFunc(all, func(x, y Flow) int { return cmp.Compare(x.FirstNS, y.FirstNS) })
}
