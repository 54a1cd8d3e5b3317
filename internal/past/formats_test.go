package past

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/history"
)

var writeFormats = flag.String("write-formats", "", "write what this version writes into this folder of testdata, and the digests that it leads to")

// Histories, exports and snapshots of every version lead to the digests that were
// recorded when they were written.
func TestOldFormats(t *testing.T) {
	if *writeFormats != "" {
		writeAll(t, filepath.Join("testdata", *writeFormats))
	}
	versions, err := filepath.Glob("testdata/v*")
	if err != nil || len(versions) == 0 {
		t.Fatal(versions, err)
	}
	for _, dir := range versions {
		recorded, err := os.ReadFile(filepath.Join(dir, "digests.txt"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(recorded)) {
			var name, digest string
			var revision log.Revision
			if _, err := fmt.Sscan(line, &name, &revision, &digest); err != nil {
				t.Fatalf("%s: %q: %v", dir, line, err)
			}
			a, err := OpenArchive(t.Context(), filepath.Join(dir, name), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Errorf("%s/%s: %v", dir, name, err)
				continue
			}
			if digest == "filtered" {
				if err := a.History.Verify(t.Context(), 1); err != nil {
					t.Errorf("%s/%s: %v", dir, name, err)
				}
			} else if v, err := a.View(t.Context(), revision); err != nil || v.Digest().String() != digest {
				t.Errorf("%s/%s: revision %d: digest %s, want %s; %v", dir, name, revision, v.Digest(), digest, err)
			}
			if err := a.History.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func writeAll(t *testing.T, dir string) {
	t.Helper()
	const events = 400
	// Names are asked for and forgotten, endpoints and policies deleted.
	f, views := drawn(t, mix.Mix{Seed: 7, Cluster: "bench", Events: events, Nodes: 3, Namespaces: 4, Endpoints: 60, Apps: 5, Policies: 20, Names: 30})
	var digests strings.Builder
	note := func(name string, at int) { fmt.Fprintln(&digests, name, at, views[at].Digest()) }

	for _, packed := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "packed"}[packed]
		h, err := history.OpenSized(filepath.Join(dir, name), 32<<10, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < events; i += 10 {
			if err := h.Append(f.records[i : i+10]); err != nil {
				t.Fatal(err)
			}
		}
		if packed {
			if err := h.WriteCheckpoint(200, views[200].WriteSnapshot); err != nil {
				t.Fatal(err)
			}
			segments, err := h.Segments()
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range segments[:len(segments)-1] {
				if err := h.Pack(s.First); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, 1, 150, 250, events} {
			note(name, at)
		}
	}
	export := func(name string, from, to int, keep func(log.Record) bool) {
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		chain := views[to].Chain()
		e, err := history.NewExporter(file, &eventpb.ArchiveHeader{
			Cluster: "bench", Node: "n1", First: uint64(from) + 1, Last: uint64(to), Chain: chain[:], CreatedUnixNs: 1, Version: "test",
		}, views[from].Chain())
		if err != nil {
			t.Fatal(err)
		}
		if from > 0 {
			if err := e.State(func(w io.Writer) error { return views[from].WriteSnapshot(w) }); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range f.records[from:to] {
			if err := e.Add(r, keep(r)); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	all := func(log.Record) bool { return true }
	export("whole.varve", 0, events, all)
	export("part.varve", 100, 300, all)
	export("snapshot.varve", 300, 300, all)
	export("filtered.varve", 0, events, func(r log.Record) bool { return r.Revision%7 == 0 })
	note("whole.varve", events)
	note("part.varve", 100)
	note("part.varve", 222)
	note("snapshot.varve", 300)
	fmt.Fprintln(&digests, "filtered.varve", events, "filtered")
	if err := os.WriteFile(filepath.Join(dir, "digests.txt"), []byte(digests.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}
