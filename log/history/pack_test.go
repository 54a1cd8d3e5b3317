package history

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// packAll packs every sealed segment.
func packAll(t testing.TB, h *History) {
	t.Helper()
	segments, err := h.Segments()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range segments {
		if s.Sealed {
			if err := h.Pack(s.First); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func sameRecords(t testing.TB, got, want []log.Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i := range want {
		if !equal(&got[i], &want[i]) {
			t.Fatalf("got %+v, want %+v", got[i], want[i])
		}
	}
}

// A packed history reads as it did before, goes on, and opens again; a reader that
// was on its way does not notice.
func TestPack(t *testing.T) {
	dir := t.TempDir()
	records, files := write(t, dir, 3000, 20_000)
	h := open(t, dir, 20_000)
	under, err := h.Cursor(1)
	if err != nil {
		t.Fatal(err)
	}
	defer under.Close()
	for want := range 500 {
		if r, err := under.Next(); err != nil || !equal(&r, &records[want]) {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	packAll(t, h)
	for want := 500; want < 3000; want++ {
		if r, err := under.Next(); err != nil || !equal(&r, &records[want]) {
			t.Fatalf("packed under a reader: %+v, %v", r, err)
		}
	}
	check := func(when string, h *History, n int) {
		t.Helper()
		for _, r := range [][2]log.Revision{{1, 3000}, {1, 1}, {1499, 1502}, {777, 1200}, {2990, 9999}} {
			sameRecords(t, read(t, h, r[0], r[1]), records[r[0]-1:min(int(r[1]), n)])
		}
		if err := h.Verify(t.Context(), 1); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("packed", h, 3000)
	more := chainOf(3001, 100, records[2999].Chain)
	if err := h.Append(more); err != nil {
		t.Fatal(err)
	}
	records = append(records, more...)
	closeHistory(t, h)

	if err := os.WriteFile(files[1]+durable.Unfinished, []byte("of a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, 20_000)
	check("opened again", again, 3100)
	if _, err := os.Stat(files[1] + durable.Unfinished); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unfinished file is left: %v", err)
	}
	segments, err := again.Segments()
	if err != nil || !segments[0].Packed || segments[len(segments)-1].Packed {
		t.Errorf("%+v, %v", segments, err)
	}

	// The last file is packed where a crash came before the first record after it.
	closeHistory(t, again)
	last := segments[len(segments)-1]
	if err := os.Remove(filepath.Join(dir, segmentName(last.First))); err != nil {
		t.Fatal(err)
	}
	third := open(t, dir, 20_000)
	if at, chain := third.Last(); at != last.First-1 || chain != records[at-1].Chain {
		t.Fatalf("last %d, want %d", at, last.First-1)
	}
	if err := third.Append(records[last.First-1:]); err != nil {
		t.Fatal(err)
	}
	check("after a lost segment", third, 3100)
}

// Between the moment in which Pack has replaced a segment's file and the one in which
// it says so, the new file is read.
func TestReadBesidePack(t *testing.T) {
	dir := t.TempDir()
	records, _ := write(t, dir, 3000, 20_000)
	h := open(t, dir, 20_000)
	before := slices.Clone(h.segments)
	packAll(t, h)
	h.segments = before
	for _, from := range []int{0, 1, 700, 2999} {
		c, err := h.Cursor(log.Revision(from + 1))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for want := from; want < len(records); want++ {
			if r, err := c.Next(); err != nil || !equal(&r, &records[want]) {
				t.Fatalf("from %d: record %d: %+v, %v", from, want, r, err)
			}
		}
	}
}

// Damage to a packed segment is found by Verify at its revision, and hides the
// block that it hit and no other.
func TestPackedDamage(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir, 1<<20)
	records := chainOf(1, 6000, log.Hash{})
	for i := 0; i < len(records); i += 1000 {
		if err := h.Append(records[i : i+1000]); err != nil {
			t.Fatal(err)
		}
	}
	h.segmentSize = 1
	if err := h.Append(chainOf(6001, 1, records[5999].Chain)); err != nil {
		t.Fatal(err)
	}
	packAll(t, h)
	closeHistory(t, h)
	path := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for offset := headerSize; offset < len(whole)-blockHeaderSize; offset += 1999 {
		bad := bytes.Clone(whole)
		bad[offset] ^= 0x20
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := Open(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		err = h.Verify(t.Context(), 1)
		corrupt, ok := errors.AsType[*log.CorruptError](err)
		if !ok || corrupt.Revision == 0 || !strings.Contains(corrupt.What, path) {
			t.Fatalf("offset %d: %v", offset, err)
		}
		lost := 0
		for revision := log.Revision(1); revision <= 6001; revision += 50 {
			r, err := h.Record(t.Context(), revision)
			if err != nil {
				lost++
			} else if revision <= 6000 && !equal(&r, &records[revision-1]) {
				t.Fatalf("offset %d: revision %d is another", offset, revision)
			}
		}
		if lost == 0 || lost > 20 {
			t.Fatalf("offset %d: %d of 121 records are lost", offset, lost)
		}
		closeHistory(t, h)
	}
}

// A sealed segment whose header is damaged does not keep the rest from being read.
func TestDamagedHeaderHidesItsSegmentAlone(t *testing.T) {
	dir := t.TempDir()
	records, files := write(t, dir, 300, 3000)
	b, err := os.ReadFile(files[1])
	if err != nil {
		t.Fatal(err)
	}
	b[20] ^= 1
	if err := os.WriteFile(files[1], b, 0o600); err != nil {
		t.Fatal(err)
	}
	second, _ := parseName(filepath.Base(files[1]))
	third, _ := parseName(filepath.Base(files[2]))
	h := open(t, dir, 3000)
	sameRecords(t, read(t, h, 1, second-1), records[:second-1])
	sameRecords(t, read(t, h, third, 300), records[third-1:])
	err = h.Read(t.Context(), second-1, third, func(log.Record) error { return nil })
	if corrupt, ok := errors.AsType[*log.CorruptError](err); !ok || corrupt.Revision != second {
		t.Errorf("%v, want the damage at %d", err, second)
	}
	if err := h.Pack(second); !errors.Is(err, log.ErrCorrupt) {
		t.Errorf("pack: %v", err)
	}
}

func TestDropBefore(t *testing.T) {
	dir := t.TempDir()
	records, files := write(t, dir, 300, 3000)
	h := open(t, dir, 3000)
	third, _ := parseName(filepath.Base(files[2]))
	for _, at := range []log.Revision{5, third - 1, third + 10} {
		if err := h.WriteCheckpoint(at, func(w io.Writer) error { _, err := fmt.Fprint(w, at); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.DropBefore(third + 3); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*History{h, func() *History { closeHistory(t, h); return open(t, dir, 3000) }()} {
		if h.First() != third {
			t.Errorf("first %d, want %d", h.First(), third)
		}
		if got := fmt.Sprint(h.Checkpoints()); got != fmt.Sprintf("[%d %d]", third-1, third+10) {
			t.Errorf("checkpoints %s", got)
		}
	}
	h = open(t, dir, 3000)
	sameRecords(t, read(t, h, third, 300), records[third-1:])
	if err := h.Read(t.Context(), third-1, 300, nil); !errors.Is(err, log.ErrCompacted) {
		t.Errorf("before the first: %v", err)
	}
	if err := h.Verify(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if err := h.DropBefore(10_000); err != nil || h.First() > 300 {
		t.Errorf("everything: first %d, %v; the last segment stays", h.First(), err)
	}
}

func TestCheckpoint(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 10, segmentSize)
	h := open(t, dir, segmentSize)
	content := strings.Repeat("state ", 100_000)
	if err := h.WriteCheckpoint(7, func(w io.Writer) error { _, err := io.WriteString(w, content); return err }); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed")
	if err := h.WriteCheckpoint(8, func(w io.Writer) error { _, _ = io.WriteString(w, content); return failed }); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	closeHistory(t, h)
	h = open(t, dir, segmentSize)
	if got := fmt.Sprint(h.Checkpoints()); got != "[7]" {
		t.Errorf("checkpoints %s", got)
	}
	readAll := func() (string, error) {
		r, err := h.OpenCheckpoint(7)
		if err != nil {
			return "", err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return string(b), err
	}
	if got, err := readAll(); got != content || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	path := filepath.Join(dir, checkpointName(7))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readAll(); err == nil && got != content {
			t.Fatalf("byte %d: other bytes, and no error", i)
		}
	}
	if err := h.RemoveCheckpoint(7); err != nil || len(h.Checkpoints()) != 0 {
		t.Error(h.Checkpoints(), err)
	}
	if entries, err := os.ReadDir(dir); len(entries) != 3 { // the segment, its anchor and the floor
		t.Errorf("%v, %v", entries, err)
	}
}

// export writes records[from:] with the state "state" before them; keep chooses
// those that are whole.
func export(t testing.TB, records []log.Record, from int, keep func(log.Record) bool) []byte {
	t.Helper()
	var out bytes.Buffer
	before, last := log.Hash{}, records[len(records)-1]
	if from > 0 {
		before = records[from-1].Chain
	}
	e, err := NewExporter(&out, &eventpb.ArchiveHeader{
		Cluster: "c", First: uint64(from) + 1, Last: uint64(last.Revision), Chain: last.Chain[:],
	}, before)
	if err != nil {
		t.Fatal(err)
	}
	if from > 0 {
		if err := e.State(func(w io.Writer) error { _, err := io.WriteString(w, strings.Repeat("state", 50_000)); return err }); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range records[from:] {
		if err := e.Add(r, keep(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func openBytes(t testing.TB, b []byte) (*History, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "export")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return OpenFile(path, slog.New(slog.DiscardHandler))
}

func all(log.Record) bool { return true }

func TestExport(t *testing.T) {
	records := chainOf(1, 3000, log.Hash{})
	for _, from := range []int{0, 1, 1500} {
		h, err := openBytes(t, export(t, records, from, all))
		if err != nil {
			t.Fatal(err)
		}
		if last, chain := h.Last(); last != 3000 || chain != records[2999].Chain || h.First() != log.Revision(from+1) || h.Exported().Cluster != "c" {
			t.Errorf("first %d, last %d, %v", h.First(), last, h.Exported())
		}
		sameRecords(t, read(t, h, h.First(), 3000), records[from:])
		if err := h.Verify(t.Context(), 1); err != nil {
			t.Error(err)
		}
		if from == 0 {
			continue
		}
		r, err := h.OpenCheckpoint(h.Checkpoints()[0])
		if err != nil {
			t.Fatal(err)
		}
		state, err := io.ReadAll(r)
		if string(state) != strings.Repeat("state", 50_000) || err != nil || h.Checkpoints()[0] != log.Revision(from) {
			t.Errorf("state of %v: %d bytes, %v", h.Checkpoints(), len(state), err)
		}
		r.Close()
	}
}

// A filtered export proves its chain, and has only what was asked for.
func TestFilteredExport(t *testing.T) {
	records := chainOf(1, 3000, log.Hash{})
	h, err := openBytes(t, export(t, records, 0, func(r log.Record) bool { return r.Revision%3 == 0 }))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Verify(t.Context(), 1); err != nil {
		t.Error(err)
	}
	for _, revision := range []log.Revision{1, 3, 1499, 1500} {
		r, err := h.Record(t.Context(), revision)
		switch {
		case revision%3 != 0 && !errors.Is(err, ErrLeftOut):
			t.Errorf("revision %d: %v", revision, err)
		case revision%3 == 0 && (err != nil || !equal(&r, &records[revision-1])):
			t.Errorf("revision %d: %+v, %v", revision, r, err)
		}
	}
}

// Cut anywhere or with any bit flipped, an export is refused or Verify says where.
func TestExportDamage(t *testing.T) {
	records := chainOf(1, 2000, log.Hash{})
	whole := export(t, records, 700, all)
	for n := 0; n < len(whole); n += 127 {
		flipped := bytes.Clone(whole)
		flipped[n] ^= 0x08
		if n >= 12 && n < 16 || n >= 60 && n < headerSize {
			flipped = whole[:len(whole)-1] // bytes without a meaning
		}
		for what, b := range map[string][]byte{"cut": whole[:n], "flipped": flipped} {
			h, err := openBytes(t, b)
			if err == nil {
				err = h.Verify(t.Context(), 1)
			}
			if err == nil && len(h.Checkpoints()) > 0 {
				// Nothing but the state may be hit, which its reader checks.
				r, openErr := h.OpenCheckpoint(700)
				if openErr != nil {
					t.Fatalf("%s at %d: %v", what, n, openErr)
				}
				_, err = io.ReadAll(r)
				r.Close()
			}
			if !errors.Is(err, log.ErrCorrupt) {
				t.Fatalf("%s at %d of %d: %v", what, n, len(whole), err)
			}
		}
	}
}

func FuzzOpenFile(f *testing.F) {
	records := chainOf(1, 50, log.Hash{})
	f.Add(export(f, records, 0, all))
	f.Add(export(f, records, 20, func(r log.Record) bool { return r.Revision%2 == 0 }))
	f.Fuzz(func(t *testing.T, content []byte) {
		h, err := openBytes(t, content)
		if err != nil {
			return
		}
		if err := h.Verify(t.Context(), 1); err != nil {
			return
		}
		for _, at := range h.Checkpoints() {
			if r, err := h.OpenCheckpoint(at); err == nil {
				_, _ = io.Copy(io.Discard, r)
				r.Close()
			}
		}
	})
}
