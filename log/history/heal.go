package history

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
)

// Heal puts records, ascending, where they are lost: another source has them, which
// answers for what is in them. Each segment that they belong to is replaced by one that
// has them and all that was whole in it, if the hash chain leads through it; the damaged
// file is kept aside. It returns what is not lost any more. Records that belong to no
// sealed segment are left out. Nobody may append meanwhile.
//
//	damaged file   | whole | lost | lost | whole |      -> kept as *.damaged
//	records                       | given|
//	healed         | whole | lost | given| whole |
func (h *History) Heal(records []log.Record) (healed []Lost, err error) {
	if h.readOnly {
		return nil, fmt.Errorf("history %s: %w", h.dir, errReadOnly)
	}
	var errs []error
	for len(records) > 0 {
		seg, next, _ := h.segmentOf(records[0].Revision)
		n := 1
		for seg != nil && n < len(records) && records[n].Revision < next {
			n++
		}
		if seg != nil && h.sealed(seg) {
			if err := h.healSegment(seg, records[:n]); err != nil {
				errs = append(errs, fmt.Errorf("heal history segment %s: %w", seg.name(), err))
			} else {
				healed = append(healed, ranges(records[:n])...)
			}
		}
		records = records[n:]
	}
	h.found(healed)
	return healed, errors.Join(errs...)
}

// sealed tells whether a segment is not written to.
func (h *History) sealed(seg *segment) bool {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	return h.file == nil || seg != h.segments[len(h.segments)-1]
}

// ranges are the runs of revisions without a gap.
func ranges(records []log.Record) (out []Lost) {
	for i := range records {
		if n := len(out); n > 0 && out[n-1].Last+1 == records[i].Revision {
			out[n-1].Last++
		} else {
			out = append(out, Lost{First: records[i].Revision, Last: records[i].Revision})
		}
	}
	return out
}

// healSegment replaces a segment by a plain one that has the given records too.
func (h *History) healSegment(seg *segment, given []log.Record) error {
	head := header{versionPlain, seg.first, seg.before}
	if seg.bad != nil {
		var err error
		if head.before, err = h.beforeBad(seg); err != nil {
			return err
		}
	}
	err := durable.Replace(seg.path, fileMode, func(w io.Writer) error {
		if _, err := w.Write(appendHeader(nil, versionPlain, head.first, head.before)); err != nil {
			return err
		}
		if err := h.mend(w, seg, head.before, given); err != nil {
			return err
		}
		return keepAside(seg.path)
	})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.segments, seg); i >= 0 {
		h.segments[i] = &segment{path: seg.path, header: head, next: seg.next}
	}
	return nil
}

// beforeBad is the chain value before a segment whose header cannot be read.
func (h *History) beforeBad(seg *segment) (log.Hash, error) {
	anchors, err := h.readAnchors()
	if err != nil {
		return log.Hash{}, err
	}
	before, ok := anchors[seg.first]
	if !ok && seg.first > 1 {
		return log.Hash{}, seg.bad
	}
	return before, nil
}

// mend writes the records of a segment: its own where they are whole, else the given.
func (h *History) mend(w io.Writer, seg *segment, chain log.Hash, given []log.Record) error {
	var c *Cursor
	defer func() {
		if c != nil {
			_ = c.Close() // only read
		}
	}()
	known := true // that chain is the value at the revision before
	for revision := seg.first; revision < seg.next; revision++ {
		var r log.Record
		if len(given) > 0 && given[0].Revision == revision {
			if r, given = given[0], given[1:]; c != nil {
				_ = c.Close()
				c = nil
			}
		} else {
			var err error
			if c == nil {
				if c, err = h.Cursor(revision); err != nil {
					return err
				}
			}
			r, err = c.Next()
			if errors.Is(err, log.ErrCorrupt) {
				_ = c.Close()
				c, known = nil, false
				continue
			}
			if err != nil {
				return err
			}
		}
		if known && log.Next(chain, log.Leaf(r.Event)) != r.Chain {
			return seg.corrupt(0, revision, "the records that were to heal it do not continue its chain")
		}
		chain, known = r.Chain, true
		if _, err := w.Write(appendRecord(nil, &r)); err != nil {
			return err
		}
	}
	return nil
}

// keepAside gives a damaged file a second name, which it keeps when it is replaced.
func keepAside(path string) error {
	for n := 1; ; n++ {
		aside := path + asideSuffix
		if n > 1 {
			aside = fmt.Sprintf("%s.%d%s", path, n, asideSuffix)
		}
		if err := os.Link(path, aside); !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}

// found takes ranges out of what is lost.
func (h *History) found(healed []Lost) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range healed {
		var rest []Lost
		for _, l := range h.lost {
			if f.Last < l.First || f.First > l.Last {
				rest = append(rest, l)
				continue
			}
			if l.First < f.First {
				rest = append(rest, Lost{l.First, f.First - 1, l.Err})
			}
			if l.Last > f.Last {
				rest = append(rest, Lost{f.Last + 1, l.Last, l.Err})
			}
		}
		h.lost = rest
	}
}
