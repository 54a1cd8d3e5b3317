package history

import (
	"testing"

	"github.com/varve-net/varve/log"
)

// benchRecords are n records with events of 200 bytes.
func benchRecords(n int) []log.Record {
	records := make([]log.Record, n)
	event := make([]byte, 200)
	for i := range records {
		records[i] = log.Record{Revision: log.Revision(i + 1), TimeNS: int64(i), Outcome: log.OutcomeApplied, Event: event}
	}
	return records
}

func BenchmarkAppend64(b *testing.B) {
	h := open(b, b.TempDir(), segmentSize)
	records := benchRecords(64)
	b.SetBytes(int64(64 * recordSize(&records[0])))
	for b.Loop() {
		last, _ := h.Last()
		for i := range records {
			records[i].Revision = last + 1 + log.Revision(i)
		}
		if err := h.Append(records); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*64)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkRead(b *testing.B) {
	const n = 200_000
	h := open(b, b.TempDir(), segmentSize)
	if err := h.Append(benchRecords(n)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := h.Read(b.Context(), 1, n, func(log.Record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkVerify(b *testing.B) {
	const n = 200_000
	records := benchRecords(n)
	chain := log.Hash{}
	for i := range records {
		chain = log.Next(chain, log.Leaf(records[i].Event))
		records[i].Chain = chain
	}
	h := open(b, b.TempDir(), segmentSize)
	if err := h.Append(records); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := h.Verify(b.Context(), 1); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkSeek(b *testing.B) {
	const n = 200_000
	h := open(b, b.TempDir(), segmentSize)
	if err := h.Append(benchRecords(n)); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		i += 7919
		if _, err := h.Record(b.Context(), 2+log.Revision(i%(n-2))); err != nil {
			b.Fatal(err)
		}
	}
}
