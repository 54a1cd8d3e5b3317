package history

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/varve-net/varve/log"
)

// reader reads the records of one segment in order.
type reader interface {
	// next returns the next record; its Event is valid until the following call.
	// Unless found says nothing but an offset, there is none.
	next() (log.Record, found)
}

// found is what lies where a reader looked for a record.
type found struct {
	offset  int64
	problem string // why it is none, in words
	// skips is set if what is damaged has a known end: the reader can go on, with
	// this revision or, of a plain record, whichever one follows (1).
	skips log.Revision
	err   error // io.EOF after the last record, or the file's
}

func (f *found) ok() bool { return f.problem == "" && f.err == nil }

// plain reads a plain segment.
type plain struct{ frames }

func (p *plain) next() (log.Record, found) {
	at := found{offset: p.offset}
	frame, problem, err := p.frames.next()
	if at.problem, at.err = problem, err; !at.ok() {
		return log.Record{}, at
	}
	r, problem := parseRecord(frame)
	if problem != "" {
		at.problem, at.skips = problem, 1
	}
	return r, at
}

// Cursor reads records in order. It may be used beside the writer and beside
// other cursors, but by one goroutine at a time.
type Cursor struct {
	h        *History
	revision log.Revision // of the next record
	until    log.Revision // records before it can be read from seg
	seg      *segment
	file     *os.File
	reader   reader
	at       int64 // the offset of the record that was read last, or of its block
	buf      []byte
}

// Cursor begins to read at a revision, which need not exist yet. The error is
// log.ErrCompacted if it is no longer kept.
func (h *History) Cursor(first log.Revision) (*Cursor, error) {
	if oldest := h.First(); first < oldest {
		return nil, compacted(first, oldest)
	}
	return &Cursor{h: h, revision: first}, nil
}

func compacted(revision, oldest log.Revision) error {
	return fmt.Errorf("revision %d (the oldest kept is %d): %w", revision, oldest, log.ErrCompacted)
}

// Next returns the next record; its Event is valid until the following call.
// io.EOF says that there is none yet: after an Append, Next goes on.
func (c *Cursor) Next() (log.Record, error) {
	if c.revision >= c.until {
		if err := c.advance(); err != nil {
			return log.Record{}, err
		}
	}
	var damage found // that was stepped over
	for {
		r, got := c.reader.next()
		c.at = got.offset
		switch {
		case got.err == nil && got.problem == "" && r.Revision < c.revision:
			continue // between a mark and what was sought
		case errors.Is(got.err, io.EOF):
			got.problem = fmt.Sprintf("segment ends before revision %d", c.revision)
		case got.err != nil:
			return log.Record{}, fmt.Errorf("segment %s: %w", c.seg.name(), got.err)
		case got.problem != "" && got.skips > 0 && got.skips <= c.revision:
			damage = got
			continue
		case got.problem == "" && r.Revision > c.revision:
			got.problem = fmt.Sprintf("holds revision %d, should hold %d", r.Revision, c.revision)
		}
		if got.problem != "" {
			if damage.problem != "" {
				got = damage
			}
			return log.Record{}, c.seg.corrupt(got.offset, c.revision, got.problem)
		}
		if r.Outcome == outcomeLeftOut {
			return r, c.leftOut(&r)
		}
		c.revision++
		return r, nil
	}
}

// ErrLeftOut is returned for a record that a filtered export does not hold.
var ErrLeftOut = errors.New("the export was filtered")

func (c *Cursor) leftOut(r *log.Record) error {
	c.revision++
	return fmt.Errorf("revision %d was left out of %s: %w", r.Revision, c.seg.path, ErrLeftOut)
}

// advance finds how far the current segment goes by now, or opens the one that
// holds the next revision.
func (c *Cursor) advance() error {
	for {
		seg, next, end := c.h.segmentOf(c.revision)
		switch {
		case seg == nil:
			return io.EOF
		case seg.bad != nil:
			return seg.bad
		case seg == c.seg:
			c.until = next
			if p, ok := c.reader.(*plain); ok {
				p.end = end
			}
			return nil
		}
		err := c.open(seg, next, end)
		switch again, _, _ := c.h.segmentOf(c.revision); {
		case err == nil:
			return nil
		case again != seg: // it was packed or dropped meanwhile
			if oldest := c.h.First(); c.revision < oldest {
				return compacted(c.revision, oldest)
			}
		case errors.Is(err, fs.ErrNotExist):
			return seg.corrupt(0, c.revision, "the segment is missing")
		default:
			return err
		}
	}
}

func (c *Cursor) open(seg *segment, next log.Revision, end int64) error {
	if err := c.Close(); err != nil {
		return err
	}
	f, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	if err := c.start(f, seg, next, end); err != nil {
		f.Close()
		return err
	}
	return nil
}

func (c *Cursor) start(f *os.File, seg *segment, next log.Revision, end int64) error {
	head, err := readHeader(f, seg.path, seg.first)
	if err != nil {
		return err
	}
	if head.version != seg.version {
		if head.before != seg.before {
			return seg.corrupt(0, seg.first, "the file is of another history")
		}
		// Pack has replaced the file, with the same records, and not told yet.
		seg, end = &segment{path: seg.path, header: head, next: seg.next}, 0
	}
	at, err := seg.seek(f, c.revision)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if end == 0 {
		end = info.Size()
	}
	if seg.version == versionPacked {
		c.reader = &blocks{f: f, size: end, offset: at.offset}
	} else {
		c.reader = &plain{frames{f: f, offset: at.offset, end: end, buf: c.buf}}
	}
	c.seg, c.file, c.until = seg, f, next
	return nil
}

// Close releases the cursor's file. Closing twice is harmless.
func (c *Cursor) Close() error {
	if c.file == nil {
		return nil
	}
	if p, ok := c.reader.(*plain); ok {
		c.buf = p.buf
	}
	err := c.file.Close()
	c.seg, c.until, c.file, c.reader = nil, 0, nil, nil
	return err
}
