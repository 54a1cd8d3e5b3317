package journal

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// files are the journal's, by name.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]byte)
	for _, name := range names {
		if out[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestZerosAreNoRecords: a crash leaves the zeros that the newest file is filled with, an
// older file has none, and the next process goes on behind the last record.
func TestZerosAreNoRecords(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(Config{Dir: dir, SegmentBytes: 256})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprintf("record %d of some length\x00\x00", i))
		if _, err := j.Append([]byte(want[i])); err != nil {
			t.Fatal(err)
		}
	}
	crashed := files(t, dir)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	closed := files(t, dir)
	if len(crashed) < 3 || len(closed) != len(crashed) {
		t.Fatalf("%d and %d files, want some and as many", len(crashed), len(closed))
	}
	filled := 0
	for name, b := range crashed {
		rest, ok := bytes.CutPrefix(b, closed[name])
		if !ok || len(bytes.Trim(rest, "\x00")) > 0 {
			t.Errorf("%s: closing has changed more than zeros", name)
		}
		if len(rest) > 0 {
			filled++
		}
	}
	if filled != 1 {
		t.Errorf("%d files are filled with zeros, want the newest alone", filled)
	}

	other := t.TempDir()
	for name, b := range crashed {
		if err := os.WriteFile(filepath.Join(other, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, err = Open(Config{Dir: other, SegmentBytes: 256})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	want = append(want, "after the crash")
	if seq, err := j.Append([]byte(want[20])); err != nil || seq != 21 {
		t.Fatalf("number %d, %v", seq, err)
	}
	records, err := j.Read(0, 100)
	if err != nil || len(records) != len(want) {
		t.Fatalf("%d records, want %d; %v", len(records), len(want), err)
	}
	for i, r := range records {
		if string(r.Data) != want[i] {
			t.Errorf("record %d is %q, want %q", r.Seq, r.Data, want[i])
		}
	}
}
