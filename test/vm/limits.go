package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

var (
	errBoot    = errors.New("no test started in time: see -boot-timeout")
	errTime    = errors.New("the tests did not end in time: see -timeout")
	errStalled = errors.New("the machine waits for what never comes: it took no time for " + stalled.String())
)

// stalled is how long a machine may take no processor time before it is given up. However
// busy a host, it lets a process run in that time; and a machine that counts its
// instructions never idles, since its kernel has timers.
const stalled = 10 * time.Minute

// limits end a machine that gets nowhere.
type limits struct {
	boot  time.Duration // until its first test starts
	tests time.Duration // from then on
	begun atomic.Bool   // its first test has started
}

// watch looks at what a machine has spent until ctx ends or the machine has, and calls
// end once it is over a limit.
func (l *limits) watch(ctx context.Context, spent func() (time.Duration, error), end func(error)) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	var boot, last time.Duration // spent when its first test started, and when last looked
	moved := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		now, err := spent()
		if err != nil {
			return // it has ended
		}
		if now > last {
			last, moved = now, time.Now()
		}
		begun := l.begun.Load()
		if !begun {
			boot = now
		}
		if err := l.over(begun, boot, now-boot, time.Since(moved)); err != nil {
			end(err)
			return
		}
	}
}

// over says which limit a machine has met that spent so much on its boot and on tests,
// and nothing for idle.
func (l *limits) over(begun bool, boot, tests, idle time.Duration) error {
	switch {
	case !begun && boot > l.boot:
		return errBoot
	case tests > l.tests:
		return errTime
	case idle > stalled:
		return errStalled
	}
	return nil
}

// spent tells what a machine's limits are counted in: the host's time, which is its own;
// with icount the processor time that the host gave to pid, so that a busy host makes it
// slow but never late.
func (c config) spent(pid int) func() (time.Duration, error) {
	if c.icount {
		return func() (time.Duration, error) { return processorTime(pid) }
	}
	started := time.Now()
	return func() (time.Duration, error) { return time.Since(started), nil }
}

// clockTick is the unit of processor times in /proc: USER_HZ is 100 everywhere.
const clockTick = time.Second / 100

// processorTime is what a process has taken so far, all threads together (proc(5), stat:
// fields 14 and 15).
func processorTime(pid int) (time.Duration, error) {
	file := fmt.Sprintf("/proc/%d/stat", pid)
	stat, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	// The second field is a name in brackets, which may have both spaces and brackets.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s: %d fields after the name, want 13 or more", file, len(fields))
	}
	var sum time.Duration
	for _, f := range fields[11:13] {
		ticks, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		sum += time.Duration(ticks) * clockTick
	}
	return sum, nil
}
