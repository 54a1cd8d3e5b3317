package history

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/log"
)

// Verify reads every record from a revision on, checks its CRC, its revision,
// that time does not go back, and recomputes the hash chain. The error is a
// *log.CorruptError that names the first bad revision. It stops at ctx's end.
func (h *History) Verify(ctx context.Context, from log.Revision) error {
	if lost := h.Lost(); len(lost) > 0 && from <= lost[0].Last && lost[0].Last < h.First() {
		return lost[0].Err // it has no beginning
	}
	from = max(from, h.First())
	seg, _, _ := h.segmentOf(from)
	if seg == nil {
		return h.damage
	}
	chain, timeNS := seg.before, int64(0)
	if from > seg.first {
		before, err := h.Record(ctx, from-1)
		if err != nil {
			return err
		}
		chain, timeNS = before.Chain, before.TimeNS
	}
	c, err := h.Cursor(from)
	if err != nil {
		return err
	}
	defer c.Close()

	work, ctx := errgroup.WithContext(ctx)
	read, checked := make(chan *verifyBatch, verifyAhead), make(chan *verifyBatch, verifyAhead)
	for range verifyAhead {
		checked <- new(verifyBatch)
	}
	work.Go(func() error {
		defer close(read)
		for ctx.Err() == nil {
			select {
			case b := <-checked:
				b.fill(c)
				read <- b // there is room for all
				if b.err != nil {
					return nil
				}
			case <-ctx.Done():
			}
		}
		return ctx.Err()
	})
	work.Go(func() error {
		for b := range read {
			for i := range b.records {
				if err := b.records[i].check(&chain, &timeNS); err != nil {
					return err
				}
			}
			if errors.Is(b.err, io.EOF) {
				return h.damage
			}
			if b.err != nil {
				return b.err
			}
			checked <- b
		}
		return nil // the reader's error says why it ended
	})
	return work.Wait()
}

// While one batch is checked the next is read: how many records one has, and how many
// there are.
const (
	verifyRecords = 256
	verifyAhead   = 4
)

// verifyBatch is records as read, with what came after them.
type verifyBatch struct {
	records []verifyRecord
	events  []byte // of the records
	err     error
}

type verifyRecord struct {
	log.Record
	seg     *segment
	at      int64
	leftOut bool // Event is the leaf
}

// fill reads the next records.
func (b *verifyBatch) fill(c *Cursor) {
	b.records, b.events, b.err = b.records[:0], b.events[:0], nil
	for len(b.records) < verifyRecords {
		r, err := c.Next()
		leftOut := errors.Is(err, ErrLeftOut)
		if err != nil && !leftOut {
			b.err = err
			break
		}
		b.events = append(b.events, r.Event...)
		b.records = append(b.records, verifyRecord{r, c.seg, c.at, leftOut})
	}
	// They moved while they were gathered.
	rest := b.events
	for i := range b.records {
		r := &b.records[i]
		r.Event, rest = rest[:len(r.Event)], rest[len(r.Event):]
	}
}

// check checks a record against chain and time before it, and brings them up to it.
func (r *verifyRecord) check(chain *log.Hash, timeNS *int64) error {
	var leaf log.Hash
	if r.leftOut {
		copy(leaf[:], r.Event)
	} else {
		leaf = log.Leaf(r.Event)
	}
	if r.Revision == r.seg.first && r.seg.before != *chain {
		return r.seg.corrupt(0, r.Revision, fmt.Sprintf("header continues chain %s, the segment before ends in %s", r.seg.before, *chain))
	}
	problem := ""
	switch next := log.Next(*chain, leaf); {
	case next != r.Chain:
		problem = fmt.Sprintf("chain value is %s and should be %s", r.Chain, next)
	case r.TimeNS < *timeNS:
		problem = fmt.Sprintf("effective time %d goes back from %d", r.TimeNS, *timeNS)
	case !r.leftOut && r.Outcome != log.OutcomeApplied && r.Outcome != log.OutcomeRejected:
		problem = fmt.Sprintf("outcome %d takes no revision", r.Outcome)
	}
	if problem != "" {
		return r.seg.corrupt(r.at, r.Revision, problem)
	}
	*chain, *timeNS = r.Chain, r.TimeNS
	return nil
}
