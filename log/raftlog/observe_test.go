package raftlog

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/log"
)

func TestObserveTellsOfEveryEntry(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 30)
	c := testConfig(t.TempDir())
	c.FreeBytes = func() (uint64, error) { return free.Load(), nil }
	type seen struct {
		Events   int
		Outcomes []log.Outcome
		Full     bool
	}
	var got []seen
	c.Observe = func(e Commit) {
		s := seen{Events: e.Events, Full: errors.Is(e.Err, log.ErrNoSpace)}
		for _, r := range e.Results {
			s.Outcomes = append(s.Outcomes, r.Outcome)
		}
		if e.Err == nil && e.Took <= 0 {
			t.Errorf("an entry took %s", e.Took)
		}
		got = append(got, s)
	}
	l, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, namespaceSet("a", "1"), namespaceSet("b", "2"))
	mustAppend(t, l, namespaceSet("a", "1"))
	free.Store(0)
	if _, err := l.Append(t.Context(), namespaceSet("c", "3")); !errors.Is(err, log.ErrNoSpace) {
		t.Errorf("append to a full disk: %v", err)
	}
	closeLog(t, l) // the watcher has ended
	want := []seen{
		{Events: 2, Outcomes: []log.Outcome{log.OutcomeApplied, log.OutcomeApplied}},
		{Events: 1, Outcomes: []log.Outcome{log.OutcomeRepeat}},
		{Events: 1, Full: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func TestHistoryBytesIsWhatTheFilesTake(t *testing.T) {
	dir := t.TempDir()
	l := open(t, testConfig(dir))
	fill(t, l, "r", 3)
	got, err := l.HistoryBytes()
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join(dir, historyDir))
	if err != nil {
		t.Fatal(err)
	}
	var want int64
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		want += info.Size()
	}
	if got != want {
		t.Errorf("HistoryBytes() = %d, its files have %d", got, want)
	}
	if err := os.RemoveAll(filepath.Join(dir, historyDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.HistoryBytes(); err == nil {
		t.Error("a history that is gone has a size")
	}
}
