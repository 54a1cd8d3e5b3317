package replay

import (
	"testing"

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
	for b.Loop() {
		if err := Run(b.Context(), all, events, fsm.New(m.Cluster)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(events*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
