package faults

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// packed gives a stopped node's history many small segments, all packed but the
// last, and checkpoints. It returns the digest of the state at every revision.
func (n *node) packed() []log.Hash { return n.divided(true) }

// divided gives a stopped node's history many small segments, with whole also packed
// ones and checkpoints.
func (n *node) divided(whole bool) []log.Hash {
	n.t.Helper()
	check := func(err error) {
		n.t.Helper()
		if err != nil {
			n.t.Fatal(err)
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	dir := filepath.Join(n.state, "log", "history")
	old, err := past.OpenArchive(n.t.Context(), dir, quiet)
	check(err)
	small, err := history.OpenSized(dir+".small", 4<<10, quiet)
	check(err)
	head, _ := old.History.Last()
	digests := make([]log.Hash, head+1)
	for at := log.Revision(0); at <= head; at++ {
		v, err := old.View(n.t.Context(), at)
		check(err)
		digests[at] = v.Digest()
		if at > 0 {
			r, err := old.Record(n.t.Context(), at)
			check(err)
			check(small.Append([]log.Record{r}))
		}
		if whole && (at == 30 || at == 80) {
			check(small.WriteCheckpoint(at, v.WriteSnapshot))
		}
	}
	segments, err := small.Segments()
	check(err)
	for _, s := range segments {
		if whole && s.Sealed {
			check(small.Pack(s.First))
		}
	}
	check(errors.Join(old.History.Close(), small.Close()))
	check(os.RemoveAll(dir))
	check(os.Rename(dir+".small", dir))
	return digests
}

// Damage to one file of the history: log verify names the place, an auditor still gets
// what is not behind the damage, and the agent answers of each revision what was or
// refuses with the reason.
func TestDamagedPackedHistory(t *testing.T) {
	n := newNode(t)
	a := n.start()
	n.appendMany("e", 100)
	n.stop(a)
	digests := n.packed()
	segments, checkpoints := n.historyFiles(".history"), n.historyFiles(".checkpoint")
	if len(segments) < 4 || len(checkpoints) != 2 {
		t.Fatalf("%v, %v: the test wants more files", segments, checkpoints)
	}
	pristine := filepath.Join(n.dir, "pristine")
	if err := os.CopyFS(pristine, os.DirFS(n.state)); err != nil {
		t.Fatal(err)
	}
	flip := func(path, _ string) error {
		b, err := os.ReadFile(path)
		if err == nil {
			b[len(b)/2] ^= 4
			err = os.WriteFile(path, b, 0o600)
		}
		return err
	}
	swap := func(path, other string) error {
		return errors.Join(os.Rename(path, path+"~"), os.Rename(other, path), os.Rename(path+"~", other))
	}
	remove := func(path, _ string) error { return os.Remove(path) }
	for what, files := range map[string][]string{"segment": segments[1:3], "checkpoint": checkpoints} {
		for how, damage := range map[string]func(string, string) error{"flipped": flip, "swapped": swap, "removed": remove} {
			t.Run(what+" "+how, func(t *testing.T) {
				n.restore(pristine)
				if err := damage(files[0], files[1]); err != nil {
					t.Fatal(err)
				}
				gone := what == "checkpoint" && how == "removed" // is like one never written
				if err := varve("log", "verify", "--log", n.state); (err == nil) != gone || err != nil && !strings.Contains(err.Error(), "revision") {
					t.Errorf("log verify: %v", err)
				}
				// Before the damage, in it, and behind it, from the checkpoint of 80.
				for _, at := range []int{10, 29, 100} {
					said, err := output("audit", "at", fmt.Sprint(at), "--summary", "--log", n.state)
					switch {
					case at == 29 && what == "segment":
						if err == nil || !strings.Contains(err.Error(), "revision") {
							t.Errorf("revision %d, which is damaged: %s, %v", at, said, err)
						}
					case err != nil || !strings.Contains(said, digests[at].String()):
						t.Errorf("revision %d: %s, %v; want digest %s", at, said, err, digests[at])
					}
				}
				a := n.launch()
				defer a.kill()
				if !n.up(a) {
					t.Fatalf("the agent does not run:\n%s", a.log())
				}
				answered := 0
				for at, want := range digests {
					got, err := n.client.Audit.At(t.Context(), connect.NewRequest(&varvev1.AuditAtRequest{At: fmt.Sprint(at), Summary: true}))
					switch {
					case err == nil && bytes.Equal(got.Msg.StateDigest, want[:]):
						answered++
					case err == nil:
						t.Errorf("revision %d: a wrong state", at)
					case connect.CodeOf(err) != connect.CodeDataLoss || !strings.Contains(err.Error(), "revision"):
						t.Errorf("revision %d: %v", at, err)
					}
				}
				t.Logf("%d of %d revisions answered", answered, len(digests))
				if answered < len(digests)/4 || what == "checkpoint" && answered < len(digests) {
					t.Errorf("%d of %d revisions are answered\n%s", answered, len(digests), a.log())
				}
			})
		}
	}
}
