package dns

import (
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

// deadline is the second of the maps' clock at which what expires at a wall time has
// expired for the programs. Rounded up: never before.
func deadline(expiresUnixNS int64, now clock) uint32 {
	at := now.monotonicNS + expiresUnixNS - now.unixNS
	if at <= 0 {
		return 1
	}
	return uint32((at + int64(time.Second) - 1) / int64(time.Second))
}

// clock is one moment on both clocks.
type clock struct {
	unixNS      int64
	monotonicNS int64
}

func readClock() clock { return clock{time.Now().UnixNano(), monotonic()} }
