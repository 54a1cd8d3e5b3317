package past

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/internal/keeper"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/raftlog"
)

// TestMain is also the writer, when its environment says so.
func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		if err := write(context.Background(), dir, os.Stdout); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	writerEnv = "VARVE_TEST_PAST_DIR"
	eventsEnv = "VARVE_TEST_PAST_EVENTS"
	seedEnv   = "VARVE_TEST_PAST_SEED"
	bytesEnv  = "VARVE_TEST_PAST_MAX_BYTES"
)

// shape is the history of a test: the mix that is quoted if it is long, and a small
// cluster, in which more happens to each, if it is not.
func shape(events int) mix.Mix {
	m := mix.Whole(events)
	if events < 200_000 {
		m.Nodes, m.Namespaces, m.Endpoints, m.Apps, m.Policies, m.Names = 5, 10, 300, 6, 80, 60
	}
	return m
}

func logConfig(dir string, m mix.Mix) raftlog.Config {
	return raftlog.Config{
		Dir: filepath.Join(dir, "log"), Cluster: m.Cluster,
		Raft:              cluster.RaftConfig(cluster.Identity{Cluster: m.Cluster, Node: mix.Node(0), ServerID: "server-1"}),
		SnapshotThreshold: 1 << 40, NoTrailingLogs: true, ReserveBytes: 1, SegmentBytes: segmentBytes(m),
	}
}

// segmentBytes is a fiftieth of the history or so.
func segmentBytes(m mix.Mix) int64 { return max(64<<10, int64(m.Events)*300/50) }

func keeperOf(l *raftlog.Log, m mix.Mix, maxBytes int64) *keeper.Keeper {
	p := past.New(past.Config{Log: l, Cluster: m.Cluster, Checkpoints: l.History()})
	return keeper.New(keeper.Config{
		Log: l, Past: p, Events: log.Revision(max(500, min(m.Events/20, 65536))), Bytes: math.MaxInt64,
		MaxBytes: maxBytes, Logger: slog.New(slog.DiscardHandler),
	})
}

// write opens the log and goes on with its history, with compactions, checkpoints,
// packing and restarts at random, until all is in it. It tells what it does and up to
// which revision it was acknowledged.
func write(ctx context.Context, dir string, out io.Writer) error {
	events, err := strconv.Atoi(os.Getenv(eventsEnv))
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(os.Getenv(seedEnv), 10, 64)
	if err != nil {
		return err
	}
	maxBytes, err := strconv.ParseInt(os.Getenv(bytesEnv), 10, 64)
	if err != nil {
		return err
	}
	m, random := shape(events), rand.New(rand.NewPCG(seed, 1))
	for {
		fmt.Fprintln(out, "doing open")
		l, err := raftlog.Open(ctx, logConfig(dir, m))
		if err != nil {
			return err
		}
		whole, err := goOn(ctx, l, m, maxBytes, random, out)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "doing close")
		if err := l.Close(ctx); err != nil {
			return err
		}
		if whole {
			fmt.Fprintln(out, "done")
			return nil
		}
	}
}

// goOn appends until the history is whole, or it is time for a restart.
func goOn(ctx context.Context, l *raftlog.Log, m mix.Mix, maxBytes int64, random *rand.Rand, out io.Writer) (whole bool, err error) {
	k := keeperOf(l, m, maxBytes)
	head, _ := l.Head()
	for group, err := range groups(m, int(head), random) {
		if err != nil {
			return false, err
		}
		results, err := l.Append(ctx, group...)
		if err != nil {
			return false, err
		}
		for _, r := range results {
			if r.Outcome != log.OutcomeApplied {
				return false, fmt.Errorf("%+v", r)
			}
		}
		fmt.Fprintln(out, "ack", results[len(results)-1].Revision)
		// In a short history something happens every few groups.
		switch random.IntN(max(10, min(40, m.Events/1000))) {
		case 0:
			fmt.Fprintln(out, "doing compaction")
			if err := l.Snapshot(ctx); err != nil {
				return false, err
			}
		case 1, 2, 3, 4:
			fmt.Fprintln(out, "doing keep")
			if err := k.Due(ctx); err != nil {
				return false, err
			}
		case 5:
			if random.IntN(3) == 0 {
				return false, nil
			}
		}
	}
	return true, k.Due(ctx)
}

// groups are the events from the n-th on, as they are appended together.
func groups(m mix.Mix, n int, random *rand.Rand) func(yield func([]*eventpb.Event, error) bool) {
	return func(yield func([]*eventpb.Event, error) bool) {
		var group []*eventpb.Event
		most := max(60, m.Events/1000)
		size := 1 + random.IntN(most)
		for e, err := range m.From(n) {
			if err != nil {
				yield(nil, err)
				return
			}
			if group = append(group, e); len(group) == size {
				if !yield(group, nil) {
					return
				}
				group, size = nil, 1+random.IntN(most)
			}
		}
		if len(group) > 0 {
			yield(group, nil)
		}
	}
}

// crashed is how a writer ended.
type crashed struct {
	acked log.Revision // the last that it was told of
	doing string       // what it said last
	done  bool
}

// job is what a writer is to do.
type job struct {
	dir      string
	events   int
	seed     uint64
	maxBytes int64 // of the history that is kept; 0: all
}

// runWriter runs a writer and kills it: a while after it said something for which kill
// is true, however far it is in whatever it does then. It says "ack" after a group and
// "doing" before all else.
func runWriter(t *testing.T, j job, kill func(says string) bool, while time.Duration) crashed {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"="+j.dir, eventsEnv+"="+strconv.Itoa(j.events),
		seedEnv+"="+strconv.FormatUint(j.seed, 10), bytesEnv+"="+strconv.FormatInt(j.maxBytes, 10))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() { _ = cmd.Process.Kill() }
	defer end()
	var out crashed
	killed := false
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "ack":
			n, err := strconv.ParseUint(rest, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			out.acked, out.doing = log.Revision(n), "append"
		case "doing":
			out.doing = rest
		case "done":
			out.done = true
		default:
			t.Errorf("the writer says %q", lines.Text())
		}
		if !killed && kill(lines.Text()) {
			killed = true
			defer time.AfterFunc(while, end).Stop()
		}
	}
	_ = cmd.Wait() // it was killed, or done
	return out
}

// afterAcks is true after so many acknowledgements.
func afterAcks(n int) func(string) bool {
	return func(says string) bool {
		if strings.HasPrefix(says, "ack") {
			n--
		}
		return n == 0
	}
}

// never lets a writer be.
func never(string) bool { return false }
