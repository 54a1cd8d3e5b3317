package raftlog

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve-net/varve/log"
)

var (
	killRounds = flag.Int("kill.rounds", 20, "how often TestKill kills its writer")
	killSeed   = flag.Uint64("kill.seed", 0, "seed of TestKill's moments; 0 takes the clock")
)

const (
	writerEnv      = "VARVE_TEST_WRITER_DIR"
	writerRoundEnv = "VARVE_TEST_WRITER_ROUND"
	writerClients  = 8
)

// killConfig makes snapshots and compacts all the time.
func killConfig(dir string) Config {
	c := testConfig(dir)
	c.SnapshotThreshold = 20
	c.SnapshotInterval = 5 * time.Millisecond
	c.TrailingLogs = 3
	return c
}

// writer appends from several goroutines until it is killed, and prints the id
// and revision of each event that was acknowledged.
func writer(dir, round string) int {
	ctx := context.Background()
	l, err := Open(ctx, killConfig(dir))
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("open")
	var clients sync.WaitGroup
	for client := range writerClients {
		clients.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("r%s-c%d-%d", round, client, i)
				results, err := l.Append(ctx, namespaceSet(fmt.Sprintf("ns%d", client), id))
				if err != nil {
					fmt.Println("error", err)
					return
				}
				if _, err := fmt.Printf("ack %s %d\n", id, results[0].Revision); err != nil {
					return
				}
			}
		})
	}
	clients.Wait()
	return 1
}

// Killed at any moment, a node has every event it acknowledged when it comes
// back: dense, verified, and the same state however it is computed.
func TestKill(t *testing.T) {
	seed := *killSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-kill.seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	acked := map[string]log.Revision{}
	startups := 0
	for round := range *killRounds {
		opened := killOneWriter(t, dir, round, random, acked)
		if !opened {
			startups++
		}
		l, err := Open(t.Context(), killConfig(dir))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		ids := allIDs(t, l)
		for id, revision := range acked {
			if ids[id] != revision {
				t.Errorf("round %d: event %s was acknowledged at revision %d and is at %d", round, id, revision, ids[id])
			}
		}
		if err := l.Verify(t.Context(), 1); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		sameAsReplay(t, l)
		closeLog(t, l)
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d events acknowledged, %d of %d kills came before the log was open", len(acked), startups, *killRounds)
	if len(acked) == 0 {
		t.Error("no event was ever acknowledged: the test has shown nothing")
	}
}

// killOneWriter runs a writer, kills it at a random moment, and notes what it
// acknowledged.
func killOneWriter(t *testing.T, dir string, round int, random *rand.Rand, acked map[string]log.Revision) (opened bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"="+dir, writerRoundEnv+"="+strconv.Itoa(round))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// One round in three is killed at some time, which may be during its start;
	// the others after some number of acknowledgements.
	kill := func() { cmd.Process.Kill() }
	after := random.IntN(300)
	if round%3 == 0 {
		after = -1
		defer time.AfterFunc(time.Duration(random.Int64N(int64(80*time.Millisecond))), kill).Stop()
	}
	acks := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch f := strings.Fields(lines.Text()); {
		case len(f) == 1 && f[0] == "open":
			opened = true
		case len(f) == 3 && f[0] == "ack":
			revision, err := strconv.ParseUint(f[2], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			acked[f[1]] = log.Revision(revision)
			acks++
		default:
			t.Errorf("round %d: writer says %q", round, lines.Text())
		}
		if after >= 0 && acks >= after {
			kill()
		}
	}
	cmd.Wait() // it was killed
	return opened
}
