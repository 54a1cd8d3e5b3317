package raftlog

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var writeFormats = flag.String("write-formats", "", "write what this version writes into this folder of testdata, and the digest that it leads to")

// Directories of every version are opened, with all that Raft kept in them, lead to
// the digest that was recorded when they were written, and take further events.
func TestOldFormats(t *testing.T) {
	if *writeFormats != "" {
		writeDirectory(t, filepath.Join("testdata", *writeFormats))
	}
	versions, err := filepath.Glob("testdata/v*")
	if err != nil || len(versions) == 0 {
		t.Fatal(versions, err)
	}
	for _, dir := range versions {
		want, err := os.ReadFile(filepath.Join(dir, "digest.txt"))
		if err != nil {
			t.Fatal(err)
		}
		config := testConfig(t.TempDir())
		if err := os.CopyFS(config.Dir, os.DirFS(filepath.Join(dir, "log"))); err != nil {
			t.Fatal(err)
		}
		l := open(t, config)
		if got := recorded(l); got != string(want) {
			t.Errorf("%s: %s, recorded is %s", dir, got, want)
		}
		if l.Replayed() == 0 {
			t.Errorf("%s: the snapshot is of the head: what follows it shows nothing", dir)
		}
		if err := l.Verify(t.Context(), 1); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		fill(t, l, "later", 3)
	}
}

func recorded(l *Log) string {
	v := l.View()
	return fmt.Sprintf("revision %d, chain %s, digest %s\n", v.Revision(), v.Chain(), v.Digest())
}

// writeDirectory writes a log with a snapshot, entries before it that are kept, and
// entries after it.
func writeDirectory(t *testing.T, dir string) {
	t.Helper()
	config := testConfig(filepath.Join(dir, "log"))
	config.TrailingLogs = 5
	l := open(t, config)
	fill(t, l, "before", 40)
	if err := l.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill(t, l, "after", 20)
	mustAppend(t, l, namespaceSet("ns1", "together-1"), namespaceSet("No Name", "together-2"), namespaceSet("ns2", "together-3"))
	if err := os.WriteFile(filepath.Join(dir, "digest.txt"), []byte(recorded(l)), 0o600); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	if err := os.Remove(filepath.Join(config.Dir, "LOCK")); err != nil {
		t.Fatal(err)
	}
}
