package journal

import (
	"errors"
	"fmt"
	"os"

	"github.com/varve-net/varve/internal/durable"
)

// Shipped says that the log has the records up to a number, so that compaction may
// drop those that are not live. It is not kept across a restart.
func (j *Journal) Shipped(seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.shipped = max(j.shipped, min(seq, j.last))
}

// Compact removes records that the log has and for which live, which is called for
// each of them by number, is false. Records that are appended meanwhile stay.
// Appends go on. ErrFull if there is no room to write what stays: then nothing
// has changed.
func (j *Journal) Compact(live func(seq uint64) bool) error {
	j.compacting.Lock()
	defer j.compacting.Unlock()
	j.mu.Lock()
	if j.err != nil {
		defer j.mu.Unlock()
		return j.err
	}
	// The last file is closed first: it must not be written to while it is copied.
	if err := j.seal(); err != nil {
		defer j.mu.Unlock()
		return fmt.Errorf("journal %s: %w", j.config.Dir, classify(err))
	}
	closed := j.segments[: len(j.segments)-1 : len(j.segments)-1]
	newest := j.segments[len(j.segments)-1]
	var stay []position
	gone := uint64(0)
	for _, p := range j.index {
		switch {
		case p.in == newest:
		case p.seq > j.shipped || live(p.seq):
			p.in.hold()
			stay = append(stay, p)
		default:
			gone = p.seq
		}
	}
	j.mu.Unlock()
	if len(closed) == 0 || gone == 0 && len(closed) == 1 {
		for _, p := range stay {
			_ = p.in.release() // read only
		}
		return nil
	}
	if err := j.replace(closed, stay, gone); err != nil {
		return fmt.Errorf("journal %s: compact: %w", j.config.Dir, classify(err))
	}
	return nil
}

// seal begins another file, unless the last one is empty. A write that is under way
// goes on in the one that it began with, so its records stay.
func (j *Journal) seal() error {
	if j.writing || j.segments[len(j.segments)-1].size == int64(len(magic)) {
		return nil
	}
	return j.roll(j.next)
}

// replace puts one file with what stays in the place of the closed ones.
func (j *Journal) replace(closed []*segment, stay []position, gone uint64) error {
	records, err := readAll(stay)
	if err != nil {
		return err
	}
	merged := &segment{dir: j.config.Dir, first: closed[0].first, size: int64(len(magic))}
	next := merged.path() + ".next"
	if merged.file, err = os.OpenFile(next, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return err
	}
	merged.hold()
	b := []byte(magic)
	moved := make(map[uint64]position, len(records))
	for _, r := range records {
		moved[r.Seq] = position{r.Seq, merged, int64(len(b)), len(r.Data)}
		b = appendRecord(b, r.Seq, 0, r.Data)
	}
	merged.size = int64(len(b))
	_, err = merged.file.Write(b)
	if err == nil {
		err = merged.file.Sync()
	}
	if err == nil {
		err = os.Rename(next, merged.path())
	}
	if err != nil {
		return errors.Join(err, merged.release(), os.Remove(next))
	}
	errs := []error{durable.SyncDir(j.config.Dir)}
	for _, s := range closed[1:] { // oldest first, see doc.go
		errs = append(errs, os.Remove(s.path()))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	is := make(map[*segment]bool, len(closed))
	for _, s := range closed {
		is[s] = true
	}
	index := make([]position, 0, len(j.index))
	for _, p := range j.index {
		if !is[p.in] {
			index = append(index, p)
		} else if at, ok := moved[p.seq]; ok {
			index = append(index, at)
		}
	}
	j.index = index
	j.segments = append([]*segment{merged}, j.segments[len(closed):]...)
	j.dropped = max(j.dropped, gone)
	for _, s := range closed {
		errs = append(errs, s.release())
	}
	return errors.Join(errs...)
}

// Reset forgets everything and goes on after a number: for a journal that was lost
// while the log had more of it.
func (j *Journal) Reset(last uint64) error {
	j.compacting.Lock()
	defer j.compacting.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	if j.writing {
		return fmt.Errorf("journal %s: reset while something is appended", j.config.Dir)
	}
	if last < j.last {
		return fmt.Errorf("journal %s: reset to %d, but it is at %d already", j.config.Dir, last, j.last)
	}
	old := j.segments
	j.next, j.last = last+1, last
	if old[len(old)-1].first == j.next {
		j.segments = old[len(old)-1:]
		old = old[:len(old)-1]
	} else {
		j.segments = nil
		if err := j.roll(j.next); err != nil {
			j.segments = old
			return fmt.Errorf("journal %s: reset: %w", j.config.Dir, classify(err))
		}
	}
	var errs []error
	for _, s := range old {
		errs = append(errs, os.Remove(s.path()), s.release())
	}
	j.index, j.dropped, j.shipped = nil, last, last
	return errors.Join(errs...)
}
