package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func open(t testing.TB, c Config) *Journal {
	t.Helper()
	j, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func contents(t testing.TB, j *Journal) []Record {
	t.Helper()
	var out []Record
	if err := j.Replay(func(r Record) error { out = append(out, r); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func data(seq uint64) []byte { return []byte(fmt.Sprintf("record %d", seq)) }

// Random appends, restarts, compactions and acknowledgements against a plain list.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "journal")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		c := Config{Dir: dir, SegmentBytes: 200}
		j, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = j.Close() }()
		var want []uint64
		last, shipped := uint64(0), uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				n := rapid.IntRange(1, 4).Draw(t, "n")
				var records [][]byte
				for i := range n {
					records = append(records, data(last+uint64(i)+1))
				}
				first, err := j.Append(records...)
				if err != nil || first != last+1 {
					t.Fatalf("append: %d, %v; want %d", first, err, last+1)
				}
				for range n {
					last++
					want = append(want, last)
				}
			},
			"ship": func(t *rapid.T) {
				shipped = max(shipped, rapid.Uint64Range(0, last).Draw(t, "shipped"))
				j.Shipped(shipped)
			},
			"compact": func(t *rapid.T) {
				keep := rapid.Uint64Range(1, 5).Draw(t, "keep")
				live := func(seq uint64) bool { return seq%keep == 0 }
				if err := j.Compact(live); err != nil {
					t.Fatal(err)
				}
				// A file that is not closed keeps all that it has; here it always is.
				want = slices.DeleteFunc(want, func(seq uint64) bool { return seq <= shipped && !live(seq) })
			},
			"restart": func(t *rapid.T) {
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
				if j, err = Open(c); err != nil {
					t.Fatal(err)
				}
				shipped = 0
			},
			"reset": func(t *rapid.T) {
				last += rapid.Uint64Range(0, 3).Draw(t, "ahead")
				if err := j.Reset(last); err != nil {
					t.Fatal(err)
				}
				want, shipped = nil, last
			},
			"": func(t *rapid.T) {
				var got []uint64
				err := j.Replay(func(r Record) error {
					if !bytes.Equal(r.Data, data(r.Seq)) {
						t.Fatalf("record %d: %q", r.Seq, r.Data)
					}
					got = append(got, r.Seq)
					return nil
				})
				if err != nil || !slices.Equal(got, want) || j.Last() != last {
					t.Fatalf("has %v, last %d, %v; want %v, last %d", got, j.Last(), err, want, last)
				}
			},
		})
	})
}

func TestConcurrentAppendsAreDenseAndRead(t *testing.T) {
	j := open(t, Config{Dir: t.TempDir(), SegmentBytes: 2000})
	const writers, each = 8, 40
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := j.Append([]byte("x"), []byte("y")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			j.Shipped(j.Last())
			if err := j.Compact(func(uint64) bool { return true }); err != nil {
				t.Error(err)
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for after := uint64(0); after < 2*writers*each; {
		if err := j.Wait(ctx, after); err != nil {
			t.Fatal(err)
		}
		records, err := j.Read(after, 7)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if r.Seq != after+1 || string(r.Data) != string("yx"[r.Seq%2]) {
				t.Fatalf("record %d is %q after %d", r.Seq, r.Data, after)
			}
			after = r.Seq
		}
	}
	wg.Wait()
}

func TestFullJournalRefusesAndRecovers(t *testing.T) {
	j := open(t, Config{Dir: t.TempDir(), MaxBytes: 600, SegmentBytes: 200})
	var n uint64
	for {
		if _, err := j.Append(data(n + 1)); err != nil {
			if !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
			break
		}
		n++
	}
	if got := contents(t, j); uint64(len(got)) != n || n == 0 || j.Last() != n {
		t.Fatalf("%d records, last %d; want %d", len(got), j.Last(), n)
	}
	j.Shipped(n)
	if err := j.Compact(func(uint64) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if first, err := j.Append(data(n + 1)); err != nil || first != n+1 {
		t.Fatalf("after compaction: %d, %v", first, err)
	}
	if _, err := j.Read(0, 1); !errors.Is(err, ErrCompacted) {
		t.Fatalf("read from the start: %v, want ErrCompacted", err)
	}
}

// A disk without room: what was promised stays, and writing goes on once there is
// room again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	j := open(t, Config{Dir: filepath.Join(dir, "j")})
	var n uint64
	record := bytes.Repeat([]byte("z"), 700)
	for {
		if _, err := j.Append(record); err != nil {
			if !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
		n++
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if first, err := j.Append(record); err != nil || first != n+1 {
		t.Fatalf("with room again: %d, %v; want %d", first, err, n+1)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, open(t, Config{Dir: filepath.Join(dir, "j")})); uint64(len(got)) != n+1 {
		t.Fatalf("%d records, want %d", len(got), n+1)
	}
}

// Whatever a crash leaves of the last write, all writes before it are whole.
func TestTornEndIsCut(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	if _, err := j.Append(data(1), data(2)); err != nil {
		t.Fatal(err)
	}
	promised := j.Size()
	if _, err := j.Append(data(3), data(4), data(5)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := segmentPath(dir, 1)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(Config{Dir: dir})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer j.Close()
		got := contents(t, j)
		if len(got) < 2 || got[0].Seq != 1 || got[1].Seq != 2 {
			t.Fatalf("%s: records %v", name, got)
		}
		if first, err := j.Append(data(9)); err != nil || first != got[len(got)-1].Seq+1 {
			t.Fatalf("%s: next is %d, %v", name, first, err)
		}
	}
	for n := promised; n <= int64(len(whole)); n++ {
		check(fmt.Sprintf("cut at %d", n), whole[:n])
		holed := slices.Clone(whole) // blocks reach the disk in any order
		clear(holed[promised:min(n, int64(len(whole)))])
		check(fmt.Sprintf("zeros up to %d", n), holed)
	}
}

func TestDamageIsTold(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	for i := range uint64(5) {
		if _, err := j.Append(data(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(segmentPath(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(whole)
	flipped[len(magic)+recordHeader+2] ^= 1
	if err := os.WriteFile(segmentPath(dir, 1), flipped, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a flipped bit: %v, want ErrDamaged", err)
	}
	if err := os.WriteFile(segmentPath(dir, 1), []byte("something else entirely"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("another file: %v, want ErrDamaged", err)
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{Dir: dir})
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Fatalf("%v, want ErrLocked", err)
	}
}

// A compaction that was cut short between any two of its steps loses nothing that
// was to stay.
func TestInterruptedCompaction(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir, SegmentBytes: 60})
	for i := range uint64(12) {
		if _, err := j.Append(data(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	before := t.TempDir()
	if err := os.CopyFS(before+"/d", os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	j.Shipped(12)
	if err := j.Compact(func(seq uint64) bool { return seq%3 == 1 }); err != nil {
		t.Fatal(err)
	}
	merged, err := os.ReadFile(segmentPath(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	old, err := listSegments(before + "/d")
	if err != nil || len(old) < 3 {
		t.Fatalf("segments %v, %v", old, err)
	}
	for removed := range len(old) - 1 {
		d := filepath.Join(t.TempDir(), strconv.Itoa(removed))
		if err := os.CopyFS(d, os.DirFS(before+"/d")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(segmentPath(d, 1), merged, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, first := range old[1 : 1+removed] {
			if err := os.Remove(segmentPath(d, first)); err != nil {
				t.Fatal(err)
			}
		}
		got := map[uint64]bool{}
		last := uint64(0)
		for _, r := range contents(t, open(t, Config{Dir: d})) {
			if r.Seq <= last || !bytes.Equal(r.Data, data(r.Seq)) {
				t.Fatalf("record %d after %d: %q", r.Seq, last, r.Data)
			}
			last, got[r.Seq] = r.Seq, true
		}
		for seq := uint64(1); seq <= 12; seq += 3 {
			if !got[seq] {
				t.Fatalf("%d files removed: record %d is lost", removed, seq)
			}
		}
	}
}

// TestKill lets a process append and kills it, again and again: what it has
// reported as durable is there, and numbers go on.
func TestKill(t *testing.T) {
	if dir := os.Getenv("JOURNAL_KILL_DIR"); dir != "" {
		appendForever(dir)
	}
	dir := t.TempDir()
	reported := uint64(0)
	for range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "JOURNAL_KILL_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var number [8]byte
		for i := 0; i < 40; i++ {
			if _, err := out.Read(number[:]); err != nil {
				t.Fatal(err)
			}
			reported = max(reported, binary.LittleEndian.Uint64(number[:]))
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		j, err := Open(Config{Dir: dir, SegmentBytes: 4000})
		if err != nil {
			t.Fatal(err)
		}
		got := contents(t, j)
		for i, r := range got {
			if r.Seq != uint64(i)+1 || string(r.Data) != strings.Repeat("k", int(r.Seq%50)) {
				t.Fatalf("record %d at place %d: %q", r.Seq, i, r.Data)
			}
		}
		if uint64(len(got)) < reported {
			t.Fatalf("%d records, %d were promised", len(got), reported)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func appendForever(dir string) {
	j, err := Open(Config{Dir: dir, SegmentBytes: 4000})
	if err != nil {
		panic(err)
	}
	for seq := j.Last() + 1; ; seq++ {
		if _, err := j.Append([]byte(strings.Repeat("k", int(seq%50)))); err != nil {
			panic(err)
		}
		if _, err := os.Stdout.Write(binary.LittleEndian.AppendUint64(nil, seq)); err != nil {
			os.Exit(1)
		}
	}
}

// FuzzOpen opens files of any content: it never panics, and what it takes it can
// also replay and go on from.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(magic))
	f.Add(appendRecord(appendRecord([]byte(magic), 1, 0, data(1)), 2, 1, data(2)))
	f.Add(appendRecord([]byte(magic), 3, 1, data(1))[:30])
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(segmentPath(dir, 1), b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(Config{Dir: dir})
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		defer j.Close()
		n := len(contents(t, j))
		if j.Last() == 1<<64-1 {
			return
		}
		first, err := j.Append(data(0))
		if err != nil || first != j.Last() {
			t.Fatalf("append: %d, %v", first, err)
		}
		if got := contents(t, j); len(got) != n+1 || !bytes.Equal(got[n].Data, data(0)) {
			t.Fatalf("%d records, then %d", n, len(got))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, waiting := range []int{1, 100} {
		b.Run(strconv.Itoa(waiting), func(b *testing.B) {
			j := open(b, Config{Dir: b.TempDir(), MaxBytes: 1 << 40})
			record := bytes.Repeat([]byte("r"), 150)
			b.SetParallelism(waiting)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := j.Append(record); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
