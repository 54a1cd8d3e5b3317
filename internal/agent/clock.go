package agent

import (
	"context"
	"log/slog"
	"time"
)

const (
	// clockLook is how often the clocks are compared.
	clockLook = time.Second
	// clockTolerance is how far the wall clock may move between two looks, or in a series
	// of them, for that to be the drift that is corrected all the time.
	clockTolerance = 5 * time.Second
)

// clockOffset is what the wall clock shows beyond the monotonic one, but for a constant.
func clockOffset() func() time.Duration {
	start := time.Now()
	return func() time.Duration {
		now := time.Now()
		return now.Round(0).Sub(start.Round(0)) - now.Sub(start)
	}
}

// watchClock says when the wall clock was set, until ctx ends. Back there is an alarm of
// the log too, once it has an event of later; ahead only this tells.
func watchClock(ctx context.Context, offset func() time.Duration, logger *slog.Logger) {
	was := offset()
	look := time.NewTicker(clockLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		is := offset()
		if by := is - was; by.Abs() > clockTolerance {
			was = is
			logger.Warn("the wall clock was set: events get its time from now on, and what is kept by age goes by it; if it is wrong set it right",
				"by", by.Round(time.Second))
		}
	}
}
