package dns

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// monotonicSeconds is the clock of the maps.
func monotonicSeconds() uint32 { return uint32(monotonic() / int64(time.Second)) }

// monotonic is CLOCK_MONOTONIC in nanoseconds. It cannot fail.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// minLifetime is what an address is open for at least, so that the first packet
// after an answer with a TTL of 0 passes.
const minLifetime = 2 * time.Second

// deadline is the second of the maps' clock at which what expires at a time of the
// monotonic clock has expired for the programs. Rounded up: never before.
func deadline(monotonicNS int64) uint32 {
	if monotonicNS <= 0 {
		return 1
	}
	return uint32((monotonicNS + int64(time.Second) - 1) / int64(time.Second))
}

// clock is one moment on both clocks. Facts are kept by the monotonic one, as the maps
// are: nobody can set it. What outlives a boot, the journal and the log, has times of the
// wall clock.
type clock struct {
	unixNS      int64
	monotonicNS int64
}

func readClock() clock { return clock{time.Now().UnixNano(), monotonic()} }

func (c clock) monotonic(unixNS int64) int64 { return unixNS - c.offset() }

// unix is after the epoch, as a time in an event has to be.
func (c clock) unix(monotonicNS int64) int64 { return max(1, monotonicNS+c.offset()) }

// longAgo is before any time of the monotonic clock that a fact can have: what expired
// before this boot has a negative one.
const longAgo = math.MinInt64 / 2

// offset is what the wall clock shows beyond the monotonic one. It jumps when the clock
// is set.
func (c clock) offset() int64 { return c.unixNS - c.monotonicNS }
