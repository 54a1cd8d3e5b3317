package raftlog

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve-net/varve/log"
)

// A clock that jumps ahead and back again: time never goes back, nothing is refused
// or lost, and the log says so once each way.
func TestClockThatJumps(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	var now atomic.Int64
	n := 0
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC).UnixNano()
	now.Store(start)
	c := testConfig(dir)
	c.Clock = now.Load
	c.Logger = slog.New(slog.NewTextHandler(&out, nil))
	l := open(t, c)
	step := func(to time.Duration, wantTime, wantBehind time.Duration) {
		t.Helper()
		now.Store(start + int64(to))
		fill(t, l, fmt.Sprintf("at%d", n), 3)
		n++
		if at := time.Duration(l.View().TimeNS() - start); at != wantTime {
			t.Errorf("at %s the log's time is %s, want %s", to, at, wantTime)
		}
		if behind := l.ClockBehind(); behind != wantBehind {
			t.Errorf("at %s the clock is %s behind, want %s", to, behind, wantBehind)
		}
	}
	step(0, 0, 0)
	step(3*time.Hour, 3*time.Hour, 0)
	step(-time.Hour, 3*time.Hour, 4*time.Hour)
	step(3*time.Hour-time.Second, 3*time.Hour, time.Second)
	// Still held, also after a restart.
	step(time.Hour, 3*time.Hour, 2*time.Hour)
	closeLog(t, l)
	l = open(t, c)
	step(2*time.Hour, 3*time.Hour, time.Hour)
	step(4*time.Hour, 4*time.Hour, 0)
	closeLog(t, l)
	l = open(t, c)
	if n := len(allIDs(t, l)); n != 21 {
		t.Errorf("%d events, want 21", n)
	}
	last := int64(0)
	head, _ := l.Head()
	if err := l.Read(t.Context(), 1, head, func(r log.Record) error {
		if r.TimeNS < last {
			t.Errorf("revision %d goes back from %d to %d", r.Revision, last, r.TimeNS)
		}
		last = r.TimeNS
		return nil
	}); err != nil {
		t.Error(err)
	}
	sameAsReplay(t, l)
	closeLog(t, l)
	for line, want := range map[string]int{"the clock is behind the log's time": 3, "the clock has caught up": 2} {
		if n := strings.Count(out.String(), line); n != want {
			t.Errorf("%q was said %d times, want %d:\n%s", line, n, want, out.String())
		}
	}
}
