package past

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/raftlog"
)

var crashesFlag = flag.Int("crashes", 5, "how often the writer of a short history is killed, in each of two")

// crashEvents are in each short history, crashStep is how far apart the states are that
// are compared.
const (
	crashEvents = 2500
	crashStep   = 100
)

// told is a short history as its events tell it, before anything is written.
type told struct {
	m      mix.Mix
	events []*eventpb.Event
	lines  map[log.Revision]map[string]string
}

func tell(t *testing.T) *told {
	t.Helper()
	all := &told{m: shape(crashEvents), lines: map[log.Revision]map[string]string{}}
	naive := newModel(all.m.Cluster)
	all.lines[0] = naive.lines()
	for e, err := range all.m.From(0) {
		if err != nil {
			t.Fatal(err)
		}
		all.events = append(all.events, proto.CloneOf(e))
		at := log.Revision(len(all.events))
		if err := naive.apply(at, e); err != nil {
			t.Fatal(err)
		}
		if at%crashStep == 0 {
			all.lines[at] = naive.lines()
		}
	}
	return all
}

// Whatever a crash comes between, of appends, compactions, checkpoints, packing,
// retention and restarts, nothing that was acknowledged is missing, and every state
// that is kept is the one that the events tell.
func TestCrashesLeaveNoGap(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", seed)
	all := tell(t)
	for name, maxBytes := range map[string]int64{"all is kept": 0, "retention": 60 << 10} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, uint64(maxBytes)))
			j := job{dir: t.TempDir(), events: crashEvents, maxBytes: maxBytes}
			acked := log.Revision(0)
			for range *crashesFlag {
				j.seed = random.Uint64()
				end := runWriter(t, j, drawMoment(random), time.Duration(random.Int64N(int64(15*time.Millisecond))))
				acked = max(acked, end.acked)
				first, last := all.check(t, j.dir, acked)
				t.Logf("killed after revision %d, doing %s; %d to %d are kept", acked, end.doing, first, last)
				if t.Failed() {
					return
				}
				if end.done {
					break
				}
			}
			j.seed = random.Uint64()
			if end := runWriter(t, j, never, 0); !end.done {
				t.Fatalf("the last writer ended after revision %d", end.acked)
			}
			first, last := all.check(t, j.dir, acked)
			if last != crashEvents || first == 1 && maxBytes > 0 {
				t.Errorf("in the end %d to %d are kept", first, last)
			}
		})
	}
}

// drawMoment is after some acknowledgements, or when something else is done for the
// n-th time.
func drawMoment(random *rand.Rand) func(string) bool {
	if random.IntN(2) == 0 {
		return afterAcks(1 + random.IntN(30))
	}
	what := []string{"doing open", "doing close", "doing keep", "doing keep", "doing compaction"}[random.IntN(5)]
	n := 1 + random.IntN(2)
	return func(says string) bool {
		if says == what {
			n--
		}
		return n == 0
	}
}

// check reads what a writer left, and returns which revisions are kept.
func (all *told) check(t *testing.T, dir string, acked log.Revision) (first, last log.Revision) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "log", "history")); errors.Is(err, os.ErrNotExist) && acked == 0 {
		return 1, 0 // it was killed before there was one
	}
	archive, err := past.OpenArchive(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		if acked > 0 {
			t.Errorf("after revision %d: %v", acked, err)
		}
		return 1, 0
	}
	defer archive.History.Close()
	first = archive.First()
	last, _ = archive.History.Last()
	// A crash may leave the newest to the Raft log alone: the next start fills it in.
	if _, err := archive.Verify(t.Context(), archive.History, last); err != nil {
		t.Errorf("%d to %d: %v", first, last, err)
	}
	next := first
	err = archive.History.Read(t.Context(), first, last, func(r log.Record) error {
		event, err := log.Unmarshal(r.Event)
		if err != nil {
			return err
		}
		want := proto.CloneOf(all.events[next-1])
		want.TimeUnixNs = event.TimeUnixNs
		if r.Revision != next || !proto.Equal(want, event) {
			return fmt.Errorf("revision %d, where %d has to follow, is %v, was %v", r.Revision, next, event, want)
		}
		next++
		return nil
	})
	if err != nil || next != last+1 {
		t.Errorf("%d to %d: the records end before %d; %v", first, last, next, err)
	}
	for _, at := range slices.Sorted(maps.Keys(all.lines)) {
		if at > last {
			break
		}
		v, err := archive.View(t.Context(), at)
		if at+1 < first {
			if !errors.Is(err, log.ErrCompacted) {
				t.Errorf("revision %d of %d to %d: %v", at, first, last, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("revision %d of %d to %d: %v", at, first, last, err)
		} else if diff := compare(all.lines[at], linesOf(v)); diff != "" {
			t.Errorf("revision %d (-events +state):\n%.2000s", at, diff)
		}
	}
	all.reopen(t, dir, acked)
	return first, last
}

// reopen has the log itself go on from what was left, as the next start would.
func (all *told) reopen(t *testing.T, dir string, acked log.Revision) {
	t.Helper()
	l, err := raftlog.Open(t.Context(), logConfig(dir, all.m))
	if err != nil {
		t.Errorf("the next start: %v", err)
		return
	}
	if head, _ := l.Head(); head < acked {
		t.Errorf("the next start is at revision %d, %d were acknowledged", head, acked)
	}
	if err := errors.Join(l.Verify(t.Context(), 1), l.Close(context.Background())); err != nil {
		t.Errorf("the next start: %v", err)
	}
}

// A snapshot that was received without the records before it is told: the start says
// which revisions are missing, none of them is answered, and all are once they are there.
func TestAReceivedSnapshotLeavesNoSilentGap(t *testing.T) {
	m := shape(crashEvents)
	behind, ahead := t.TempDir(), t.TempDir()
	grow := func(dir string, events int) log.Revision {
		t.Helper()
		l, err := raftlog.Open(t.Context(), logConfig(dir, m))
		if err != nil {
			t.Fatal(err)
		}
		head, _ := l.Head()
		for group, err := range groups(m, int(head), rand.New(rand.NewPCG(1, 1))) {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Append(t.Context(), group...); err != nil {
				t.Fatal(err)
			}
			if head, _ = l.Head(); int(head) >= events {
				break
			}
		}
		if err := errors.Join(l.Snapshot(t.Context()), l.Close(t.Context())); err != nil {
			t.Fatal(err)
		}
		return head
	}
	have := grow(behind, 500)
	if err := os.CopyFS(filepath.Join(ahead, "log"), os.DirFS(filepath.Join(behind, "log"))); err != nil {
		t.Fatal(err)
	}
	newest := grow(ahead, 900)

	// The snapshot of another replica comes, and the node dies before its records do.
	for _, part := range []string{"snapshots", "wal"} {
		replace(t, filepath.Join(behind, "log", part), filepath.Join(ahead, "log", part))
	}
	over := func(lost ...log.Revision) *raftlog.Log {
		t.Helper()
		l, err := raftlog.Open(t.Context(), logConfig(behind, m))
		if err != nil {
			t.Fatal(err)
		}
		var got []log.Revision
		for _, part := range l.History().Lost() {
			got = append(got, part.First, part.Last)
		}
		if head, _ := l.Head(); head != newest || !slices.Equal(got, lost) {
			t.Errorf("the start is at revision %d and lacks %v, want %d and %v", head, got, newest, lost)
		}
		return l
	}
	l := over(have+1, newest)
	for _, at := range []log.Revision{have, have + 1, newest} {
		_, err := l.History().Record(t.Context(), at)
		if missing := at > have; errors.Is(err, log.ErrCorrupt) != missing || !missing && err != nil {
			t.Errorf("revision %d: %v", at, err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(behind, "log", "history"), filepath.Join(ahead, "log", "history"))
	l = over()
	if err := errors.Join(l.Verify(t.Context(), 1), l.Close(t.Context())); err != nil {
		t.Error(err)
	}
}

// replace makes a folder a copy of another.
func replace(t *testing.T, dir, from string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
}
