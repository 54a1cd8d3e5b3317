package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/log"
)

// chainOf makes n records of varied sizes that continue a chain.
func chainOf(first log.Revision, n int, chain log.Hash) []log.Record {
	records := make([]log.Record, n)
	for i := range records {
		revision := first + log.Revision(i)
		event := bytes.Repeat([]byte{byte(revision), byte(revision >> 8)}, int(revision%97))
		chain = log.Next(chain, log.Leaf(event))
		records[i] = log.Record{Revision: revision, TimeNS: int64(revision) * 10, Outcome: log.OutcomeApplied, Event: event, Chain: chain}
		if revision%5 == 0 {
			records[i].Outcome, records[i].Reason = log.OutcomeRejected, fmt.Sprintf("reason of %d", revision)
		}
	}
	return records
}

func open(t testing.TB, dir string, size int64) *History {
	t.Helper()
	h, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h.segmentSize = size
	t.Cleanup(func() { closeHistory(t, h) })
	return h
}

func closeHistory(t testing.TB, h *History) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

// write makes a directory with n records in segments of about size bytes, in
// batches of 7, and returns the records and the segments' files.
func write(t testing.TB, dir string, n int, size int64) ([]log.Record, []string) {
	t.Helper()
	records := chainOf(1, n, log.Hash{})
	return records, writeRecords(t, dir, records, size)
}

func writeRecords(t testing.TB, dir string, records []log.Record, size int64) []string {
	t.Helper()
	h := open(t, dir, size)
	for i := 0; i < len(records); i += 7 {
		if err := h.Append(records[i:min(i+7, len(records))]); err != nil {
			t.Fatal(err)
		}
	}
	closeHistory(t, h)
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func read(t testing.TB, h *History, first, last log.Revision) []log.Record {
	t.Helper()
	var got []log.Record
	err := h.Read(t.Context(), first, last, func(r log.Record) error {
		r.Event = bytes.Clone(r.Event)
		if r.Event == nil {
			r.Event = []byte{}
		}
		got = append(got, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// equal compares without cmp, which is slow for thousands.
func equal(a, b *log.Record) bool {
	return a.Revision == b.Revision && a.TimeNS == b.TimeNS && a.Outcome == b.Outcome && a.Reason == b.Reason &&
		bytes.Equal(a.Event, b.Event) && a.Chain == b.Chain
}

func TestReadBack(t *testing.T) {
	for _, size := range []int64{20_000, 60_000, segmentSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			records, files := write(t, dir, 3000, size)
			if size < segmentSize && len(files) < 5 {
				t.Errorf("%d segments: the test wants many", len(files))
			}
			h := open(t, dir, size)
			if last, chain := h.Last(); last != 3000 || chain != records[2999].Chain || h.First() != 1 || h.Synced() != 3000 {
				t.Errorf("first %d, last %d, chain %s, synced %d", h.First(), last, chain, h.Synced())
			}
			for _, r := range [][2]log.Revision{{1, 3000}, {1, 1}, {3000, 3000}, {1499, 1502}, {2990, 9999}, {777, 1200}, {5, 4}, {3001, 3005}} {
				last := min(r[1], 3000)
				want := []log.Record(nil)
				if r[0] <= last {
					want = records[r[0]-1 : last]
				}
				got := read(t, h, r[0], r[1])
				if len(got) != len(want) {
					t.Fatalf("read %d to %d: %d records, want %d", r[0], r[1], len(got), len(want))
				}
				for i := range want {
					if !equal(&got[i], &want[i]) {
						t.Fatalf("read %d to %d (-want +got):\n%s", r[0], r[1], cmp.Diff(want[i], got[i]))
					}
				}
			}
			if err := h.Verify(t.Context(), 1); err != nil {
				t.Error(err)
			}
			if err := h.Verify(t.Context(), 1234); err != nil {
				t.Error(err)
			}
			more := chainOf(3001, 50, records[2999].Chain)
			if err := h.Append(more); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append(records[2995:3000:3000], more...), read(t, h, 2996, 4000)); diff != "" {
				t.Errorf("after another append (-want +got):\n%s", diff)
			}
			if h.Synced() != 3000 {
				t.Errorf("synced %d before Sync", h.Synced())
			}
			if err := h.Sync(); err != nil || h.Synced() != 3050 {
				t.Errorf("Sync: %v, synced %d", err, h.Synced())
			}
		})
	}
}

func TestIndexIsUsed(t *testing.T) {
	dir := t.TempDir()
	records := chainOf(1, 30_000, log.Hash{})
	h := open(t, dir, segmentSize)
	if err := h.Append(records); err != nil {
		t.Fatal(err)
	}
	c, err := h.Cursor(29_000)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := c.Next(); err != nil || r.Revision != 29_000 {
		t.Fatalf("%d, %v", r.Revision, err)
	}
	seg := h.segments[0]
	at, err := seg.seek(nil, 29_000)
	if err != nil || at.revision > 29_000 || at.offset < seg.end*9/10 {
		t.Errorf("seek to %d of %d: %+v, %v", 29_000, seg.end, at, err)
	}
}

func TestEmpty(t *testing.T) {
	h := open(t, filepath.Join(t.TempDir(), "a", "b"), segmentSize)
	last, chain := h.Last()
	if h.First() != 1 || last != 0 || !chain.IsZero() || h.Synced() != 0 {
		t.Errorf("first %d, last %d, chain %s", h.First(), last, chain)
	}
	if err := errors.Join(h.Verify(t.Context(), 1), h.Sync(), h.Append(nil)); err != nil {
		t.Error(err)
	}
	if got := read(t, h, 1, 10); got != nil {
		t.Errorf("read %v", got)
	}
	if err := h.Read(t.Context(), 0, 10, nil); !errors.Is(err, log.ErrCompacted) {
		t.Errorf("read from 0: %v", err)
	}
	if _, err := h.Record(t.Context(), 1); err == nil {
		t.Error("record 1 of an empty history")
	}
}

func TestAppendRefuses(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir, segmentSize)
	records := chainOf(1, 10, log.Hash{})
	if err := h.Append(records[1:]); !errors.Is(err, ErrGap) {
		t.Errorf("from 2: %v", err)
	}
	if err := h.Append(records[:5]); err != nil {
		t.Fatal(err)
	}
	for name, batch := range map[string][]log.Record{
		"gap":     records[6:],
		"repeat":  records[4:],
		"hole":    {records[5], records[7]},
		"reverse": {records[6], records[5]},
	} {
		if err := h.Append(batch); !errors.Is(err, ErrGap) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := records[5]
	big.Event = make([]byte, maxBody)
	if err := h.Append([]log.Record{big}); !errors.Is(err, log.ErrTooLarge) {
		t.Errorf("a huge event: %v", err)
	}
	if err := h.Append(records[5:]); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
	closeHistory(t, h)
	if err := h.Append(chainOf(11, 1, records[9].Chain)); !errors.Is(err, log.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := h.Sync(); !errors.Is(err, log.ErrClosed) {
		t.Errorf("Sync after Close: %v", err)
	}
}

// A cursor at the end goes on when more is appended, across segments.
func TestCursorFollows(t *testing.T) {
	h := open(t, t.TempDir(), 1000)
	records := chainOf(1, 500, log.Hash{})
	c, err := h.Cursor(1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	next := 0
	for i := range records {
		if _, err := c.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("at the end: %v", err)
		}
		if err := h.Append(records[i : i+1]); err != nil {
			t.Fatal(err)
		}
		r, err := c.Next()
		if err != nil || r.Revision != records[next].Revision || !bytes.Equal(r.Event, records[next].Event) {
			t.Fatalf("%+v, %v", r, err)
		}
		next++
	}
}

func TestConcurrentReaders(t *testing.T) {
	h := open(t, t.TempDir(), 20_000)
	records := chainOf(1, 4000, log.Hash{})
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				last, _ := h.Last()
				next := max(1, last-min(last, 300))
				err := h.Read(t.Context(), next, last, func(r log.Record) error {
					if r.Revision != next || r.Chain != records[next-1].Chain {
						return fmt.Errorf("revision %d, want %d", r.Revision, next)
					}
					next++
					return nil
				})
				if err != nil || last > 0 && next != last+1 {
					t.Errorf("read up to %d of %d: %v", next-1, last, err)
					return
				}
			}
		})
	}
	readers.Go(func() {
		for ctx.Err() == nil {
			if err := h.Sync(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := 0; i < len(records); i += 10 {
		if err := h.Append(records[i : i+10]); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	readers.Wait()
	if err := h.Verify(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

func TestReadStops(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 100, 1000)
	h := open(t, dir, 1000)
	stop := errors.New("stop")
	n := 0
	err := h.Read(t.Context(), 1, 100, func(log.Record) error {
		if n++; n == 10 {
			return stop
		}
		return nil
	})
	if err != stop || n != 10 {
		t.Errorf("%v after %d", err, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Read(ctx, 1, 100, func(log.Record) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("context: %v", err)
	}
	if err := h.Verify(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("verify: %v", err)
	}
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 10, 1000)
	for _, name := range []string{"README", "1" + suffix, strings.Repeat("x", 20) + suffix} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := open(t, dir, 1000)
	if last, _ := h.Last(); last != 10 {
		t.Errorf("last %d", last)
	}
}
