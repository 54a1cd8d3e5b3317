package history

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/varve-net/varve/log"
)

// Cursor reads records in order. It may be used beside the writer and beside
// other cursors, but by one goroutine at a time.
type Cursor struct {
	h        *History
	revision log.Revision // of the next record
	until    log.Revision // records before it can be read from seg
	seg      *segment
	frames   frames
}

// Cursor begins to read at a revision, which need not exist yet. The error is
// log.ErrCompacted if it is no longer kept.
func (h *History) Cursor(first log.Revision) (*Cursor, error) {
	if oldest := h.First(); first < oldest {
		return nil, fmt.Errorf("revision %d (the oldest kept is %d): %w", first, oldest, log.ErrCompacted)
	}
	return &Cursor{h: h, revision: first}, nil
}

// Next returns the next record; its Event is valid until the following call.
// io.EOF says that there is none yet: after an Append, Next goes on.
func (c *Cursor) Next() (log.Record, error) {
	if c.revision >= c.until {
		if err := c.advance(); err != nil {
			return log.Record{}, err
		}
	}
	for {
		offset := c.frames.offset
		frame, problem, err := c.frames.next()
		if errors.Is(err, io.EOF) {
			problem, err = fmt.Sprintf("segment ends before revision %d", c.revision), nil
		}
		if err != nil {
			return log.Record{}, fmt.Errorf("segment %s: %w", c.seg.name(), err)
		}
		var r log.Record
		if problem == "" {
			r, problem = parseRecord(frame)
		}
		if problem == "" && r.Revision > c.revision {
			problem = fmt.Sprintf("holds revision %d, should hold %d", r.Revision, c.revision)
		}
		if problem != "" {
			return log.Record{}, c.seg.corrupt(offset, c.revision, problem)
		}
		if r.Revision < c.revision {
			continue // between a mark and what was sought
		}
		c.revision++
		return r, nil
	}
}

// advance finds how far the current segment goes by now, or opens the one that
// holds the next revision.
func (c *Cursor) advance() error {
	seg, next, end := c.h.segmentOf(c.revision)
	if seg == nil {
		return io.EOF
	}
	if seg == c.seg {
		c.until, c.frames.end = next, end
		return nil
	}
	if err := c.Close(); err != nil {
		return err
	}
	f, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	at, err := seg.seek(f, c.revision)
	if err == nil && end == 0 {
		var info os.FileInfo
		if info, err = f.Stat(); err == nil {
			end = info.Size()
		}
	}
	if err != nil {
		f.Close()
		return err
	}
	c.seg, c.until = seg, next
	c.frames = frames{f: f, offset: at.offset, end: end, buf: c.frames.buf}
	return nil
}

// Close releases the cursor's file. Closing twice is harmless.
func (c *Cursor) Close() error {
	if c.frames.f == nil {
		return nil
	}
	err := c.frames.f.Close()
	c.seg, c.until, c.frames = nil, 0, frames{buf: c.frames.buf}
	return err
}
