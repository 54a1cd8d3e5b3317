package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/raftlog/wal"
)

// made writes a log of n events, with a snapshot after the first snap of them
// if snap is not 0, and returns its directory.
func made(t *testing.T, snap, n int) string {
	t.Helper()
	dir := t.TempDir()
	c := testConfig(dir)
	c.NoTrailingLogs = true
	l := open(t, c)
	fill(t, l, "a", snap)
	if snap > 0 {
		if err := l.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, l, "b", n-snap)
	closeLog(t, l)
	return dir
}

func historyFile(dir string) string {
	return filepath.Join(dir, "history", fmt.Sprintf("%020d.history", 1))
}

func snapshotFile(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	return files[len(files)-1]
}

// entries opens the Raft log of a directory.
func entries(t *testing.T, dir string) *wal.Store {
	t.Helper()
	s, err := wal.Open(filepath.Join(dir, walDir), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// all reads every entry.
func all(t *testing.T, s *wal.Store) []*raft.Log {
	t.Helper()
	first, err := s.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := s.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	var out []*raft.Log
	for index := first; index <= last; index++ {
		e := new(raft.Log)
		if err := s.GetLog(index, e); err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// editEntry changes the last command in the Raft log, whose own checksums are right
// afterwards.
func editEntry(t *testing.T, dir string, edit func(*raft.Log)) {
	t.Helper()
	s := entries(t, dir)
	all := all(t, s)
	at := len(all) - 1
	for all[at].Type != raft.LogCommand || len(all[at].Data) == 0 {
		at--
	}
	edit(all[at])
	if err := s.DeleteRange(all[at].Index, all[len(all)-1].Index); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLogs(all[at:]); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// walFile is the first segment of the Raft log.
func walFile(dir string) string {
	return filepath.Join(dir, walDir, fmt.Sprintf("%020d.wal", 1))
}

// takeBack puts the folder of another log, or of an earlier time, in place of wal/.
func takeBack(t *testing.T, dir, from string) {
	t.Helper()
	to := filepath.Join(dir, walDir)
	if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
}

func edit(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rewrite replaces the history by one whose events differ from revision on, with
// a chain and checksums of their own that are right.
func rewrite(t *testing.T, dir string, from log.Revision) {
	t.Helper()
	other := made(t, 0, int(from)-1)
	l := open(t, testConfig(other))
	fill(t, l, "other", 60-int(from))
	closeLog(t, l)
	b, err := os.ReadFile(historyFile(other))
	if err != nil {
		t.Fatal(err)
	}
	edit(t, historyFile(dir), func([]byte) []byte { return b })
}

func TestDamageIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		snap   int
		damage func(t *testing.T, dir string)
		want   string
	}{
		"a bit of a Raft entry is flipped": {0, func(t *testing.T, dir string) {
			editEntry(t, dir, func(e *raft.Log) { e.Data[len(e.Data)-3] ^= 4 })
		}, "CRC32C"},
		"a Raft entry is cut short": {20, func(t *testing.T, dir string) {
			editEntry(t, dir, func(e *raft.Log) { e.Data = e.Data[:3] })
		}, "batch of 3 bytes"},
		"raft.db is missing": {0, func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, stableFile))
		}, "is missing"},
		"raft.db is cut short": {0, func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, stableFile), func(b []byte) []byte { return b[:3*os.Getpagesize()] })
		}, stableFile},
		"raft.db is rubbish": {0, func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, stableFile), func(b []byte) []byte { clear(b); return b })
		}, stableFile},
		"the Raft log is missing": {0, func(t *testing.T, dir string) {
			os.RemoveAll(filepath.Join(dir, walDir))
		}, "is missing, but raft.db exists"},
		"the Raft log is rubbish": {0, func(t *testing.T, dir string) {
			edit(t, walFile(dir), func(b []byte) []byte { clear(b); return b })
		}, walDir},
		"a bit of the Raft log is flipped": {0, func(t *testing.T, dir string) {
			edit(t, walFile(dir), func(b []byte) []byte { b[4000] ^= 1; return b })
		}, "this is no torn end"},
		"the Raft log is another one's": {0, func(t *testing.T, dir string) {
			takeBack(t, dir, filepath.Join(made(t, 0, 40), walDir))
		}, "chain value"},
		"the Raft log is older than history": {0, func(t *testing.T, dir string) {
			old := filepath.Join(t.TempDir(), walDir)
			if err := os.CopyFS(old, os.DirFS(filepath.Join(dir, walDir))); err != nil {
				t.Fatal(err)
			}
			l := open(t, testConfig(dir))
			fill(t, l, "later", 10)
			closeLog(t, l)
			takeBack(t, dir, old)
		}, "the Raft log has lost acknowledged events"},
		"the last entry of a process that was killed is torn": {0, func(t *testing.T, dir string) {
			edit(t, walFile(dir), func(b []byte) []byte {
				end := len(bytes.TrimRight(b, "\x00"))
				clear(b[end-40 : end]) // the closing frame, and the end of the one before
				return b
			})
		}, "the Raft log has lost acknowledged events"},
		"raft.db is older than the Raft log": {0, func(t *testing.T, dir string) {
			path := filepath.Join(dir, stableFile)
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			closeLog(t, open(t, testConfig(dir))) // a start is a term
			edit(t, path, func([]byte) []byte { return old })
		}, "they do not belong together"},
		"history differs before the snapshot": {20, func(t *testing.T, dir string) {
			rewrite(t, dir, 15)
		}, "chain value"},
		"history differs after the snapshot": {20, func(t *testing.T, dir string) {
			rewrite(t, dir, 30)
		}, "chain value"},
		"a bit of the snapshot is flipped": {20, func(t *testing.T, dir string) {
			edit(t, snapshotFile(t, dir), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, "snapshot"},
		"snapshots are missing": {20, func(t *testing.T, dir string) {
			os.RemoveAll(filepath.Join(dir, "snapshots"))
		}, "newest readable snapshot"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := made(t, tc.snap, 40)
			tc.damage(t, dir)
			l, err := Open(t.Context(), testConfig(dir))
			if err == nil {
				closeLog(t, l)
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %v, want one with %q and the directory", err, tc.want)
			}
			if _, ok := errors.AsType[*log.CorruptError](err); !ok {
				t.Errorf("error %v, want a CorruptError", err)
			}
			// The refusal has let go of the directory: the same error again, not ErrInUse.
			if _, again := Open(t.Context(), testConfig(dir)); errors.Is(again, ErrInUse) || again == nil {
				t.Errorf("the second time: %v", again)
			}
		})
	}
}

// Damage to the history costs what it hits and the Raft log does not have any more. The
// state, and all that comes, is as ever; what is lost is named, at each start, and the
// revisions after it can be told from a checkpoint.
func TestDamagedHistoryIsServed(t *testing.T) {
	for name, tc := range map[string]struct {
		snap        int
		damage      func(t *testing.T, dir string)
		first, last log.Revision // that are lost; 0: none
		oldest      log.Revision // that is kept
	}{
		"missing, with a snapshot": {20, func(t *testing.T, dir string) { os.RemoveAll(filepath.Join(dir, "history")) }, 1, 20, 21},
		"missing, without one":     {0, func(t *testing.T, dir string) { os.RemoveAll(filepath.Join(dir, "history")) }, 0, 0, 1},
		"ends before the snapshot": {20, func(t *testing.T, dir string) {
			edit(t, historyFile(dir), func(b []byte) []byte { return b[:len(b)*10/40] })
		}, 10, 20, 1},
		"ends before what Raft still has": {0, func(t *testing.T, dir string) {
			edit(t, historyFile(dir), func(b []byte) []byte { return b[:len(b)*10/40] })
		}, 0, 0, 1},
		"a bit before the snapshot": {20, func(t *testing.T, dir string) {
			edit(t, historyFile(dir), func(b []byte) []byte { b[len(b)/4] ^= 1; return b })
		}, 10, 10, 1},
		"a bit after the snapshot": {20, func(t *testing.T, dir string) {
			edit(t, historyFile(dir), func(b []byte) []byte { b[len(b)*3/4] ^= 1; return b })
		}, 0, 0, 1},
		"bits on both sides of the snapshot": {20, func(t *testing.T, dir string) {
			edit(t, historyFile(dir), func(b []byte) []byte { b[len(b)/4] ^= 1; b[len(b)*3/4] ^= 1; return b })
		}, 10, 10, 1},
		"the header": {0, func(t *testing.T, dir string) {
			edit(t, historyFile(dir), func(b []byte) []byte { b[3] ^= 1; return b })
		}, 0, 0, 1},
		"the header, and a record after the snapshot": {20, func(t *testing.T, dir string) {
			edit(t, historyFile(dir), func(b []byte) []byte { b[3] ^= 1; b[len(b)*3/4] ^= 1; return b })
		}, 1, 20, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := made(t, tc.snap, 40)
			l := open(t, testConfig(dir))
			want := l.View()
			closeLog(t, l)
			tc.damage(t, dir)
			for start := range 3 {
				l := open(t, testConfig(dir))
				if got := l.View(); start == 0 && (got.Digest() != want.Digest() || got.Chain() != want.Chain()) {
					t.Fatalf("another state: revision %d, digest %s", got.Revision(), got.Digest())
				}
				fill(t, l, fmt.Sprint("later-", start), 5)
				if err := l.History().Check(t.Context()); err != nil {
					t.Fatal(err)
				}
				lost := l.History().Lost()
				switch {
				case tc.last == 0 && len(lost) == 0:
				case len(lost) != 1 || lost[0].First != tc.first || lost[0].Last != tc.last || !errors.Is(lost[0].Err, log.ErrCorrupt):
					t.Errorf("start %d: lost %v, want %d to %d", start, lost, tc.first, tc.last)
				}
				if err := l.Verify(t.Context(), 1); (err == nil) != (tc.last == 0) || err != nil && !errors.Is(err, log.ErrCorrupt) {
					t.Errorf("start %d: verify: %v", start, err)
				}
				if got := l.First(); got != tc.oldest {
					t.Errorf("start %d: kept from revision %d, want %d", start, got, tc.oldest)
				}
				head, _ := l.Head()
				for at := l.First(); at <= head; at++ {
					r, err := l.History().Record(t.Context(), at)
					if lost := at >= tc.first && at <= tc.last; lost != errors.Is(err, log.ErrCorrupt) || err == nil && r.Revision != at {
						t.Errorf("start %d: revision %d: %v", start, at, err)
					}
				}
				if at := l.History().Checkpoints(); tc.last > 0 && (len(at) == 0 || at[len(at)-1] < tc.last) {
					t.Errorf("start %d: checkpoints %v, none after %d", start, at, tc.last)
				}
				closeLog(t, l)
			}
		})
	}
}

// What a crash of the machine takes from the end of history comes back from the
// Raft log.
func TestHistoryTailIsRefilled(t *testing.T) {
	for _, snap := range []int{0, 20} {
		dir := made(t, snap, 40)
		whole, err := os.ReadFile(historyFile(dir))
		if err != nil {
			t.Fatal(err)
		}
		for cut := len(whole); cut > len(whole)*(snap+1)/40; cut -= 331 {
			edit(t, historyFile(dir), func([]byte) []byte { return whole[:cut] })
			l := open(t, testConfig(dir))
			if n := len(allIDs(t, l)); n != 40 {
				t.Errorf("snapshot at %d, history cut to %d bytes: %d events", snap, cut, n)
			}
			if err := l.Verify(t.Context(), 1); err != nil {
				t.Error(err)
			}
			sameAsReplay(t, l)
			closeLog(t, l)
			if b, err := os.ReadFile(historyFile(dir)); err != nil || string(b) != string(whole) {
				t.Errorf("snapshot at %d, history cut to %d bytes: it was not written again as before (%v)", snap, cut, err)
			}
		}
	}
}

func TestOtherCluster(t *testing.T) {
	dir := made(t, 5, 6)
	c := testConfig(dir)
	c.Cluster = "other"
	_, err := Open(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), `"test"`) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("error %v does not name both clusters", err)
	}
}

func TestSecondOpener(t *testing.T) {
	dir := t.TempDir()
	l := open(t, testConfig(dir))
	if _, err := Open(t.Context(), testConfig(dir)); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("in this process: %v", err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"="+dir, writerRoundEnv+"=0")
	out, err := cmd.Output()
	if err == nil || !strings.Contains(string(out), ErrInUse.Error()) {
		t.Errorf("in another process: %v, %s", err, out)
	}
	fill(t, l, "a", 3) // the first one is not disturbed
	closeLog(t, l)
	open(t, testConfig(dir))
}

// An event of a kind that this version does not know stops the log; it is never
// skipped, and not after a restart either.
func TestUnknownKindStops(t *testing.T) {
	dir := t.TempDir()
	l := open(t, testConfig(dir))
	fill(t, l, "a", 3)
	future := []byte{0xfa, 0x3f, 0x00} // field 1023, of length 0
	f := l.raft.Apply(log.EncodeBatch([][]byte{future}), 0)
	f.Error() // Raft may or may not answer while it ends
	<-l.Done()
	if err := l.Err(); !errors.Is(err, log.ErrUpgradeNeeded) {
		t.Errorf("Err: %v", err)
	}
	if _, err := l.Append(t.Context(), namespaceSet("a", "after")); !errors.Is(err, log.ErrUpgradeNeeded) {
		t.Errorf("Append: %v", err)
	}
	if err := l.Wait(t.Context(), 99); !errors.Is(err, log.ErrUpgradeNeeded) {
		t.Errorf("Wait: %v", err)
	}
	if n := len(allIDs(t, l)); n != 3 {
		t.Errorf("%d events can be read, want 3", n)
	}
	closeLog(t, l)
	if _, err := Open(t.Context(), testConfig(dir)); !errors.Is(err, log.ErrUpgradeNeeded) {
		t.Errorf("after the restart: %v", err)
	}
}

// A directory is one node's: the server id is part of Raft's own membership.
func TestOtherServerCannotLead(t *testing.T) {
	dir := made(t, 0, 3)
	c := testConfig(dir)
	c.Raft = cluster.RaftConfig(cluster.Identity{Cluster: testCluster, Node: "n1", ServerID: "server-2"})
	if l, err := Open(t.Context(), c); err == nil {
		closeLog(t, l)
		t.Error("opened")
	} else if !strings.Contains(err.Error(), "server-2") || !strings.Contains(err.Error(), "server-1") {
		t.Errorf("error %v does not name both servers", err)
	}
}
