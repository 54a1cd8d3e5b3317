package past

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/varve-net/varve/log"
)

// Moment is a point of the past.
type Moment struct {
	Revision log.Revision
	// TimeNS is the effective time of Revision, 0 for revision 0.
	TimeNS int64
	// AskedNS is the time that was named, in Unix time, which is not before TimeNS: that
	// of a revision that was named. What lasts for a time may have ended in between.
	AskedNS int64
}

// Resolve finds the moment that a text names:
//
//	4711                        a revision
//	2026-03-01T03:00:00Z        a time (RFC 3339): the last revision until then
//	2026-03-01, 2026-03-01T03:00, 2026-03-01 03:00:00     the same, in UTC (but Zoned)
//	-2h, -90m, -1h30m, -7d      that long before now
//	now                         the newest revision
//
// The error is ErrMoment for any other text, ErrFuture for what is still to come
// and log.ErrCompacted for what is no longer kept.
func (p *Past) Resolve(ctx context.Context, text string) (Moment, error) {
	text = strings.TrimSpace(text)
	head, _ := p.Log.Head()
	if text == "now" {
		return asked(p.Now().UnixNano())(p.moment(ctx, head))
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		if log.Revision(n) > head {
			return Moment{}, fmt.Errorf("revision %d: %w; the newest is %d", n, ErrFuture, head)
		}
		return asked(0)(p.moment(ctx, log.Revision(n)))
	}
	now := p.Now()
	at, err := parseTime(text, now)
	if err != nil {
		return Moment{}, err
	}
	if at.After(now) {
		return Moment{}, fmt.Errorf("%s: %w; it is %s", text, ErrFuture, now.UTC().Format(time.RFC3339))
	}
	return asked(at.UnixNano())(p.until(ctx, at.UnixNano()))
}

// asked puts the time that was named into a moment.
func asked(ns int64) func(Moment, error) (Moment, error) {
	return func(m Moment, err error) (Moment, error) {
		if err == nil {
			m.AskedNS = max(ns, m.TimeNS)
		}
		return m, err
	}
}

// Check tells whether a text may name a moment, without looking into a log.
func Check(text string) error {
	text = strings.TrimSpace(text)
	if _, err := strconv.ParseUint(text, 10, 64); err == nil || text == "now" {
		return nil
	}
	_, err := parseTime(text, time.Now())
	return err
}

// Time is the time that a text names: one as of RFC 3339 or short for it, or how
// long before now, with or without a minus. The error is ErrMoment for any other
// text.
func Time(text string, now time.Time) (time.Time, error) {
	text = strings.TrimSpace(text)
	if d, err := parseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	return parseTime(text, now)
}

// layouts are the forms of a time, RFC 3339 and what people write short for it.
var layouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999", "2006-01-02T15:04Z07:00",
	"2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02",
}

// Zoned puts into a text that names a time without a zone the one that it is meant in. Any
// other text stays as it is.
func Zoned(text string, zone *time.Location) string {
	trimmed := strings.TrimSpace(text)
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, trimmed, zone); err == nil && !strings.HasSuffix(layout, "Z07:00") {
			return t.Format(time.RFC3339Nano)
		}
	}
	return text
}

func parseTime(text string, now time.Time) (time.Time, error) {
	if back, ok := strings.CutPrefix(text, "-"); ok {
		d, err := parseDuration(back)
		if err != nil {
			return time.Time{}, noMoment(text)
		}
		return now.Add(-d), nil
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, text, time.UTC); err == nil {
			return t, nil
		}
	}
	return time.Time{}, noMoment(text)
}

func noMoment(text string) error {
	return fmt.Errorf("%q %w; give e.g. 4711, 2026-03-01T03:00:00Z, 2026-03-01, -2h, -7d or now", text, ErrMoment)
}

// parseDuration is time.ParseDuration with days before the rest.
func parseDuration(text string) (time.Duration, error) {
	var days time.Duration
	if n, rest, ok := strings.Cut(text, "d"); ok {
		count, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, err
		}
		if days = time.Duration(count) * 24 * time.Hour; rest == "" {
			return days, nil
		}
		text = rest
	}
	d, err := time.ParseDuration(text)
	if err == nil && (d < 0 || strings.HasPrefix(text, "+")) {
		err = strconv.ErrRange
	}
	return days + d, err
}

// until finds the last revision whose effective time is not after a time.
func (p *Past) until(ctx context.Context, ns int64) (Moment, error) {
	first := p.Log.First()
	head, _ := p.Log.Head()
	// Revisions before low are at or before the time, those from high on after it.
	low, high := first, head+1
	last := Moment{Revision: first - 1}
	for low < high {
		mid := low + (high-low)/2
		m, ok, err := p.readable(ctx, mid, high)
		if err != nil {
			return Moment{}, err
		}
		if ok && m.TimeNS <= ns {
			low, last = m.Revision+1, m
		} else {
			high = mid
		}
	}
	if last.Revision < head && last.Revision >= first {
		// What is lost has no time: it may be what was asked for.
		if _, err := p.moment(ctx, last.Revision+1); errors.Is(err, log.ErrCorrupt) {
			return Moment{}, fmt.Errorf("which revision was the last at %s cannot be told; name a revision: %w", time.Unix(0, ns).UTC().Format(time.RFC3339), err)
		}
	}
	if last.Revision < first && first > 1 {
		return Moment{}, fmt.Errorf("%s is before the oldest revision kept, %d: %w",
			time.Unix(0, ns).UTC().Format(time.RFC3339), first, log.ErrCompacted)
	}
	return last, nil
}

// readable is the first moment from a revision on, before another, whose record is not
// lost; false if there is none.
func (p *Past) readable(ctx context.Context, from, before log.Revision) (Moment, bool, error) {
	for ; from < before; from++ {
		m, err := p.moment(ctx, from)
		if !errors.Is(err, log.ErrCorrupt) {
			return m, err == nil, err
		}
	}
	return Moment{}, false, nil
}

// moment is a revision with its time. The one before the oldest record counts as
// kept if there is a checkpoint of it.
func (p *Past) moment(ctx context.Context, revision log.Revision) (Moment, error) {
	if revision == 0 {
		return Moment{}, nil
	}
	if first := p.Log.First(); revision+1 == first {
		v, err := p.View(ctx, revision)
		return Moment{Revision: revision, TimeNS: v.TimeNS()}, err
	}
	r, err := p.Record(ctx, revision)
	return Moment{Revision: revision, TimeNS: r.TimeNS}, err
}
