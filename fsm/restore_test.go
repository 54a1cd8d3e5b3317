package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

func restorer(payload *eventpb.Event, options ...option) *eventpb.Event {
	return event(eventpb.Role_ROLE_RESTORER, "n1", payload, options)
}

// restoring is the events of a restore, with many parts.
func restoring(want View, id string, options ...option) []*eventpb.Event {
	events := want.Restoring(id, 1)
	for i := range events {
		events[i] = restorer(events[i], options...)
	}
	return events
}

func abandon(id string, options ...option) *eventpb.Event {
	return restorer(&eventpb.Event{Payload: &eventpb.Event_SnapshotAbandoned{SnapshotAbandoned: &eventpb.SnapshotAbandoned{Restore: id, Reason: "test"}}}, options...)
}

// declared is what users have said, and who is concerned.
func declared(v View) string {
	var b strings.Builder
	for n := range v.Namespaces() {
		fmt.Fprintln(&b, n.Name, n.Labels)
	}
	for p := range v.Policies() {
		fmt.Fprintln(&b, p.Set)
	}
	return b.String()
}

// beforeAndAfter is a state, and one in which much was changed since.
func beforeAndAfter(t *testing.T) (f *fold, before View) {
	f = base(t)
	f.ok(
		setNamespace("default", labels("team", "a")), setNamespace("shop", labels("team", "b")),
		setPolicy(cnp("default", "stays"), "web"), setPolicy(cnp("default", "changes"), "web"), setPolicy(cnp("default", "goes"), "web"),
		create("n1", "default", "db", 1, "10.0.0.2", labels("app", "db")),
	)
	before = f.View()
	f.ok(
		setNamespace("default", labels("team", "c")), setNamespace("late", labels("x", "y")), deleteNamespace("shop"),
		setPolicy(cnp("default", "changes"), "other"), deletePolicy(cnp("default", "goes")), setPolicy(cnp("late", "new"), "web"),
		create("n1", "late", "pod", 1, "10.0.0.3", labels("app", "pod")),
	)
	return f, before
}

// One event puts back what users have said, nothing before it does, and facts stay.
func TestRestore(t *testing.T) {
	f, before := beforeAndAfter(t)
	was := f.View()
	events := restoring(before, "r")
	if len(events) < 5 {
		t.Fatalf("%d events: the test wants several parts", len(events))
	}
	f.ok(events[:len(events)-1]...)
	if got := f.View(); declared(got) != declared(was) || got.DeclaredDigest() != was.DeclaredDigest() {
		t.Errorf("the parts alone changed what is in force")
	}
	if s, ok := f.View().Staging(); !ok || s.Restore != "r" || s.Node != "n1" || int(s.Parts) != len(events)-1 {
		t.Errorf("under way: %+v, %v", s, ok)
	}
	at := f.ok(events[len(events)-1])
	v := f.View()
	if got, want := declared(v), declared(before); got != want {
		t.Errorf("restored to\n%s\nwant\n%s", got, want)
	}
	if v.DeclaredDigest() != before.DeclaredDigest() {
		t.Error("another digest of what was declared")
	}
	if _, ok := v.Staging(); ok {
		t.Error("the parts are still there")
	}
	for name, want := range map[string]log.Revision{"stays": mustPolicy(t, before, "stays").Revision, "changes": at, "goes": at} {
		if got := mustPolicy(t, v, name).Revision; got != want {
			t.Errorf("policy %s is of revision %d, want %d", name, got, want)
		}
	}
	if got, want := mustPolicy(t, v, "changes").Created, mustPolicy(t, before, "changes").Created; got != want {
		t.Errorf("policy changes: created at %d, want %d", got, want)
	}
	// The endpoints are all there, under the labels that their namespaces have now.
	for _, e := range []EndpointRef{{"default", "db"}, {"late", "pod"}} {
		row, ok := v.Endpoint(e)
		if !ok || row.IdentityRevision != at {
			t.Fatalf("endpoint %s: %+v, %v", e, row, ok)
		}
		id, _ := v.Identity(row.Identity)
		if team := strings.Contains(id.Labels.String(), "team=a"); team != (e.Namespace == "default") || strings.Contains(id.Labels.String(), "x=y") {
			t.Errorf("endpoint %s has labels %s", e, id.Labels)
		}
	}
	changes, ok := v.ChangesSince(was)
	if !ok || !slices.ContainsFunc(changes, func(c Change) bool { return c.Policy().Name == "goes" && c.Revision == at }) {
		t.Errorf("changes: %v, %v", changes, ok)
	}
	if slices.ContainsFunc(changes, func(c Change) bool { return c.Policy().Name == "stays" }) {
		t.Error("what stays the same counts as changed")
	}
	// Once more, it changes nothing.
	again := f.ok(restoring(before, "again")...)
	if changes, _ := f.View().ChangesSince(v); len(changes) > 0 || again != f.View().Revision() {
		t.Errorf("again: %v", changes)
	}
}

func mustPolicy(t *testing.T, v View, name string) *Policy {
	t.Helper()
	for p := range v.Policies() {
		if p.Policy.Ref.Name == name {
			return p
		}
	}
	t.Fatalf("policy %s is not there", name)
	return nil
}

// A restore that is not whole, not as it was said, or not alone is rejected with the
// reason, and nothing else happens.
func TestRestoreRejects(t *testing.T) {
	bad := func(change func(*eventpb.SnapshotRestored)) func([]*eventpb.Event) {
		return func(events []*eventpb.Event) { change(events[len(events)-1].GetSnapshotRestored()) }
	}
	for name, c := range map[string]struct {
		forge func([]*eventpb.Event)
		want  string
	}{
		"digest":      {bad(func(r *eventpb.SnapshotRestored) { r.Digest[0] ^= 1 }), "digest"},
		"parts":       {bad(func(r *eventpb.SnapshotRestored) { r.Parts-- }), "were staged"},
		"another":     {bad(func(r *eventpb.SnapshotRestored) { r.Restore = "x" }), "is not under way"},
		"no parts":    {bad(func(r *eventpb.SnapshotRestored) { r.Parts = 0 }), "is under way"},
		"no source":   {bad(func(r *eventpb.SnapshotRestored) { r.Source = nil }), "source"},
		"bad id":      {bad(func(r *eventpb.SnapshotRestored) { r.Restore = "a b" }), "restore"},
		"part digest": {func(e []*eventpb.Event) { e[0].GetSnapshotStaged().Digest[3] ^= 1 }, "digest"},
		"part order":  {func(e []*eventpb.Event) { e[0], e[1] = e[1], e[0] }, "is not under way"},
		"part twice":  {func(e []*eventpb.Event) { e[1] = e[0] }, "under way"},
		"empty part":  {func(e []*eventpb.Event) { e[0].GetSnapshotStaged().Namespaces = nil }, "neither"},
		"label":       {func(e []*eventpb.Event) { delete(e[0].GetSnapshotStaged().Namespaces[0].Labels, labelNamespaceName) }, labelNamespaceName},
		"policy":      {func(e []*eventpb.Event) { e[len(e)-2].GetSnapshotStaged().Policies[0].Specs = nil }, "policies[0]"},
		"by an admin": {func(e []*eventpb.Event) { e[0].Actor.Role = eventpb.Role_ROLE_ADMIN }, "only restorer may"},
		"too late":    {func(e []*eventpb.Event) { e[len(e)-1].TimeUnixNs = stagingNS + 60*second }, "10 minutes"},
	} {
		t.Run(name, func(t *testing.T) {
			f, before := beforeAndAfter(t)
			was := declared(f.View())
			events := restoring(before, "r")
			// The rows of the View are not to be written to.
			for i, e := range events {
				events[i] = decode(t, marshal(t, e))
			}
			c.forge(events)
			for i, e := range events {
				e.Stream, _ = log.StreamOf(e)
				r := f.do(e)
				if r.Outcome == log.OutcomeRejected {
					if !strings.Contains(r.Reason, c.want) {
						t.Errorf("event %d: %q, want %q", i, r.Reason, c.want)
					}
					break
				}
				if i == len(events)-1 {
					t.Error("was applied")
				}
			}
			if got := declared(f.View()); got != was {
				t.Errorf("changed to\n%s", got)
			}
			if got := digestFromScratch(f.View()); got != f.View().Digest() {
				t.Errorf("digest %s, of all rows anew %s", f.View().Digest(), got)
			}
		})
	}
}

func decode(t *testing.T, b []byte) *eventpb.Event {
	t.Helper()
	e, err := log.Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// One restore at a time; an abandoned one, and one that nobody goes on with, is
// forgotten and leaves the way free.
func TestRestoreOneAtATime(t *testing.T) {
	f, before := beforeAndAfter(t)
	first, second := restoring(before, "first"), restoring(before, "second")
	f.ok(first[0])
	if r := f.do(second[0]); r.Outcome != log.OutcomeRejected || !strings.Contains(r.Reason, "restore first of node n1") {
		t.Errorf("a second one beside it: %+v", r)
	}
	f.ok(abandon("first"))
	if r := f.do(abandon("first")); r.Outcome != log.OutcomeRejected {
		t.Errorf("abandoned twice: %+v", r)
	}
	f.ok(second[0], second[1])
	// Ten minutes later, whatever comes makes the state forget it.
	f.ok(setNamespace("other", nil, at(f.View().TimeNS()+stagingNS)))
	if s, ok := f.View().Staging(); ok {
		t.Errorf("%+v is still there", s)
	}
	third := restoring(before, "third", at(f.View().TimeNS()))
	f.ok(third...)
	if f.View().DeclaredDigest() != before.DeclaredDigest() {
		t.Error("the third one did not restore")
	}
	empty := restoring(New(testCluster).View(), "empty")
	if len(empty) != 1 {
		t.Fatalf("%d events restore nothing", len(empty))
	}
	f.ok(empty...)
	if got := declared(f.View()); got != "" {
		t.Errorf("left over:\n%s", got)
	}
}

// From any state to any other, at any point of a history: what was declared is what
// the other has, and the rest of the history goes on from there as if each change had
// been said one by one.
func TestRestoreAnyToAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := drawHistory(t)
		s := New(testCluster)
		views := []View{s.View()}
		for _, b := range history {
			if _, _, err := s.Apply(b); err != nil {
				t.Fatal(err)
			}
			views = append(views, s.View())
		}
		want := rapid.SampledFrom(views).Draw(t, "to")
		had := s.View()
		if s.underWay(s.timeNS) {
			had = applied(t, s, abandon(s.staged.Restore))
		}
		events := want.Restoring("drawn", rapid.IntRange(1, 2000).Draw(t, "bytes"))
		var after View
		for _, e := range events {
			after = applied(t, s, restorer(e))
		}
		if after.DeclaredDigest() != want.DeclaredDigest() || declared(after) != declared(want) {
			t.Fatalf("restored to\n%s\nwant\n%s", declared(after), declared(want))
		}
		if got := digestFromScratch(after); got != after.Digest() {
			t.Fatalf("digest %s, of all rows anew %s", after.Digest(), got)
		}
		// Endpoints are those that were, bar the identities that follow from labels.
		facts := func(v View) (out []Endpoint) {
			for e := range v.Endpoints() {
				row := *e
				row.Identity, row.IdentityRevision, row.Revision = 0, 0, 0
				out = append(out, row)
			}
			return out
		}
		if diff := cmp.Diff(facts(had), facts(after), append(slices.Clone(compareContents), protocmp.Transform())...); diff != "" {
			t.Fatalf("endpoints (-before +after):\n%s", diff)
		}
		for e := range after.Endpoints() {
			i, ok := after.Identity(e.Identity)
			if !ok || i.Labels.String() != s.securityLabels(e, s.namespaceLabels(e.Ref.Namespace)).String() {
				t.Fatalf("endpoint %s has identity %d of labels %s", e.Ref, e.Identity, i.Labels)
			}
		}
	})
}

func applied(t *rapid.T, s *State, e *eventpb.Event) View {
	b, err := log.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, r, err := s.Apply(b); err != nil || r.Outcome != log.OutcomeApplied {
		t.Fatalf("%v: %+v, %v", e, r, err)
	}
	return s.View()
}
