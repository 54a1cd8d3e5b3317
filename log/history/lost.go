package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
)

// Lost is records that cannot be read.
type Lost struct {
	First, Last log.Revision
	// Err is a *log.CorruptError, which names the place and the remedy.
	Err error
}

// Lost lists what is known to be lost, ascending: what Open met, and what the last
// Check found. A read of any of it fails.
func (h *History) Lost() []Lost {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Clone(h.lost)
}

// lose notes a loss.
func (h *History) lose(first, last log.Revision, err error) {
	if first > last {
		return
	}
	h.logger.Error("a part of the history is lost; the rest is served", "first", first, "last", last, "error", err)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost = append(h.lost, Lost{first, last, err})
	slices.SortFunc(h.lost, byFirst)
}

func byFirst(a, b Lost) int { return cmp.Compare(a.First, b.First) }

// ended notes that the history ends before it should.
func (h *History) ended(damage error) {
	h.damage = damage
	h.logger.Error("the history is damaged; what lies before can be read", "error", damage)
}

// openDamaged keeps the last segment as it is, like a sealed one, because there is
// something at seg.end that is no record and no torn end: what is whole after it can
// still be read, and what comes is written to the next segment.
func (h *History) openDamaged(f *os.File, seg *segment, size int64, chain log.Hash, problem string) error {
	at := seg.end
	err := walkWhole(f, at, size, seg.next, func(r *log.Record, offset int64, after bool) {
		if after {
			h.lose(seg.next, r.Revision-1, seg.corrupt(at, seg.next, fmt.Sprintf(
				"%s, yet revision %d lies whole at offset %d, so this is no torn end", problem, r.Revision, offset)))
		}
		seg.next, chain, at, problem = r.Revision+1, r.Chain, offset+int64(recordSize(r)), "no record lies here"
	})
	if err != nil {
		return err
	}
	return h.sealAsIs(f, seg, chain)
}

// openHeadless is openDamaged of a segment whose header is none. Nothing in it can be
// read; it is kept under its name if it holds records, which then are lost, and put
// aside otherwise.
func (h *History) openHeadless(f *os.File, seg *segment, first log.Revision, size int64, cause error) error {
	seg.first, seg.next, seg.bad = first, first, cause
	var chain log.Hash
	err := walkWhole(f, headerSize, size, first, func(r *log.Record, _ int64, _ bool) { seg.next, chain = r.Revision+1, r.Chain })
	if err != nil {
		return err
	}
	if seg.next > first {
		h.lose(first, seg.next-1, cause)
		return h.sealAsIs(f, seg, chain)
	}
	if h.readOnly {
		err = h.openBefore(first)
	} else {
		err = errors.Join(f.Close(), h.putAside(seg, cause))
	}
	h.ended(cause)
	return err
}

// asideSuffix ends the name of a segment in which nothing is whole.
const asideSuffix = ".damaged"

// putAside makes room for the revision that a segment in which nothing is whole begins
// with.
func (h *History) putAside(seg *segment, cause error) error {
	aside := seg.path + asideSuffix
	h.logger.Error("a history segment in which nothing is whole is put aside", "segment", seg.path, "as", aside, "error", cause)
	if err := errors.Join(os.Rename(seg.path, aside), durable.SyncDir(h.dir)); err != nil {
		return err
	}
	return h.openBefore(seg.first)
}

// sealAsIs makes a segment one that is not written to any more.
func (h *History) sealAsIs(f *os.File, seg *segment, chain log.Hash) error {
	if !h.readOnly {
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	seg.end, seg.indexed, seg.marks = 0, false, nil
	h.chain = chain
	h.segments = append(h.segments, seg)
	return nil
}

// Skip goes on after a revision, whose chain value is given, although the records from
// the last one on up to it are missing. They count as lost.
func (h *History) Skip(to log.Revision, chain log.Hash) error {
	last, _ := h.Last()
	if to <= last {
		return nil
	}
	h.mu.RLock()
	var before *segment
	if n := len(h.segments); n > 0 {
		before = h.segments[n-1]
	}
	h.mu.RUnlock()
	lost := &log.CorruptError{Revision: last + 1, What: fmt.Sprintf("history %s ends before revision %d; %s", h.dir, last+1, remedyMissing)}
	if before == nil {
		return h.beginOver(to, chain, lost)
	}
	h.syncing.Lock()
	defer h.syncing.Unlock()
	if err := h.syncLocked(); err != nil {
		return err
	}
	if _, err := h.begin(to+1, chain); err != nil {
		return fmt.Errorf("history %s: %w", h.dir, err)
	}
	h.synced = to
	h.mu.Lock()
	before.next = to + 1
	h.chain = chain
	h.mu.Unlock()
	h.lose(last+1, to, lost)
	return nil
}

// beginOver is Skip in a history of which nothing is there. The floor keeps it known.
func (h *History) beginOver(to log.Revision, chain log.Hash, lost error) error {
	first := max(h.floor, 1)
	if err := h.setFloor(first); err != nil {
		return fmt.Errorf("history %s: %w", h.dir, err)
	}
	if err := h.Begin(to, chain); err != nil {
		return err
	}
	h.lose(first, to, lost)
	return nil
}

// remedyMissing is what an operator can do about records that are not there.
const remedyMissing = "restore the files of the history from a copy of the directory"

// Check reads every record, and makes Lost what it finds: what does not have its
// checksum, is missing, or is not of the chain. A segment of another chain is not read
// any more. It may run beside appends and reads. The error is ctx's or the disk's.
func (h *History) Check(ctx context.Context) error {
	last, _ := h.Last()
	c := checker{h: h, revision: h.First()}
	for c.revision <= last {
		if err := c.span(ctx, last); err != nil {
			return err
		}
	}
	c.foreign()
	slices.SortFunc(c.lost, byFirst)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lost {
		if l.Last < h.segments[0].first { // skipped at the beginning
			c.lost = append([]Lost{l}, c.lost...)
		}
	}
	h.lost = c.lost
	return nil
}

// checker is a Check at work.
type checker struct {
	h        *History
	revision log.Revision
	seg      *segment // of the revision before
	chain    log.Hash // at the revision before, if known
	known    bool
	lost     []Lost
	bounds   []bound
}

// bound is where one segment goes over into the next.
type bound struct {
	before, after *segment
	chain         log.Hash // at the end of before
}

// lose notes that records are lost, and goes on after them.
func (c *checker) lose(next log.Revision, err error) {
	if n := len(c.lost); n > 0 && c.lost[n-1].Last+1 == c.revision {
		c.lost[n-1].Last = next - 1
	} else {
		c.lost = append(c.lost, Lost{c.revision, next - 1, err})
	}
	c.revision, c.known = next, false
}

// span reads on until something is lost, or up to last.
func (c *checker) span(ctx context.Context, last log.Revision) error {
	cursor, err := c.h.Cursor(c.revision)
	if errors.Is(err, log.ErrCompacted) { // meanwhile
		c.revision, c.known = c.h.First(), false
		return nil
	}
	if err != nil {
		return err
	}
	defer cursor.Close()
	for c.revision <= last {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := cursor.Next()
		switch {
		case errors.Is(err, log.ErrCorrupt):
			c.lose(c.h.wholeAfter(c.revision), err)
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, log.ErrCompacted):
			c.revision, c.known = max(c.revision+1, c.h.First()), false
			return nil
		case err != nil:
			return err
		}
		seg := cursor.seg
		if r.Revision == seg.first {
			if c.known {
				c.bounds = append(c.bounds, bound{c.seg, seg, c.chain})
			}
			c.chain, c.known = seg.before, true
		}
		if want := log.Next(c.chain, log.Leaf(r.Event)); c.known && want != r.Chain {
			// Its checksum is right: it was not damaged but written so.
			c.condemn(seg, seg.corrupt(cursor.at, r.Revision, fmt.Sprintf("chain value is %s and should be %s", r.Chain, want)))
			return nil
		}
		c.seg, c.chain, c.known = seg, r.Chain, true
		c.revision++
	}
	return nil
}

// foreign condemns segments of another chain. The last one is of this: the state goes
// on from it. Where two meet that do not continue each other, the earlier one is not.
func (c *checker) foreign() {
	var other *segment
	for _, b := range slices.Backward(c.bounds) {
		if continues := b.chain == b.after.before; continues != (b.after == other) {
			continue
		}
		other = b.before
		err := other.corrupt(0, other.first, fmt.Sprintf("it ends in chain %s, the segment after it continues %s: it is of another log", b.chain, b.after.before))
		c.condemn(other, err)
	}
}

// condemn has nothing of a segment read any more, and goes on after it.
func (c *checker) condemn(seg *segment, err error) {
	c.lost = slices.DeleteFunc(c.lost, func(l Lost) bool { return l.First >= seg.first && l.Last < seg.next })
	c.lost = append(c.lost, Lost{seg.first, seg.next - 1, err})
	c.revision, c.known = seg.next, false
	h := c.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.segments, seg); i >= 0 && i < len(h.segments)-1 { // it may have been packed or dropped meanwhile
		h.segments[i] = &segment{path: seg.path, header: seg.header, next: seg.next, bad: err, exported: seg.exported}
	}
}

// wholeAfter is the first revision after one that is lost which may be whole.
func (h *History) wholeAfter(revision log.Revision) log.Revision {
	seg, next, _ := h.segmentOf(revision)
	switch {
	case seg == nil:
		return revision + 1
	case seg.bad != nil:
		return next
	}
	seg.mu.Lock()
	defer seg.mu.Unlock()
	if !seg.indexed || seg.end != 0 && seg.version == versionPlain {
		return revision + 1 // it is written to: its marks tell nothing of damage
	}
	for _, m := range seg.marks {
		if m.revision > revision {
			return m.revision
		}
	}
	return next
}
