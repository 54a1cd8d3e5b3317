package raftlog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// asBefore puts the entries into raft.db, where versions without wal/ had them.
func asBefore(t *testing.T, dir string) {
	t.Helper()
	s := entries(t, dir)
	bolt, err := openBolt(filepath.Join(dir, stableFile))
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	if err := bolt.StoreLogs(all(t, s)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEntriesAreMovedOutOfRaftDB(t *testing.T) {
	for name, interrupt := range map[string]func(t *testing.T, dir string) error{
		"at once": func(_ *testing.T, dir string) error { return os.RemoveAll(filepath.Join(dir, walDir)) },
		"again, after a crash while they were copied": func(_ *testing.T, dir string) error {
			return os.Rename(filepath.Join(dir, walDir), filepath.Join(dir, walDir+underWay))
		},
		"again, after a crash before they were deleted": func(*testing.T, string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir := made(t, 20, 40)
			asBefore(t, dir)
			if err := interrupt(t, dir); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				l := open(t, testConfig(dir))
				if n := len(allIDs(t, l)); n != 40 {
					t.Errorf("%d events, want 40", n)
				}
				sameAsReplay(t, l)
				if last, err := l.files.stable.LastIndex(); err != nil || last != 0 {
					t.Errorf("raft.db goes up to entry %d, %v", last, err)
				}
				closeLog(t, l)
			}
		})
	}
}

// A start that was cut off while it made a directory is made again.
func TestInterruptedBootstrap(t *testing.T) {
	for name, leave := range map[string]func(dir string) error{
		"nothing has its name": func(dir string) error {
			return os.Rename(filepath.Join(dir, walDir), filepath.Join(dir, walDir+underWay))
		},
		"raft.db has not": func(dir string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, testConfig(dir))
			closeLog(t, l)
			// As bootstrap left it: with the membership alone.
			s := entries(t, dir)
			last, err := s.LastIndex()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.DeleteRange(2, last); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := leave(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, stableFile), filepath.Join(dir, stableFile+underWay)); err != nil {
				t.Fatal(err)
			}
			fill(t, open(t, testConfig(dir)), "a", 3)
		})
	}
}

// Entries without raft.db are not thrown away, whatever else is missing.
func TestEntriesAreNeverTakenForUnused(t *testing.T) {
	dir := made(t, 0, 5)
	for _, name := range []string{stableFile, "history"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Open(t.Context(), testConfig(dir))
	if err == nil || !strings.Contains(err.Error(), stableFile+" is missing") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(walFile(dir)); err != nil {
		t.Error(err)
	}
}
