package raftlog

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/log"
)

// The feed against a slice that is never cut: what it gives is the slice's, it holds
// the newest as far as its bounds let it, and it says where history has to help.
func TestFeedIsTheTailOfAllRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f feed
		start := log.Revision(rapid.Uint64Range(0, 3*feedRecords).Draw(t, "start"))
		f.reset(start, log.Hash{})
		var all []log.Record // from start+1 on
		buf := make([]log.Record, 100)
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				size := rapid.SampledFrom([]int{1, 300, feedBytes / 3, feedBytes + 1}).Draw(t, "size")
				most := max(1, 2*feedBytes/size)
				n := min(most, rapid.SampledFrom([]int{1, 2, 30, 300, feedRecords + 3}).Draw(t, "n"))
				event := make([]byte, size)
				for range n {
					revision := start + log.Revision(len(all)) + 1
					all = append(all, log.Record{Revision: revision, Event: event, Chain: log.Hash{byte(revision), byte(revision >> 8)}})
				}
				wait := f.next()
				f.publish(all[len(all)-n:])
				select {
				case <-wait:
				default:
					t.Fatal("nobody is told that the head has moved")
				}
			},
			"from": func(t *rapid.T) {
				head := start + log.Revision(len(all))
				revision := log.Revision(rapid.Uint64Range(1, uint64(head)+2).Draw(t, "revision"))
				n, got, wait := f.from(revision, buf)
				if got != head || (wait != nil) != (revision > head) || n == 0 && wait == nil && f.holds(revision) {
					t.Fatalf("from %d: %d records, head %d of %d, to be waited for: %v", revision, n, got, head, wait != nil)
				}
				for i := range n {
					if want := &all[revision-start-1+log.Revision(i)]; buf[i].Revision != want.Revision || buf[i].Chain != want.Chain {
						t.Fatalf("from %d: record %d is %d, want %d", revision, i, buf[i].Revision, want.Revision)
					}
				}
				if n > 0 && n < len(buf) && revision+log.Revision(n) != head+1 {
					t.Fatalf("from %d: %d records, and then there are more up to %d", revision, n, head)
				}
			},
			"": func(t *rapid.T) {
				held, bytes := 0, 0
				for i := len(all) - 1; i >= 0 && held < feedRecords; i-- {
					if bytes += len(all[i].Event); bytes > feedBytes && held > 0 {
						break
					}
					held++
				}
				if f.held != held {
					t.Fatalf("%d records are held of %d, want %d", f.held, len(all), held)
				}
				if head, _ := f.last(); head != start+log.Revision(len(all)) {
					t.Fatalf("head %d, want %d", head, start+log.Revision(len(all)))
				}
			},
		})
	})
}

// holds tells whether a revision is in memory.
func (f *feed) holds(revision log.Revision) bool {
	return revision <= f.head && f.head-revision < log.Revision(f.held)
}
