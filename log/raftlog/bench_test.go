package raftlog

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/log"
)

// BenchmarkAppend is the durable append: clients that each wait for their answer
// before they send the next event of about 256 bytes. Beside each is what the
// disk does alone: an append of as many bytes and fdatasync.
func BenchmarkAppend(b *testing.B) {
	for _, clients := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			c := testConfig(b.TempDir())
			c.SnapshotThreshold = 0 // the default
			l := open(b, c)
			entries := lastRaftIndex(l)
			var left atomic.Int64
			left.Store(int64(b.N))
			latencies := make([][]time.Duration, clients)
			var wait sync.WaitGroup
			b.ResetTimer()
			for client := range clients {
				wait.Go(func() {
					for i := 0; left.Add(-1) >= 0; i++ {
						e := namespaceSet(fmt.Sprintf("ns%d", client), fmt.Sprintf("%d-%d", client, i))
						e.Actor.Name = strings.Repeat("x", 140)
						start := time.Now()
						if _, err := l.Append(b.Context(), e); err != nil {
							b.Error(err)
							return
						}
						latencies[client] = append(latencies[client], time.Since(start))
					}
				})
			}
			wait.Wait()
			b.StopTimer()
			all := slices.Sorted(slices.Values(slices.Concat(latencies...)))
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
			b.ReportMetric(float64(b.N)/float64(lastRaftIndex(l)-entries), "events/entry")
			b.ReportMetric(float64(fdatasync(b, clients*256).Microseconds()), "fdatasync-us")
		})
	}
}

// fdatasync is the median time of an append of n bytes and fdatasync.
func fdatasync(b *testing.B, n int) time.Duration {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, n)
	took := make([]time.Duration, 200)
	for i := range took {
		start := time.Now()
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// BenchmarkRestart opens a log of 100,000 events without a snapshot: 64 to an
// entry, and one to an entry.
func BenchmarkRestart(b *testing.B) {
	const events = 100_000
	for _, group := range []int{64, 4} {
		b.Run(fmt.Sprintf("events-per-entry=%d", group), func(b *testing.B) {
			dir := b.TempDir()
			l := open(b, testConfig(dir))
			for n := 0; n < events; n += group {
				appendGroup(b, l, group)
			}
			closeLog(b, l)
			for b.Loop() {
				l, err := Open(b.Context(), testConfig(dir))
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				closeLog(b, l)
				b.StartTimer()
			}
			b.ReportMetric(events*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkSubscribe follows 100,000 records from history.
func BenchmarkSubscribe(b *testing.B) {
	const events = 100_000
	l := open(b, testConfig(b.TempDir()))
	for n := 0; n < events; n += 1000 {
		appendGroup(b, l, 1000)
	}
	for b.Loop() {
		err := l.Subscribe(b.Context(), 0, func(r log.Record) error {
			if r.Revision == events {
				return errEnough
			}
			return nil
		})
		if err != errEnough {
			b.Fatal(err)
		}
	}
	b.ReportMetric(events*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
