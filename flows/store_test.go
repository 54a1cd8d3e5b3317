package flows

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/varve-net/varve/bpf/abi"
)

// clock is a wall clock that tests set.
type clock struct{ ns int64 }

func (c *clock) now() time.Time { return time.Unix(0, c.ns) }

type testStore struct {
	*Store
	t     *testing.T
	clock *clock
	lost  *uint64
}

func openStore(t *testing.T, dir string, clock *clock, change func(*Config)) *testStore {
	t.Helper()
	lost := new(uint64)
	cfg := Config{Dir: dir, Logger: slog.New(slog.DiscardHandler), now: clock.now, Lost: func() (uint64, error) { return *lost, nil }}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &testStore{s, t, clock, lost}
}

// flow n is seen now.
func (s *testStore) flow(n int) Flow {
	return Flow{
		Key: Key{
			Src: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), Dst: netip.MustParseAddr("fd00::1"), SrcName: fmt.Sprintf("default/p%d", n), SrcIdentity: 300,
			DstIdentity: 2, Protocol: 6, Port: 443, Verdict: Dropped, Reason: abi.PolicyDefaultDeny, Direction: abi.Egress, Row: 0xfedcba9876543210,
		},
		Rules:   []string{"cnp/default/a egress[0]", "cnp/default/b egress[1]"},
		FirstNS: s.clock.ns, LastNS: s.clock.ns, Count: 1, FirstRevision: 7, LastRevision: 7,
	}
}

func (s *testStore) pass(d time.Duration) { s.clock.ns += int64(d) }

// all is what the store tells of a time, in lines.
func (s *testStore) all(from, to int64) string {
	s.t.Helper()
	var b strings.Builder
	sec := func(ns int64) string { return time.Duration(ns).String() }
	err := s.Read(s.t.Context(), from, to, func(f *Flow) error {
		fmt.Fprintf(&b, "%s %s-%s x%d\n", f.SrcName, sec(f.FirstNS), sec(f.LastNS), f.Count)
		return nil
	}, func(g Gap) error {
		fmt.Fprintf(&b, "gap %s-%s lost %d overflowed %d", sec(g.FromNS), sec(g.ToNS), g.Lost, g.Overflowed)
		if g.Damaged != "" {
			b.WriteString(" damaged")
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return b.String()
}

func (s *testStore) expect(from, to int64, want string) {
	s.t.Helper()
	if diff := cmp.Diff(strings.TrimLeft(want, "\n"), s.all(from, to)); diff != "" {
		s.t.Errorf("(-want +got):\n%s", diff)
	}
}

const second = int64(time.Second)

// A record that is read beside its writer is what is in its files, and nothing in the
// folder is touched: not even the end that a crash tore off.
func TestReadOnly(t *testing.T) {
	dir, c := t.TempDir(), &clock{100 * second}
	s := openStore(t, dir, c, nil)
	s.Observe(s.flow(1))
	s.pass(time.Second)
	s.write(false)
	s.Observe(s.flow(2)) // in memory
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	path := filepath.Join(dir, files[0].Name())
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	torn := append(whole, whole[headerSize:len(whole)-3]...)
	if err := os.WriteFile(path, torn, 0o600); err != nil {
		t.Fatal(err)
	}

	r, err := OpenReadOnly(dir)
	if err != nil {
		t.Fatal(err)
	}
	read := testStore{r, t, c, nil}
	read.expect(100*second, 105*second, `
default/p1 1m40s-1m40s x1
gap 1m41s-1m45s lost 0 overflowed 0
`)
	if r.Now() != time.Unix(101, 0) {
		t.Errorf("it ends at %s", r.Now())
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, torn) {
		t.Errorf("the file has changed; %v", err)
	}
	if _, err := OpenReadOnly(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no folder: %v", err)
	}
}

func TestFlowsAreCountedAndKept(t *testing.T) {
	dir, c := t.TempDir(), &clock{100 * second}
	s := openStore(t, dir, c, nil)
	s.Observe(s.flow(1))
	s.pass(time.Second)
	s.Observe(s.flow(2))
	s.pass(time.Second)
	again := s.flow(1)
	again.LastRevision = 9
	s.Observe(again)
	s.expect(100*second, 102*second, `
default/p1 1m40s-1m42s x2
default/p2 1m41s-1m41s x1
`)
	s.pass(time.Second)
	s.write(false)
	s.Observe(s.flow(1))
	*s.lost = 5
	s.pass(5 * time.Second)
	s.write(false)
	want := `
default/p1 1m40s-1m42s x2
default/p2 1m41s-1m41s x1
gap 1m43s-1m48s lost 5 overflowed 0
default/p1 1m43s-1m43s x1
`
	s.expect(100*second, 108*second, want)
	s.expect(101*second+1, 102*second, "default/p1 1m40s-1m42s x2\n")
	s.expect(99*second, 100*second, "gap 1m39s-1m40s lost 0 overflowed 0\ndefault/p1 1m40s-1m42s x2\n")
	s.expect(108*second, 109*second, "gap 1m48s-1m49s lost 0 overflowed 0\n")

	// Killed, and started again after a minute.
	s.pass(time.Minute)
	next := openStore(t, dir, c, nil)
	next.Observe(next.flow(3))
	next.pass(time.Second)
	next.write(false)
	next.expect(100*second, 169*second, want+`gap 1m48s-2m48s lost 0 overflowed 0
default/p3 2m48s-2m48s x1
`)
	var kept []Flow
	if err := next.Read(t.Context(), 0, 102*second, func(f *Flow) error { kept = append(kept, *f); return nil }, nil); err != nil {
		t.Fatal(err)
	}
	first := s.flow(1)
	first.FirstNS, first.LastNS, first.LastRevision, first.Count = 100*second, 102*second, 9, 2
	if diff := cmp.Diff(first, kept[0], cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("a flow came back otherwise (-was +is):\n%s", diff)
	}
	if st := next.Stats(); st.FromNS != 100*second || st.ToNS != 169*second || st.Segments != 1 || st.Lost != 5 || st.Bytes == 0 {
		t.Errorf("%+v", st)
	}
}

func TestIdleStoreSaysThatItWatched(t *testing.T) {
	dir, c := t.TempDir(), &clock{100 * second}
	s := openStore(t, dir, c, nil)
	for range 20 {
		s.pass(5 * time.Second)
		s.write(false)
	}
	next := openStore(t, dir, c, nil)
	next.expect(100*second, 190*second, "")
	next.expect(100*second, 200*second, "gap 3m10s-3m20s lost 0 overflowed 0\n")
}

// Cut at any byte, the store tells what is whole, and goes on.
func TestTornEnd(t *testing.T) {
	dir, c := t.TempDir(), &clock{100 * second}
	s := openStore(t, dir, c, nil)
	var ends []int64
	for n := range 3 {
		s.Observe(s.flow(n))
		s.pass(5 * time.Second)
		s.write(false)
		ends = append(ends, s.segments[0].end)
	}
	path := s.segments[0].path
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range whole {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := 0
		for want < len(ends) && ends[want] <= int64(cut) {
			want++
		}
		next := openStore(t, dir, c, nil)
		next.Observe(next.flow(9))
		next.write(true)
		if got := next.all(0, c.ns); strings.Count(got, "default/p") != want+1 || strings.Contains(got, "damaged") && cut > headerSize {
			t.Fatalf("cut at %d: %d flows were whole, got\n%s", cut, want, got)
		}
		for _, seg := range next.segments {
			os.Remove(seg.path)
		}
	}
}

// A flipped bit hides no flow before it, is told, and is never served as a flow.
func TestFlippedBits(t *testing.T) {
	dir, c := t.TempDir(), &clock{100 * second}
	s := openStore(t, dir, c, nil)
	for n := range 3 {
		s.Observe(s.flow(n))
		s.pass(5 * time.Second)
		s.write(false)
	}
	path := s.segments[0].path
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	honest := s.all(0, c.ns)
	for at := range whole {
		bad := bytes.Clone(whole)
		bad[at] ^= 1 << (at % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		next := openStore(t, dir, c, nil)
		got := next.all(0, c.ns)
		for line := range strings.Lines(got) {
			if !strings.HasPrefix(line, "gap") && !strings.Contains(honest, line) {
				t.Fatalf("flipped at %d: a flow that never was: %s", at, line)
			}
		}
		if !strings.Contains(got, "gap") {
			t.Fatalf("flipped at %d: nothing is said to be missing:\n%s", at, got)
		}
		next.Observe(next.flow(9))
		next.write(true)
		if got := next.all(0, c.ns+second); !strings.Contains(got, "default/p9") {
			t.Fatalf("flipped at %d: it does not go on:\n%s", at, got)
		}
		for _, seg := range next.segments {
			os.Remove(seg.path)
		}
	}
}

func TestRetention(t *testing.T) {
	dir, c := t.TempDir(), &clock{100 * second}
	s := openStore(t, dir, c, func(cfg *Config) { cfg.MaxBytes, cfg.MaxAge = 32<<10, time.Hour })
	for n := range 2000 {
		s.Observe(s.flow(n))
		s.pass(time.Second)
		s.write(false)
	}
	st := s.Stats()
	if st.Bytes > 32<<10 || st.Bytes < 20<<10 || st.Segments < 8 {
		t.Errorf("by size: %+v", st)
	}
	if got := s.all(100*second, c.ns); !strings.HasPrefix(got, "gap 1m40s-") || !strings.Contains(got, "default/p1999 ") || strings.Contains(got, "default/p1 ") {
		t.Errorf("by size:\n%.200s", got)
	}
	s.pass(2 * time.Hour)
	s.Observe(s.flow(1))
	s.write(false)
	if st := s.Stats(); st.Segments != 1 {
		t.Errorf("by age: %+v", st)
	}
}

func TestTooManyDistinctFlows(t *testing.T) {
	s := openStore(t, t.TempDir(), &clock{100 * second}, nil)
	f := s.flow(1)
	for n := range maxFlows + 3 {
		f.SrcIdentity = uint32(n)
		s.Observe(f)
	}
	s.pass(time.Second)
	s.write(false)
	if got := s.all(100*second, 101*second); !strings.HasPrefix(got, "gap 1m40s-1m41s lost 0 overflowed 3\n") {
		t.Errorf("%.100s", got)
	}
}

// A disk that takes nothing is told; what was not written is told too, once it
// takes something again.
func TestUnwritableStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "flows")
	s := openStore(t, dir, &clock{100 * second}, nil)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.Observe(s.flow(1))
	s.pass(time.Second)
	s.write(false)
	if s.Stats().Err == nil {
		t.Fatal("no error")
	}
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	s.Observe(s.flow(2))
	s.pass(time.Second)
	s.write(false)
	if err := s.Stats().Err; err != nil {
		t.Fatal(err)
	}
	s.expect(100*second, 102*second, `
gap 1m40s-1m42s lost 0 overflowed 1
default/p2 1m41s-1m41s x1
`)
}

func TestNewerFormatIsNotRead(t *testing.T) {
	dir, c := t.TempDir(), &clock{100 * second}
	newer := appendHeader(nil)
	newer[8]++
	copy(newer[12:], appendHeader(nil)[12:])
	if err := checkHeader(newer); err == nil {
		t.Error("a wrong checksum passes")
	}
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir, c, nil)
	s.Observe(s.flow(1))
	s.write(true)
	if got := s.all(50*second, c.ns); !strings.Contains(got, "damaged") || !strings.Contains(got, "default/p1") {
		t.Error(got)
	}
}

// A follower gets all that is kept and then all that comes, each once.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clock{100 * second}
		s := openStore(t, t.TempDir(), c, nil)
		s.Observe(s.flow(1))
		s.pass(time.Second)
		s.write(false)
		s.Observe(s.flow(2))
		ctx, stop := context.WithCancel(t.Context())
		var got []string
		done := make(chan error, 1)
		go func() {
			done <- s.Follow(ctx, 100*second, func(f *Flow) error { got = append(got, f.SrcName); return nil }, nil, func() error {
				got = append(got, "live")
				return nil
			})
		}()
		synctest.Wait()
		for n := 3; n < 6; n++ {
			s.Observe(s.flow(n))
			s.write(true)
		}
		synctest.Wait()
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"default/p1", "default/p2", "live", "default/p3", "default/p4", "default/p5"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestRunWritesAtTheEnd(t *testing.T) {
	dir, c := t.TempDir(), &clock{100 * second}
	s := openStore(t, dir, c, nil)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	s.Observe(s.flow(1))
	stop()
	<-done
	if got := openStore(t, dir, c, nil).all(100*second, 100*second); got != "default/p1 1m40s-1m40s x1\n" {
		t.Error(got)
	}
}

func FuzzDecodeBlock(f *testing.F) {
	s := testStore{clock: &clock{100 * second}}
	b := block{fromNS: 100 * second, toNS: 101 * second, lost: 3, flows: []Flow{s.flow(1), s.flow(2)}}
	raw, err := b.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := decodeBlock(raw)
		if err != nil {
			return
		}
		// What can be read can be written again, as the same.
		raw, err = b.encode()
		if err != nil {
			return // strings that are no UTF-8
		}
		if _, err := decodeBlock(raw); err != nil {
			t.Error(err)
		}
	})
}
