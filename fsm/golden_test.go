package fsm

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/varve-net/varve/log"
)

var updateGolden = flag.Bool("update", false, "write testdata/golden anew")

// The logs and snapshots that were once written must give the same state for
// ever. A diff of these files breaks every log that exists.
func TestGoldenReplay(t *testing.T) {
	const dir = "testdata/golden/"
	if *updateGolden {
		f := rich(t)
		var events [][]byte
		for _, r := range f.records {
			events = append(events, r.Event)
		}
		write(t, dir+"v1.batch", log.EncodeBatch(events))
		write(t, dir+"v1.snapshot", snapshot(t, f.View()))
		write(t, dir+"v1.txt", summary(f.View()))
	}
	events, err := log.DecodeBatch(read(t, dir+"v1.batch"))
	if err != nil {
		t.Fatal(err)
	}
	s := New(testCluster)
	for _, e := range events {
		if _, _, err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	want := read(t, dir+"v1.txt")
	if got := summary(s.View()); !bytes.Equal(got, want) {
		t.Errorf("replayed:\n%swant:\n%s", got, want)
	}
	restored := restore(t, read(t, dir+"v1.snapshot"))
	if got := summary(restored.View()); !bytes.Equal(got, want) {
		t.Errorf("restored:\n%swant:\n%s", got, want)
	}
	sameViews(t, "restored", restored.View(), s.View())
}

func summary(v View) []byte {
	return fmt.Appendf(nil, "revision %d\nchain %s\ndigest %s\n", v.Revision(), v.Chain(), v.Digest())
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
