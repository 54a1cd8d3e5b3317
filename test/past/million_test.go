// Package past holds what varve says of the past to a naive replayer that shares
// nothing with it: of a long history that was written with crashes, restarts and
// compactions, every answer is the one that a walk over all of its events gives.
package past

import (
	"errors"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/audit"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/auditserver"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/projections"
)

var (
	eventsFlag = flag.Int("events", 10_000, "how long the history is; 1000000 takes some ten minutes")
	killsFlag  = flag.Int("kills", 5, "how often its writer is killed")
	seedFlag   = flag.Uint64("seed", 0, "of the moments at which it is; 0: another each time")
)

// samples is how many revisions the state is compared at.
const samples = 12

// walk is what a walk over all events found.
type walk struct {
	head    log.Revision
	digests map[log.Revision]log.Hash          // of the state, at the samples
	lines   map[log.Revision]map[string]string // of the model
	times   map[log.Revision]int64
	flips   [][]audit.Flip // by question
	random  *rand.Rand
}

func TestALongHistoryWithCrashes(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	writeWithCrashes(t, dir, random)

	archive, err := past.OpenArchive(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.History.Close()
	m := shape(*eventsFlag)
	if head, _ := archive.History.Last(); int(head) != m.Events {
		t.Fatalf("the history ends at revision %d, %d events were appended", head, m.Events)
	}
	questions := drawQuestions(m, random)
	began := time.Now()
	w := walkAll(t, archive, m, questions, random)
	t.Logf("walked over %d events in %s", m.Events, time.Since(began).Round(time.Millisecond))

	began = time.Now()
	v, err := archive.Verify(t.Context(), archive.History, w.head)
	if err != nil || v.Digest != w.digests[w.head] {
		t.Errorf("verify: %+v, %v; want digest %s", v, err, w.digests[w.head])
	}
	t.Logf("verified in %s, %d checkpoints among them", time.Since(began).Round(time.Millisecond), v.Checkpoints)
	w.checkStates(t, archive)
	w.checkAnswers(t, archive, questions)
}

// writeWithCrashes makes the history. Each writer is killed somewhere within its share
// of it, the last is let be.
func writeWithCrashes(t *testing.T, dir string, random *rand.Rand) {
	t.Helper()
	perGroup := max(60, *eventsFlag/1000) / 2
	share := *eventsFlag / perGroup / (*killsFlag + 1)
	acked := log.Revision(0)
	for range *killsFlag {
		end := runWriter(t, job{dir: dir, events: *eventsFlag, seed: random.Uint64()},
			afterAcks(1+random.IntN(2*share)), time.Duration(random.Int64N(int64(50*time.Millisecond))))
		acked = max(acked, end.acked)
		t.Logf("killed after revision %d, doing %s", end.acked, end.doing)
		if end.done {
			break
		}
	}
	if end := runWriter(t, job{dir: dir, events: *eventsFlag, seed: random.Uint64()}, never, 0); !end.done {
		t.Fatalf("the last writer ended after revision %d", end.acked)
	}
	if acked == 0 {
		t.Error("nothing was ever acknowledged before a kill: the test shows nothing")
	}
}

// drawQuestions asks of a few pairs, more of them within a namespace than not.
func drawQuestions(m mix.Mix, random *rand.Rand) []audit.Question {
	pod := func(i int) string { return fmt.Sprintf("team-%d/web-%d", i%m.Namespaces, i) }
	port := audit.Port{Protocol: 6, Number: 80}
	var out []audit.Question
	for range 3 {
		a := random.IntN(m.Endpoints)
		b := (a + m.Namespaces*(1+random.IntN(m.Endpoints/m.Namespaces-1))) % m.Endpoints
		out = append(out, audit.Question{From: pod(a), To: pod(b), Port: port}, audit.Question{From: mix.Address(b, m.Nodes).String(), To: pod(a), Port: port})
	}
	a, b := random.IntN(m.Endpoints), random.IntN(m.Endpoints)
	return append(out, audit.Question{From: pod(a), To: pod(b), Port: port},
		audit.Question{From: pod(a), To: "192.0.2.200", Port: audit.Port{Protocol: 6, Number: 443}})
}

// walkAll reads every record, compares it with the event that the mix has at its
// place, and folds it: into the model and, one after the other from zero, into a
// State.
func walkAll(t *testing.T, archive *past.Archive, m mix.Mix, questions []audit.Question, random *rand.Rand) *walk {
	t.Helper()
	w := &walk{
		head: log.Revision(m.Events), digests: map[log.Revision]log.Hash{}, lines: map[log.Revision]map[string]string{},
		times: map[log.Revision]int64{}, flips: make([][]audit.Flip, len(questions)), random: random,
	}
	w.digests[w.head] = log.Hash{}
	for len(w.digests) < samples {
		w.digests[1+log.Revision(random.IntN(m.Events))] = log.Hash{}
	}
	naive, state := newModel(m.Cluster), fsm.New(m.Cluster)
	outcomes := make([]audit.Outcome, len(questions))
	for i, q := range questions {
		outcomes[i] = naive.outcome(q)
	}
	next, stop := iter.Pull2(m.From(0))
	defer stop()
	last := log.Revision(0)
	err := archive.History.Read(t.Context(), 1, w.head, func(r log.Record) error {
		e, err := eventOf(&r, next)
		if err != nil {
			return err
		}
		if last++; r.Revision != last {
			return fmt.Errorf("revision %d follows %d", r.Revision, last-1)
		}
		if _, _, err := state.Apply(slices.Clone(r.Event)); err != nil {
			return err
		}
		if err := naive.apply(r.Revision, e); err != nil {
			return err
		}
		for i, q := range questions {
			if now := naive.outcome(q); now != outcomes[i] {
				w.flips[i] = append(w.flips[i], audit.Flip{Revision: r.Revision, TimeNS: r.TimeNS, Before: outcomes[i], After: now})
				outcomes[i] = now
			}
		}
		if _, sample := w.digests[r.Revision]; sample {
			w.digests[r.Revision], w.lines[r.Revision], w.times[r.Revision] = state.View().Digest(), naive.lines(), r.TimeNS
		}
		return nil
	})
	if err != nil || last != w.head {
		t.Fatalf("the walk ended at revision %d of %d: %v", last, w.head, err)
	}
	return w
}

// eventOf is a record's event, which has to be the next one of the mix but for the
// time, which the log gave it.
func eventOf(r *log.Record, next func() (*eventpb.Event, error, bool)) (*eventpb.Event, error) {
	want, err, ok := next()
	if err != nil || !ok {
		return nil, fmt.Errorf("revision %d: the mix has no such event: %w", r.Revision, err)
	}
	got, err := log.Unmarshal(slices.Clone(r.Event))
	if err != nil {
		return nil, err
	}
	want.TimeUnixNs = got.TimeUnixNs
	if r.Outcome != log.OutcomeApplied || r.TimeNS < got.TimeUnixNs || !proto.Equal(want, got) {
		return nil, fmt.Errorf("revision %d is %v, of outcome %d; the mix has %v there", r.Revision, got, r.Outcome, want)
	}
	return got, nil
}

// checkStates compares the state at the samples, and what is between any two.
func (w *walk) checkStates(t *testing.T, archive *past.Archive) {
	t.Helper()
	all := slices.Sorted(maps.Keys(w.digests))
	var cold, near []time.Duration
	views := map[log.Revision]fsm.View{}
	for _, at := range all {
		fresh := past.New(past.Config{Log: past.Kept{History: archive.History}, Cluster: archive.Cluster, Checkpoints: archive.History})
		began := time.Now()
		v, err := fresh.View(t.Context(), at)
		cold = append(cold, time.Since(began))
		if err != nil || v.Digest() != w.digests[at] || v.TimeNS() != w.times[at] {
			t.Fatalf("revision %d: digest %s, want %s; %v", at, v.Digest(), w.digests[at], err)
		}
		if diff := compare(w.lines[at], linesOf(v)); diff != "" {
			t.Fatalf("revision %d (-naive +fsm):\n%.4000s", at, diff)
		}
		views[at] = v
		for _, back := range []log.Revision{1, 30, 500} {
			began = time.Now()
			if _, err := fresh.View(t.Context(), at-min(at, back)); err != nil {
				t.Fatal(err)
			}
			near = append(near, time.Since(began))
		}
	}
	t.Logf("cold: %s; near: %s", spread(cold), spread(near))
	for range samples {
		a, b := all[w.random.IntN(len(all))], all[w.random.IntN(len(all))]
		w.checkDiff(t, views[min(a, b)], views[max(a, b)])
	}
}

func spread(all []time.Duration) string {
	slices.Sort(all)
	return fmt.Sprintf("median %s, most %s", all[len(all)/2].Round(time.Millisecond/10), all[len(all)-1].Round(time.Millisecond/10))
}

// identityNumber is not known to the model: the labels that it stands for are.
var identityNumber = regexp.MustCompile(`identity \d+`)

// checkDiff compares the names of what changed between two samples.
func (w *walk) checkDiff(t *testing.T, was, is fsm.View) {
	t.Helper()
	want := map[string]bool{}
	before, after := w.lines[was.Revision()], w.lines[is.Revision()]
	for _, of := range []map[string]string{before, after} {
		for key := range of {
			if before[key] != after[key] {
				want[key] = true
			}
		}
	}
	got := map[string]bool{}
	err := audit.DiffState(was, is, func(c audit.StateChange) error {
		key := c.Kind + " " + c.Name
		if _, known := before[key]; !known {
			if _, known = after[key]; !known {
				return nil // of nodes and identities the model knows nothing
			}
		}
		if identityNumber.ReplaceAllString(c.Was, "") != identityNumber.ReplaceAllString(c.Is, "") || want[key] {
			got[key] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("between revisions %d and %d (-naive +diff):\n%.4000s", was.Revision(), is.Revision(), diff)
	}
}

// checkAnswers compares why and bisect with what the walk found.
func (w *walk) checkAnswers(t *testing.T, archive *past.Archive, questions []audit.Question) {
	t.Helper()
	a := auditserver.New(archive.Past, projections.Options{}).Auditor()
	var all, one []time.Duration
	flips := 0
	for i, q := range questions {
		var found []audit.Flip
		began := time.Now()
		if err := a.Flips(t.Context(), q, 0, w.head, func(f audit.Flip) error { found = append(found, f); return nil }); err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Since(began))
		if diff := cmp.Diff(w.flips[i], found); diff != "" {
			t.Fatalf("%+v: bisect (-naive +found):\n%.4000s", q, diff)
		}
		flips += len(found)
		for range 4 {
			at := log.Revision(w.random.IntN(int(w.head) + 1))
			began = time.Now()
			w.checkWhy(t, a, q, at, found)
			one = append(one, time.Since(began))
			next, err := a.NextFlip(t.Context(), q, at, w.head)
			if err != nil {
				t.Fatal(err)
			}
			if want := after(found, at); !cmp.Equal(next, want) {
				t.Errorf("%+v: the first flip after %d is %+v, want %+v", q, at, next, want)
			}
		}
	}
	if flips < len(questions) {
		t.Errorf("%d flips of %d questions: the histories show little", flips, len(questions))
	}
	t.Logf("%d flips; bisect --all: %s; why: %s", flips, spread(all), spread(one))
}

// checkWhy compares one answer, and which event it says changed it.
func (w *walk) checkWhy(t *testing.T, a *audit.Auditor, q audit.Question, at log.Revision, flips []audit.Flip) {
	t.Helper()
	outcome, last := audit.Absent, upTo(flips, at)
	if last != nil {
		outcome = last.After
	} else if len(flips) > 0 {
		outcome = flips[0].Before
	}
	why, err := a.Why(t.Context(), q, at)
	var gone *audit.AbsentError
	switch {
	case errors.As(err, &gone):
		lastSeen := log.Revision(0)
		if last != nil {
			lastSeen = last.Revision - 1
		}
		if outcome != audit.Absent || gone.LastSeen != lastSeen {
			t.Errorf("%+v at %d: %v; want %s, last seen at %d", q, at, err, outcome, lastSeen)
		}
	case err != nil:
		t.Errorf("%+v at %d: %v", q, at, err)
	case why.Outcome != outcome || !cmp.Equal(why.Flip, last):
		t.Errorf("%+v at %d: %s since %+v, want %s since %+v", q, at, why.Outcome, why.Flip, outcome, last)
	}
}

func upTo(flips []audit.Flip, at log.Revision) (last *audit.Flip) {
	for i := range flips {
		if flips[i].Revision <= at {
			last = &flips[i]
		}
	}
	return last
}

func after(flips []audit.Flip, at log.Revision) *audit.Flip {
	for i := range flips {
		if flips[i].Revision > at {
			return &flips[i]
		}
	}
	return nil
}
