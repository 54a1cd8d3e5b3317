package raftlog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

// A seeded log goes on from the state that it was given, over restarts, snapshots
// and a replay, and knows nothing before it.
func TestSeed(t *testing.T) {
	first := open(t, testConfig(t.TempDir()))
	fill(t, first, "first", 20)
	var file bytes.Buffer
	want := first.View()
	if err := want.WriteSnapshot(&file); err != nil {
		t.Fatal(err)
	}
	closeLog(t, first)
	read := func() *fsm.State {
		s, err := fsm.ReadSnapshot(bytes.NewReader(file.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	config := testConfig(filepath.Join(t.TempDir(), "log"))
	if err := Seed(t.Context(), config, read()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(config.Dir + ".new"); !os.IsNotExist(err) {
		t.Errorf("an unfinished directory is left: %v", err)
	}
	if err := Seed(t.Context(), config, read()); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a second seed: %v", err)
	}
	other := config
	other.Dir, other.Cluster = filepath.Join(t.TempDir(), "log"), "other"
	if err := Seed(t.Context(), other, read()); err == nil || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("of another cluster: %v", err)
	}
	chain := want.Chain()
	for round := range 3 {
		l, err := Open(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.View(); round == 0 && (got.Revision() != want.Revision() || got.Digest() != want.Digest() || got.Chain() != chain) {
			t.Errorf("revision %d, digest %s, want %d, %s", got.Revision(), got.Digest(), want.Revision(), want.Digest())
		}
		if l.First() != want.Revision()+1 {
			t.Errorf("first %d, want %d", l.First(), want.Revision()+1)
		}
		mustAppend(t, l, namespaceSet("more", fmt.Sprint("more-", round)))
		head, at := l.Head()
		if head != want.Revision()+log.Revision(round)+1 {
			t.Errorf("round %d: head %d", round, head)
		}
		if err := l.Verify(t.Context(), 1); err != nil {
			t.Error(err)
		}
		if round == 1 {
			if err := l.Snapshot(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if round == 0 {
			r, err := l.History().Record(t.Context(), head)
			if err != nil || r.Chain != log.Next(chain, log.Leaf(r.Event)) || r.Chain != at {
				t.Errorf("the first record does not continue the chain: %+v, %v", r, err)
			}
		}
		closeLog(t, l)
	}
}
