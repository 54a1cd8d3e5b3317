package fsm

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// rowsOf is every row of a View by what a Change calls it, but for Refs.
func rowsOf(v View) map[string]any {
	out := map[string]any{}
	for n := range v.Namespaces() {
		out[Change{Kind: ChangeNamespace, name: n.Name}.key()] = n
	}
	for n := range v.Nodes() {
		out[Change{Kind: ChangeNode, name: n.Name}.key()] = n
	}
	for i := range v.Identities() {
		out[Change{Kind: ChangeIdentity, identity: i.ID}.key()] = *i
	}
	for e := range v.Endpoints() {
		out[Change{Kind: ChangeEndpoint, namespace: e.Ref.Namespace, name: e.Ref.Name}.key()] = e
	}
	for p := range v.Policies() {
		r := p.Policy.Ref
		out[Change{Kind: ChangePolicy, policyKind: r.Kind, namespace: r.Namespace, name: r.Name}.key()] = p.Revision
	}
	return out
}

func (c Change) key() string {
	return fmt.Sprint(c.Kind, c.policyKind, c.identity, c.namespace, "/", c.name)
}

func changedKeys(t testing.TB, old, v View) []string {
	t.Helper()
	changes, ok := v.ChangesSince(old)
	if !ok {
		t.Fatalf("revisions %d to %d are not in the journal", old.Revision(), v.Revision())
	}
	keys := map[string]bool{}
	for _, c := range changes {
		if c.Revision <= old.Revision() || c.Revision > v.Revision() {
			t.Errorf("change %+v is not of revisions %d to %d", c, old.Revision()+1, v.Revision())
		}
		keys[c.key()] = true
	}
	return slices.Sorted(maps.Keys(keys))
}

func TestEveryChangedRowIsInTheJournal(t *testing.T) {
	f := base(t)
	views := []View{f.View()}
	step := func(do func()) { do(); views = append(views, f.View()) }
	step(func() { f.ok(setPolicy(cnp("default", "p"), "web")) })
	step(func() { f.ok(setNamespace("default", labels("team", "a"))) })
	step(func() { f.ok(create("n2", "default", "db", 1, "10.0.0.2", labels("app", "db"), seq(4))) })
	step(func() { f.do(create("n3", "default", "lost", 1, "", nil)) })
	step(func() { f.ok(update("n2", "default", "db", 1, labels("app", "web"))) })
	step(func() { f.ok(updateNode("n2", []string{"192.0.2.7"}, nil)) })
	step(func() { f.ok(deletePolicy(cnp("default", "p")), setNamespace("other", nil), deleteNamespace("other")) })
	step(func() { f.ok(leave("n2"), deleteEndpoint("n1", "default", "web", 5)) })
	step(func() {
		for range graceRevisions / 2 {
			f.do(setNamespace("clock", nil, at(1)))
		}
		f.ok(setNamespace("clock", nil, at(2*graceNS)))
	})
	for i, old := range views {
		for _, v := range views[i:] {
			was, is := rowsOf(old), rowsOf(v)
			listed := changedKeys(t, old, v)
			for key := range maps.Keys(was) {
				if !cmp.Equal(was[key], is[key], cmpopts.IgnoreFields(Identity{}, "Refs"), cmp.Comparer(func(a, b *Endpoint) bool { return a == b }), cmp.Comparer(func(a, b *Node) bool { return a == b }), cmp.Comparer(func(a, b *Namespace) bool { return a == b })) && !slices.Contains(listed, key) {
					t.Errorf("revisions %d to %d: %s changed and is not listed", old.Revision(), v.Revision(), key)
				}
			}
			for key := range is {
				if _, there := was[key]; !there && !slices.Contains(listed, key) {
					t.Errorf("revisions %d to %d: %s came and is not listed", old.Revision(), v.Revision(), key)
				}
			}
		}
	}
	if same := changedKeys(t, views[3], views[3]); len(same) > 0 {
		t.Errorf("between a View and itself changed %v", same)
	}
	if quiet := changedKeys(t, views[3], views[4]); len(quiet) > 0 {
		t.Errorf("a rejected event changed %v", quiet)
	}
}

func TestTheJournalForgetsAndIsOfOneState(t *testing.T) {
	f := base(t)
	first := f.View()
	f.ok(setNamespace("a", nil))
	second := f.View()
	for range 2*journalChanges - len(f.older) - len(f.changes) {
		f.ok(setNamespace("a", nil))
	}
	if _, ok := f.View().ChangesSince(first); !ok {
		t.Error("forgotten before its time")
	}
	f.ok(setNamespace("b", nil))
	if _, ok := f.View().ChangesSince(first); ok {
		t.Error("changes that were dropped are said to be known")
	}
	if got := changedKeys(t, first, second); len(got) != 1 {
		t.Errorf("a View taken before lost what it lists: %v", got)
	}
	if _, ok := second.ChangesSince(f.View()); ok {
		t.Error("changes backwards")
	}
	if n := len(f.older) + len(f.changes); n > 2*journalChanges {
		t.Errorf("%d changes are kept", n)
	}

	var b bytes.Buffer
	if err := f.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	restored, err := ReadSnapshot(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := restored.View().ChangesSince(f.View()); ok {
		t.Error("changes between two States")
	}
	loaded := restored.View()
	if _, _, err := restored.Apply(marshal(t, setNamespace("c", nil))); err != nil {
		t.Fatal(err)
	}
	if got := changedKeys(t, loaded, restored.View()); len(got) != 1 {
		t.Errorf("after a snapshot: %v", got)
	}
	if _, ok := (View{}).ChangesSince(View{}); !ok {
		t.Error("nothing changed between two views of nothing")
	}
}
