package main

import (
	"errors"
	"os/exec"
	"testing"
	"time"
)

func TestLimits(t *testing.T) {
	l := limits{boot: time.Minute, tests: time.Hour}
	for _, tt := range []struct {
		name              string
		begun             bool
		boot, tests, idle time.Duration
		want              error
	}{
		{"it boots", false, time.Minute, 0, 0, nil},
		{"it boots for too long", false, time.Minute + 1, 0, 0, errBoot},
		{"it tests", true, time.Minute, time.Hour, stalled, nil},
		{"it tests for too long", true, time.Minute, time.Hour + 1, 0, errTime},
		{"it idles while it boots", false, 0, 0, stalled + 1, errStalled},
		{"it idles while it tests", true, time.Minute, time.Minute, stalled + 1, errStalled},
	} {
		if err := l.over(tt.begun, tt.boot, tt.tests, tt.idle); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// With icount a process that computes meets its limit, one that waits does not though
// time passes, and one that has gone ends the watch.
func TestWatch(t *testing.T) {
	start := func(script string) (pid int, stop func()) {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid, func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
	}
	counted := config{icount: true}
	l := limits{boot: 100 * time.Millisecond, tests: time.Hour}

	busy, stop := start("while :; do :; done")
	var met error
	l.watch(t.Context(), counted.spent(busy), func(err error) { met = errors.Join(met, err) })
	if !errors.Is(met, errBoot) {
		t.Errorf("a process that computes: %v, want %v", met, errBoot)
	}
	stop()
	l.watch(t.Context(), counted.spent(busy), func(err error) { t.Errorf("a process that has gone: %v", err) })

	waits, stop := start("exec sleep 3600")
	defer stop()
	looks := 0
	l.watch(t.Context(), func() (time.Duration, error) {
		if looks++; looks == 3 {
			stop()
		}
		return counted.spent(waits)()
	}, func(err error) { t.Errorf("a process that waits: %v", err) })

	met = nil
	l.watch(t.Context(), config{}.spent(waits), func(err error) { met = err })
	if !errors.Is(met, errBoot) {
		t.Errorf("by the host's clock: %v, want %v", met, errBoot)
	}
}
