package history

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
)

// Segment describes a segment to those who maintain a history.
type Segment struct {
	First, Last log.Revision
	Bytes       int64
	Sealed      bool // it is not written to any more
	Packed      bool
	Damaged     bool // nothing in it can be read
}

// Segments lists the segments, the oldest first.
func (h *History) Segments() ([]Segment, error) {
	h.mu.RLock()
	segments := slices.Clone(h.segments)
	out := make([]Segment, len(segments))
	for i, s := range segments {
		out[i] = Segment{s.first, s.next - 1, 0, i < len(segments)-1, s.version == versionPacked, s.bad != nil}
	}
	h.mu.RUnlock()
	for i, s := range segments {
		info, err := os.Stat(s.path)
		if err != nil {
			return nil, fmt.Errorf("history segment %s: %w", s.path, err)
		}
		out[i].Bytes = info.Size()
	}
	return out, nil
}

// Pack replaces the sealed segment that begins with a revision by one that holds
// the same records, compressed. It may run beside appends and reads. It checks
// every record on the way; a segment that is damaged stays as it is, and the error
// is a *log.CorruptError.
func (h *History) Pack(first log.Revision) error {
	if h.readOnly {
		return fmt.Errorf("history %s: %w", h.dir, errReadOnly)
	}
	h.mu.RLock()
	i := slices.IndexFunc(h.segments, func(s *segment) bool { return s.first == first })
	sealed := i >= 0 && i < len(h.segments)-1
	var old *segment
	if sealed {
		old = h.segments[i]
	}
	h.mu.RUnlock()
	switch {
	case !sealed:
		return fmt.Errorf("history %s: no sealed segment begins with revision %d", h.dir, first)
	case old.bad != nil:
		return old.bad
	case old.version == versionPacked:
		return nil
	}
	err := durable.Replace(old.path, fileMode, func(w io.Writer) error {
		if _, err := w.Write(appendHeader(nil, versionPacked, old.first, old.before)); err != nil {
			return err
		}
		return h.packInto(w, old)
	})
	if err != nil {
		return fmt.Errorf("pack history segment %s: %w", filepath.Base(old.path), err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.segments, old); i >= 0 {
		packed := &segment{path: old.path, header: old.header, next: old.next}
		packed.version = versionPacked
		h.segments[i] = packed
	}
	return nil
}

func (h *History) packInto(w io.Writer, old *segment) error {
	c, err := h.Cursor(old.first)
	if err != nil {
		return err
	}
	defer c.Close()
	b := blockBuilder{chain: old.before}
	for revision := old.first; revision < old.next; revision++ {
		r, err := c.Next()
		if err != nil {
			return err
		}
		if want := log.Next(b.chain, log.Leaf(r.Event)); want != r.Chain {
			return old.corrupt(c.at, revision, fmt.Sprintf("chain value is %s and should be %s", r.Chain, want))
		}
		b.add(&r)
		if b.full() {
			if _, err := w.Write(b.take()); err != nil {
				return err
			}
		}
	}
	if block := b.take(); block != nil {
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	_, err = w.Write(b.end(old.next))
	return err
}

// end is the mark after which nothing follows.
func (b *blockBuilder) end(next log.Revision) []byte {
	return b.pack(blockHeader{kind: blockEnd, first: next, before: b.chain, chain: b.chain}, nil)
}

// DropBefore removes the segments whose records are all before a revision, and the
// checkpoints before it that lead to nothing kept. Who calls it sees to it that
// what is kept can be replayed. The last segment always stays. It may run beside
// appends and reads; a read that is under way ends, or finds log.ErrCompacted.
func (h *History) DropBefore(first log.Revision) error {
	if h.readOnly {
		return fmt.Errorf("history %s: %w", h.dir, errReadOnly)
	}
	h.mu.RLock()
	n := 0
	for n < len(h.segments)-1 && h.segments[n].next <= first {
		n++
	}
	kept := log.Revision(0)
	if len(h.segments) > 0 {
		kept = h.segments[n].first
	}
	h.mu.RUnlock()
	// What is let go of is not to be missed by the next start.
	h.syncing.Lock()
	var err error
	if kept > h.floor {
		err = h.setFloor(kept)
	}
	h.syncing.Unlock()
	if err != nil {
		return fmt.Errorf("history %s: %w", h.dir, err)
	}
	h.mu.Lock()
	dropped := slices.Clone(h.segments[:n])
	h.segments = slices.Clone(h.segments[n:])
	h.lost = slices.DeleteFunc(h.lost, func(l Lost) bool { return l.Last < kept })
	h.mu.Unlock()
	var errs []error
	for _, s := range dropped {
		errs = append(errs, os.Remove(s.path))
	}
	for _, at := range h.Checkpoints() {
		if at+1 < kept {
			errs = append(errs, h.RemoveCheckpoint(at))
		}
	}
	if err := errors.Join(append(errs, durable.SyncDir(h.dir))...); err != nil {
		return fmt.Errorf("history %s: %w", h.dir, err)
	}
	return nil
}
