package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// Flip is a record after which the outcome of a question is another than before.
type Flip struct {
	Revision      log.Revision
	Before, After Outcome
}

// Spans of revisions that a search looks through: the first small, since what is
// asked about has mostly just happened, each of the next longer, so that there are
// few, for each of which the state at its beginning is needed.
const (
	firstSpan  = 2048
	spanGrowth = 8
)

func (a *Auditor) firstSpan() log.Revision { return cmp.Or(a.span, firstSpan) }

var errFound = errors.New("found")

// LastFlip finds the newest flip at or before a revision. Nil: the outcome was the
// same from Past.First on.
//
// Outcomes come and go, so no bisection of revisions finds it. The search goes
// back in spans of growing length; of each it reads the streams of records and
// folds and judges only those that the sieve keeps.
func (a *Auditor) LastFlip(ctx context.Context, q Question, at log.Revision) (*Flip, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	first := a.Past.First()
	for span := a.firstSpan(); ; span *= spanGrowth {
		from := max(first, at-min(at, span))
		if span > a.firstSpan() {
			from = a.Past.Near(from)
		}
		var last *Flip
		if err := a.trace(ctx, q, from, at, func(f Flip) error { last = &f; return nil }); err != nil {
			return nil, err
		}
		if last != nil || from == first {
			return last, nil
		}
		at = from
	}
}

// NextFlip finds the first flip after a revision, up to another. Nil: there is
// none.
func (a *Auditor) NextFlip(ctx context.Context, q Question, after, until log.Revision) (*Flip, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	for span := a.firstSpan(); after < until; span *= spanGrowth {
		to := min(until, after+span)
		var next *Flip
		err := a.trace(ctx, q, after, to, func(f Flip) error { next = &f; return errFound })
		if next != nil {
			return next, nil
		}
		if err != nil {
			return nil, err
		}
		after = to
	}
	return nil, nil
}

// Flips calls fn for every flip after a revision and up to another, in order.
func (a *Auditor) Flips(ctx context.Context, q Question, after, until log.Revision, fn func(Flip) error) error {
	if err := q.check(); err != nil {
		return err
	}
	return a.trace(ctx, q, after, until, fn)
}

// trace calls fn for each flip of a span, until fn fails.
func (a *Auditor) trace(ctx context.Context, q Question, after, until log.Revision, fn func(Flip) error) error {
	if after >= until {
		return nil
	}
	view, err := a.Past.View(ctx, after)
	if err != nil {
		return err
	}
	keep, err := a.sieveOf(ctx, q, view, until)
	if err != nil {
		return err
	}
	state := keep.excerpt(view)
	before, err := a.outcome(state.View(), q)
	if err != nil {
		return fmt.Errorf("revision %d: %w", after, err)
	}
	return a.Past.Read(ctx, after+1, until, func(r log.Record) error {
		if !keep.record(&r) {
			return nil
		}
		judge, err := fold(state, keep, &r)
		if err != nil || !judge {
			return err
		}
		now, err := a.outcome(state.View(), q)
		if err != nil {
			return fmt.Errorf("revision %d: %w", r.Revision, err)
		}
		if now == before {
			return nil
		}
		f := Flip{r.Revision, before, now}
		before = now
		return fn(f)
	})
}

// fold brings an excerpt to a record and tells whether verdicts may have changed.
func fold(state *fsm.State, keep *sieve, r *log.Record) (judge bool, err error) {
	ref, err := policy.ParseStream(string(log.PeekStream(r.Event)))
	if isPolicy := err == nil; !isPolicy {
		return true, state.Fold(r)
	}
	before := keep.touches(state.View(), ref)
	if err := state.Fold(r); err != nil {
		return false, err
	}
	return before || keep.touches(state.View(), ref), nil
}
