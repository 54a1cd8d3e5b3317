package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/verdict"
)

// Flip is a moment after which the outcome of a question is another than before: a
// record, or the time at which what From had been told of a name expired.
type Flip struct {
	// Revision of the record, or the one in force when something expired.
	Revision      log.Revision
	TimeNS        int64
	Before, After Outcome
	// Expired are the facts that expired then, and no record changed the outcome. Nil: the
	// record did.
	Expired []verdict.Fact
}

// Cause is the record behind a flip: of one that time made, that of what expired.
func (f *Flip) Cause() log.Revision {
	if len(f.Expired) > 0 {
		return f.Expired[0].Revision
	}
	return f.Revision
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
	end, err := a.end(ctx, q, at)
	if err != nil {
		return nil, err
	}
	for span := a.firstSpan(); ; span *= spanGrowth {
		from := max(first, at-min(at, span))
		if span > a.firstSpan() {
			from = a.Past.Near(from)
		}
		var last *Flip
		if err := a.trace(ctx, q, from, at, end, func(f Flip) error { last = &f; return nil }); err != nil {
			return nil, err
		}
		// What expires after the last record of an earlier span is of this one.
		end = 0
		if last != nil || from == first {
			return last, nil
		}
		at = from
	}
}

// end is the moment up to which flips at or before a revision are looked for.
func (a *Auditor) end(ctx context.Context, q Question, at log.Revision) (int64, error) {
	if q.TimeNS != 0 {
		return q.TimeNS, nil
	}
	view, err := a.Past.View(ctx, at)
	return view.TimeNS(), err
}

// NextFlip finds the first flip after a revision, up to another. Nil: there is
// none.
func (a *Auditor) NextFlip(ctx context.Context, q Question, after, until log.Revision) (*Flip, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	end, err := a.end(ctx, q, until)
	if err != nil {
		return nil, err
	}
	for span := a.firstSpan(); ; span *= spanGrowth {
		to, last := min(until, after+span), int64(0)
		if to == until {
			last = end
		}
		var next *Flip
		err := a.trace(ctx, q, after, to, last, func(f Flip) error { next = &f; return errFound })
		if next != nil {
			return next, nil
		}
		if err != nil || to == until {
			return nil, err
		}
		after = to
	}
}

// Flips calls fn for every flip after a revision and up to another, in order.
func (a *Auditor) Flips(ctx context.Context, q Question, after, until log.Revision, fn func(Flip) error) error {
	if err := q.check(); err != nil {
		return err
	}
	end, err := a.end(ctx, q, until)
	if err != nil {
		return err
	}
	return a.trace(ctx, q, after, until, end, fn)
}

// trace calls fn for each flip of a span, until fn fails: for what its records change,
// and for what expires up to the last of them or, if that is later, up to endNS.
func (a *Auditor) trace(ctx context.Context, q Question, after, until log.Revision, endNS int64, fn func(Flip) error) error {
	if after >= until && endNS == 0 {
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
	t := &trace{Auditor: a, q: q, keep: keep, state: keep.excerpt(view), at: after, fn: fn}
	if t.before, err = a.outcome(t.state.View(), q, max(view.TimeNS(), q.SinceNS)); err != nil {
		return fmt.Errorf("revision %d: %w", after, err)
	}
	t.wait(max(view.TimeNS(), q.SinceNS))
	if after < until {
		if err := a.Past.Read(ctx, after+1, until, t.record); err != nil {
			return err
		}
	}
	return t.pass(endNS)
}

// trace is a walk over a span, and what it has come to.
type trace struct {
	*Auditor
	q      Question
	keep   *sieve
	state  *fsm.State
	at     log.Revision
	before Outcome
	// expiries are the moments, yet to come, at which the outcome may change by itself.
	expiries []int64
	fn       func(Flip) error
}

// record goes on to a record.
func (t *trace) record(r log.Record) error {
	if err := t.pass(r.TimeNS); err != nil {
		return err
	}
	t.at = r.Revision
	if !t.keep.record(&r) {
		return nil
	}
	judge, err := fold(t.state, t.keep, &r)
	if err != nil || !judge {
		return err
	}
	if err := t.judge(Flip{Revision: r.Revision, TimeNS: r.TimeNS}); err != nil {
		return err
	}
	t.wait(r.TimeNS)
	return nil
}

// pass lets time pass.
func (t *trace) pass(untilNS int64) error {
	for len(t.expiries) > 0 && t.expiries[0] <= untilNS {
		now := t.expiries[0]
		t.expiries = t.expiries[1:]
		f := Flip{Revision: t.at, TimeNS: now}
		for _, fact := range t.known() {
			if fact.ExpiresNS == now {
				f.Expired = append(f.Expired, fact)
			}
		}
		if err := t.judge(f); err != nil {
			return err
		}
	}
	return nil
}

// judge tells of a flip if it is one.
func (t *trace) judge(f Flip) error {
	now, err := t.outcome(t.state.View(), t.q, f.TimeNS)
	if err != nil {
		return fmt.Errorf("revision %d: %w", f.Revision, err)
	}
	if now == t.before {
		return nil
	}
	f.Before, f.After = t.before, now
	t.before = now
	return t.fn(f)
}

// wait finds what will expire after a moment, if nothing else happens.
func (t *trace) wait(nowNS int64) {
	t.expiries = t.expiries[:0]
	for _, fact := range t.known() {
		if fact.ExpiresNS > nowNS {
			t.expiries = append(t.expiries, fact.ExpiresNS)
		}
	}
	slices.Sort(t.expiries)
	t.expiries = slices.Compact(t.expiries)
}

// known is what the one who asks was told about the other.
func (t *trace) known() []verdict.Fact {
	view := t.state.View()
	q, err := t.q.resolve(view)
	switch {
	case err != nil || q.From.Endpoint == nil || q.To.Endpoint != nil:
		return nil
	case q.To.Name != "":
		return verdict.FactsOfName(view, q.From.Endpoint, q.To.Name)
	}
	return verdict.FactsOf(view, q.From.Endpoint, q.To.Addr)
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
