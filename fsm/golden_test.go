package fsm

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

const goldenDir = "testdata/golden/"

// goldenLogs are in testdata, each the one before it and what came later. To add to the
// log, add a name here, write the events as laterEvents, and run with -update.
var goldenLogs = []string{"v1", "v2", "v3"}

var updateGolden = flag.Bool("update", false, "write the last of testdata/golden anew, if no release has it")

// laterEvents follow those of v2 in v3: a snapshot restored, of a state that differs
// in namespaces and policies, one abandoned, and a part of one that is under way.
func laterEvents(v View) []*eventpb.Event {
	want := Resume(v)
	for n := range v.Namespaces() {
		want.putNamespace(Namespace{Name: n.Name, Labels: map[string]string{labelNamespaceName: n.Name, "restored": "yes"}, Revision: n.Revision})
	}
	want.removePolicy(slices.Collect(v.Policies())[0].Policy.Ref)
	events := restoring(want.View(), "first")
	parts := restoring(v, "second")
	return slices.Concat(events, parts[:2], []*eventpb.Event{abandon("second")}, restoring(v, "third")[:2])
}

// The logs and snapshots that were once written must give the same state for
// ever. A diff of these files breaks every log that exists.
func TestGoldenReplay(t *testing.T) {
	if *updateGolden {
		updateLast(t)
	}
	var before [][]byte
	for _, name := range goldenLogs {
		events, err := log.DecodeBatch(read(t, goldenDir+name+".batch"))
		if err != nil {
			t.Fatal(err)
		}
		if len(events) <= len(before) || !slices.EqualFunc(events[:len(before)], before, bytes.Equal) {
			t.Errorf("%s: does not go on from the log before it", name)
		}
		before = events
		s := New(testCluster)
		for _, e := range events {
			if _, _, err := s.Apply(e); err != nil {
				t.Fatal(err)
			}
		}
		want := read(t, goldenDir+name+".txt")
		if got := summary(s.View()); !bytes.Equal(got, want) {
			t.Errorf("%s: replayed:\n%swant:\n%s", name, got, want)
		}
		restored := restore(t, read(t, goldenDir+name+".snapshot"))
		if got := summary(restored.View()); !bytes.Equal(got, want) {
			t.Errorf("%s: restored:\n%swant:\n%s", name, got, want)
		}
		sameViews(t, name+" restored", restored.View(), s.View())
	}
}

// updateLast writes the last log: the one before it and laterEvents.
func updateLast(t *testing.T) {
	t.Helper()
	events, err := log.DecodeBatch(read(t, goldenDir+goldenLogs[len(goldenLogs)-2]+".batch"))
	if err != nil {
		t.Fatal(err)
	}
	f := newFold(t)
	for _, e := range events {
		if _, _, err := f.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	f.ok(laterEvents(f.View())...)
	for _, r := range f.records {
		events = append(events, r.Event)
	}
	last := goldenDir + goldenLogs[len(goldenLogs)-1]
	write(t, last+".batch", log.EncodeBatch(events))
	write(t, last+".snapshot", snapshot(t, f.View()))
	write(t, last+".txt", summary(f.View()))
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
