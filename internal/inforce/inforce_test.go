package inforce

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/log"
)

func rec(i int) Record {
	return Record{Revision: log.Revision(i), JournalSeq: uint64(i * 2), TimeNS: int64(i) * 10, Digest: log.Leaf([]byte{byte(i)})}
}

// The newest records are kept, over restarts and in their order; a damaged one is
// passed over.
func TestRecorder(t *testing.T) {
	dir := t.TempDir()
	var want []Record
	for i := 1; i <= 57; i++ {
		r, err := open(dir, 10)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second is the same
			if err := r.Add(rec(i)); err != nil {
				t.Fatal(err)
			}
		}
		want = append(want, rec(i))
		got, err := r.All()
		if err != nil || len(got) < min(i, 11) || len(got) > 20 {
			t.Fatalf("%d records after %d, %v", len(got), i, err)
		}
		if diff := cmp.Diff(want[len(want)-len(got):], got); diff != "" {
			t.Fatalf("after %d (-want +got):\n%s", i, diff)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		offline, err := Read(dir)
		if diff := cmp.Diff(got, offline); diff != "" || err != nil {
			t.Fatalf("offline: %v (-want +got):\n%s", err, diff)
		}
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b[70] ^= 1
		if err := os.WriteFile(filepath.Join(dir, name), b[:len(b)-3], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(dir)
	if err != nil || len(got) != 13 {
		t.Errorf("%d records of 17 of which two are damaged and two torn, %v", len(got), err)
	}
}
