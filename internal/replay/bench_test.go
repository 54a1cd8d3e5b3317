package replay

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/mix"
)

// BenchmarkReplay is a replay of 100,000 events of the standard mix from memory.
func BenchmarkReplay(b *testing.B) {
	const events = 100_000
	m := mix.Standard(events)
	s := fsm.New(m.Cluster)
	var all kept
	for event, err := range m.All() {
		if err != nil {
			b.Fatal(err)
		}
		r, _, err := s.Apply(event)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, r)
	}
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		if err := Run(b.Context(), all, events, fsm.New(m.Cluster)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(events*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/events/float64(b.N), "cpu-ns/event")
}

// cpu is the time that this process had of any: it says more than the clock on a
// machine that others use.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
