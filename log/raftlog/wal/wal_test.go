package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/log"
)

// small segments make tests quick.
var small = sizes{16 << 10, 64 << 10}

func tryOpen(dir string) (*Store, error) { return open(dir, slog.New(slog.DiscardHandler), small) }

func mustOpen(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := tryOpen(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// crash lets go of a store as a killed process does.
func crash(t testing.TB, s *Store) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = errClosed
	if err := s.letGo(); err != nil {
		t.Fatal(err)
	}
}

func entry(index uint64, size int) *raft.Log {
	return &raft.Log{
		Index: index, Term: index / 10, Type: raft.LogCommand,
		Data: bytes.Repeat([]byte{byte(index)}, size), AppendedAt: time.Unix(0, int64(index)),
	}
}

func store(t testing.TB, s *Store, first, last uint64, size int) {
	t.Helper()
	for i := first; i <= last; i++ {
		if err := s.StoreLog(entry(i, size)); err != nil {
			t.Fatal(err)
		}
	}
}

// holds checks that s has the entries from first to last and no other.
func holds(t testing.TB, s *Store, first, last uint64) {
	t.Helper()
	gotFirst, err := s.FirstIndex()
	gotLast, err2 := s.LastIndex()
	if err = errors.Join(err, err2); err != nil || gotFirst != first || gotLast != last {
		t.Fatalf("entries %d to %d, %v; want %d to %d", gotFirst, gotLast, err, first, last)
	}
	var e raft.Log
	for i := first; i <= last && last != 0; i++ {
		if err := s.GetLog(i, &e); err != nil || e.Index != i || e.Term != i/10 || (len(e.Data) > 0 && e.Data[0] != byte(i)) || e.AppendedAt.UnixNano() != int64(i) {
			t.Fatalf("entry %d: %+v, %v", i, e, err)
		}
	}
	for _, i := range []uint64{first - 1, last + 1} {
		if err := s.GetLog(i, &e); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("entry %d: %v, want ErrLogNotFound", i, err)
		}
	}
}

func TestEntryComesBackAsItWas(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	want := []*raft.Log{
		{Index: 5, Term: 1, Type: raft.LogConfiguration, Data: []byte("c"), Extensions: []byte("ext")},
		{Index: 6, Term: 2, Type: raft.LogNoop},
		{Index: 7, Term: 3, Data: []byte("d"), AppendedAt: time.Unix(3, 4)},
	}
	if err := s.StoreLogs(want); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = mustOpen(t, dir)
	for _, w := range want {
		var got raft.Log
		if err := s.GetLog(w.Index, &got); err != nil {
			t.Fatal(err)
		}
		if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", *w); g != w {
			t.Errorf("%s, want %s", g, w)
		}
	}
}

// The store against a list, with small segments, through restarts and crashes.
func TestStoreIsAList(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		s := mustOpen(t, dir)
		defer func() { s.Close() }()
		first, next := uint64(0), uint64(1)
		check := func() {
			last := next - 1
			if first == 0 {
				last = 0
			}
			got, _ := s.FirstIndex()
			if got > first || first == 0 && got != 0 {
				rt.Fatalf("first is %d, want %d", got, first)
			}
			if got < first { // whole segments only: after a restart there may be more
				first = got
			}
			holds(t, s, first, last)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { check() },
			"store": func(rt *rapid.T) {
				var batch []*raft.Log
				for range rapid.IntRange(1, 5).Draw(rt, "entries") {
					batch = append(batch, entry(next, rapid.SampledFrom([]int{1, 100, 9 << 10}).Draw(rt, "bytes")))
					next++
				}
				if first == 0 {
					first = batch[0].Index
				}
				if err := s.StoreLogs(batch); err != nil {
					rt.Fatal(err)
				}
			},
			"front": func(rt *rapid.T) {
				if first == 0 {
					return
				}
				to := rapid.Uint64Range(first, next-1).Draw(rt, "to")
				if err := s.DeleteRange(first, to); err != nil {
					rt.Fatal(err)
				}
				if first = to + 1; first == next {
					first = 0
				}
			},
			"end": func(rt *rapid.T) {
				if first == 0 {
					return
				}
				from := rapid.Uint64Range(first, next-1).Draw(rt, "from")
				if err := s.DeleteRange(from, next-1); err != nil {
					rt.Fatal(err)
				}
				if next = from; next == first {
					first = 0
				}
			},
			"restart": func(*rapid.T) {
				closeStore(t, s)
				s = mustOpen(t, dir)
			},
			"crash": func(*rapid.T) {
				crash(t, s)
				s = mustOpen(t, dir)
			},
		})
	})
}

func TestGapIsRefused(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	store(t, s, 1, 3, 10)
	for _, batch := range [][]*raft.Log{{entry(5, 1)}, {entry(3, 1)}, {entry(4, 1), entry(6, 1)}} {
		if err := s.StoreLogs(batch); !errors.Is(err, ErrGap) {
			t.Errorf("%v", err)
		}
	}
	if err := s.DeleteRange(2, 2); err == nil {
		t.Error("a hole was made")
	}
	holds(t, s, 1, 3)
}

// segmentFiles are the segments of a directory.
func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestCompactionRemovesSegments(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	store(t, s, 1, 60, 3<<10)
	before := len(segmentFiles(t, dir))
	if err := s.DeleteRange(1, 50); err != nil {
		t.Fatal(err)
	}
	if after := len(segmentFiles(t, dir)); after >= before || before < 3 {
		t.Errorf("%d segments, then %d", before, after)
	}
	holds(t, s, 51, 60)
	if err := s.DeleteRange(51, 60); err != nil {
		t.Fatal(err)
	}
	if after := segmentFiles(t, dir); len(after) != 1 {
		t.Errorf("an empty log is in %v", after)
	}
	store(t, s, 100, 101, 10) // as after a snapshot of another server
	closeStore(t, s)
	holds(t, mustOpen(t, dir), 100, 101)
}

// Of what a crash leaves of the last write, whatever that is, nothing is taken for
// an entry, and nothing before it is lost.
func TestTornEndIsRemoved(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	store(t, s, 1, 20, 300)
	end := s.segments[0].end
	store(t, s, 21, 21, 9000)
	after := s.segments[0].end
	path := s.segments[0].path
	crash(t, s)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tear := range map[string]func(b []byte){
		"nothing came":           func(b []byte) { clear(b) },
		"the start came":         func(b []byte) { clear(b[100:]) },
		"all but the end came":   func(b []byte) { clear(b[len(b)-9:]) },
		"the end came":           func(b []byte) { clear(b[:4096-end%4096]) },
		"all but a page came":    func(b []byte) { clear(b[4096:8192]) },
		"a bit of it is flipped": func(b []byte) { b[5000] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(whole)
			tear(b[end:after])
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, dir)
			holds(t, s, 1, 20)
			store(t, s, 21, 22, 5)
			crash(t, s)
			s = mustOpen(t, dir)
			holds(t, s, 1, 22)
			crash(t, s)
		})
	}
}

// With a bit flipped anywhere, a store that was closed in order has every entry or
// is refused with file and remedy; and then it is left as it is.
func TestFlippedBits(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	store(t, s, 1, 8, 2400)
	if err := s.DeleteRange(7, 8); err != nil {
		t.Fatal(err)
	}
	store(t, s, 7, 9, 40)
	ends := map[string]int64{}
	for _, seg := range s.segments {
		ends[seg.path] = seg.end
	}
	closeStore(t, s)
	files := segmentFiles(t, dir)
	if len(files) != 2 {
		t.Fatal(files)
	}
	refused, held := 0, 0
	for i, path := range files {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(whole); at += 1 + len(whole)/200 + at%7 {
			if i == 1 && int64(at) >= ends[path] && int64(at) < ends[path]+frameSize {
				continue // the closing frame says nothing that is not known
			}
			b := bytes.Clone(whole)
			b[at] ^= 1 << (at % 8)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := tryOpen(dir)
			if err == nil {
				holds(t, s, 1, 9)
				crash(t, s)
				held++
				if int64(at) < ends[path] {
					t.Errorf("%s: bit at %d of frames up to %d is flipped, and it opens", path, at, ends[path])
				}
			} else {
				refused++
				if !errors.Is(err, log.ErrCorrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "restore") {
					t.Errorf("bit at %d: %v", at, err)
				}
				if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, b) {
					t.Errorf("bit at %d: the refused file was changed (%v)", at, err)
				}
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 || held == 0 {
		t.Errorf("%d refused, %d opened: the test has shown nothing", refused, held)
	}
}

func TestDamageIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(files []string) error
		want   string
	}{
		"the first segment is missing":  {func(f []string) error { return os.Remove(f[1]) }, "is missing"},
		"a segment is cut short":        {func(f []string) error { return os.Truncate(f[0], 1<<13) }, "should have"},
		"the last segment is cut short": {func(f []string) error { return os.Truncate(f[2], 1<<13) }, "should have"},
		"the last segment is empty":     {func(f []string) error { return os.Truncate(f[2], 0) }, "header has 0 bytes"},
		"two segments changed their names": {func(f []string) error {
			return errors.Join(os.Rename(f[0], f[0]+"x"), os.Rename(f[1], f[0]), os.Rename(f[0]+"x", f[1]))
		}, "header says that it is segment 2"},
		"another version": {func(f []string) error {
			b, err := os.ReadFile(f[0])
			if err != nil {
				return err
			}
			h := appendHeader(nil, header{number: 1})
			h[8]++
			return os.WriteFile(f[0], append(recrc(h), b[headerSize:]...), 0o600)
		}, "upgrade needed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, dir)
			store(t, s, 1, 18, 3200)
			closeStore(t, s)
			if err := tc.damage(segmentFiles(t, dir)); err != nil {
				t.Fatal(err)
			}
			s, err := tryOpen(dir)
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%v, want %q and the directory", err, tc.want)
			}
		})
	}
}

func TestRecordedFlipIsFoundByGetLog(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	store(t, s, 1, 3, 100)
	if _, err := s.segments[0].file.WriteAt([]byte{0xff}, s.index[1].offset+40); err != nil {
		t.Fatal(err)
	}
	var e raft.Log
	if err := s.GetLog(2, &e); !errors.Is(err, log.ErrCorrupt) || !strings.Contains(err.Error(), "entry 2") {
		t.Errorf("%v", err)
	}
	if err := s.GetLog(3, &e); err != nil {
		t.Error(err)
	}
}

// After a write that failed nothing more is stored, whatever the disk says then.
func TestFailedWriteIsFinal(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	store(t, s, 1, 2, 10)
	file := s.segments[0].file
	readOnly, err := os.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	s.segments[0].file = readOnly
	if err := s.StoreLog(entry(3, 10)); err == nil {
		t.Fatal("stored in a file that is read only")
	}
	s.segments[0].file = file
	if err := s.StoreLog(entry(3, 10)); err == nil || !strings.Contains(err.Error(), "until it is opened again") {
		t.Errorf("%v", err)
	}
	holds(t, s, 1, 2)
	readOnly.Close()
	closeStore(t, s)
	holds(t, mustOpen(t, dir), 1, 2)
}

func BenchmarkStore(b *testing.B) {
	for _, size := range []int{330, 5 << 10, 20 << 10, 80 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s, err := Open(b.TempDir(), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			index := uint64(0)
			b.SetBytes(int64(size))
			for b.Loop() {
				index++
				if err := s.StoreLog(entry(index, size)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// recrc gives a header the CRC that makes it whole.
func recrc(h []byte) []byte {
	binary.LittleEndian.PutUint32(h[headerSize-4:], crc32.Checksum(h[:headerSize-4], castagnoli))
	return h
}
