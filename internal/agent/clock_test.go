package agent

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestClockThatIsSetIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var offset atomic.Int64
		var said bytes.Buffer
		done := make(chan struct{})
		go func() {
			defer close(done)
			watchClock(ctx, func() time.Duration { return time.Duration(offset.Load()) }, slog.New(slog.NewTextHandler(&said, nil)))
		}()
		synctest.Wait()
		for _, by := range []time.Duration{clockTolerance, 5 * time.Hour, 0, -7 * time.Hour} {
			offset.Add(int64(by))
			time.Sleep(2 * clockLook)
		}
		stop()
		<-done
		if got := strings.Count(said.String(), "the wall clock was set"); got != 2 {
			t.Errorf("told %d times, want 2:\n%s", got, &said)
		}
		// What had drifted before is part of the jump.
		for _, want := range []string{"by=5h0m5s", "by=-7h0m0s"} {
			if !strings.Contains(said.String(), want) {
				t.Errorf("want %s:\n%s", want, &said)
			}
		}
	})
	if o := clockOffset()(); o.Abs() > clockTolerance {
		t.Errorf("the clocks are %s apart at once", o)
	}
}
