package history

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/varve-net/varve/log"
)

// Verify reads every record from a revision on, checks its CRC, its revision,
// that time does not go back, and recomputes the hash chain. The error is a
// *log.CorruptError that names the first bad revision. It stops at ctx's end.
func (h *History) Verify(ctx context.Context, from log.Revision) error {
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
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := c.Next()
		if errors.Is(err, io.EOF) {
			return h.damage
		}
		if err != nil && !errors.Is(err, ErrLeftOut) {
			return err
		}
		leaf := log.Leaf(r.Event)
		if err != nil {
			copy(leaf[:], r.Event)
		}
		if r.Revision == c.seg.first && c.seg.before != chain {
			return c.seg.corrupt(0, r.Revision, fmt.Sprintf("header continues chain %s, the segment before ends in %s", c.seg.before, chain))
		}
		problem := ""
		switch next := log.Next(chain, leaf); {
		case next != r.Chain:
			problem = fmt.Sprintf("chain value is %s and should be %s", r.Chain, next)
		case r.TimeNS < timeNS:
			problem = fmt.Sprintf("effective time %d goes back from %d", r.TimeNS, timeNS)
		case err == nil && r.Outcome != log.OutcomeApplied && r.Outcome != log.OutcomeRejected:
			problem = fmt.Sprintf("outcome %d takes no revision", r.Outcome)
		}
		if problem != "" {
			return c.seg.corrupt(c.at, r.Revision, problem)
		}
		chain, timeNS = r.Chain, r.TimeNS
	}
}
