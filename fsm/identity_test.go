package fsm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/varve-net/varve/log"
)

func TestSameLabelsSameIdentity(t *testing.T) {
	f := base(t)
	f.ok(
		create("n2", "default", "web2", 1, "", labels("app", "web")),
		create("n2", "default", "bare", 1, "", nil),
		create("n2", "other", "web", 1, "", labels("app", "web")),
	)
	for name, want := range map[string]uint32{"web": 256, "web2": 256, "bare": 257} {
		if got := f.identity("default", name); got != want {
			t.Errorf("%s has identity %d, want %d", name, got, want)
		}
	}
	if got := f.identity("other", "web"); got != 258 {
		t.Errorf("another namespace has identity %d, want 258", got)
	}
	if i, _ := f.View().Identity(256); i.Refs != 2 || i.Revision != 3 || i.ReleasedRevision != 0 {
		t.Errorf("%+v, want 2 references since revision 3", i)
	}
	// A namespace that says no more than its endpoints knew changes nothing.
	f.ok(setNamespace("default", nil))
	if got := f.identity("default", "web"); got != 256 {
		t.Errorf("identity %d after a namespace without labels", got)
	}
}

// pass makes n revisions at a time.
func (f *fold) pass(n int, ns int64) {
	f.t.Helper()
	b := marshal(f.t, setNamespace("tick", nil, at(ns)))
	for range n {
		if _, r, err := f.Apply(b); err != nil || r.Outcome != log.OutcomeApplied {
			f.t.Fatalf("%+v, %v", r, err)
		}
	}
}

func TestIdentityIsFreedAfterBothGraces(t *testing.T) {
	const hour = 3600 * second
	start := func() *fold {
		f := base(t)
		f.ok(deleteEndpoint("n1", "default", "web", 5, at(hour))) // revision 4
		return f
	}
	free := func(f *fold) bool { _, ok := f.View().Identity(256); return !ok }

	f := start()
	if i, _ := f.View().Identity(256); i.Refs != 0 || i.ReleasedRevision != 4 || i.ReleasedTimeNS != hour {
		t.Fatalf("%+v, want a release at revision 4", i)
	}
	f.pass(graceRevisions+10, hour)
	if free(f) {
		t.Error("freed without the time")
	}
	f.pass(1, hour+graceNS-1)
	if free(f) {
		t.Error("freed 1 ns too early")
	}
	f.pass(1, hour+graceNS)
	if !free(f) {
		t.Error("not freed after both")
	}

	f = start()
	f.pass(graceRevisions-1, hour+graceNS)
	if free(f) {
		t.Error("freed 1 revision too early")
	}
	if r := f.do(deleteNamespace("none")); r.Outcome != log.OutcomeRejected || free(f) {
		t.Errorf("outcome %d; freed by a rejection: %v", r.Outcome, free(f))
	}
	f.pass(1, hour+graceNS)
	if !free(f) {
		t.Error("not freed after both")
	}
	// The number is not the next to be used.
	f.ok(create("n1", "default", "web", 6, "", labels("app", "web")))
	if got := f.identity("default", "web"); got != 257 {
		t.Errorf("identity %d, want 257", got)
	}

	f = start()
	f.pass(graceRevisions-1, hour+graceNS)
	f.ok(create("n1", "default", "web", 6, "", labels("app", "web"))) // the same again
	f.pass(2*graceRevisions, 3*hour)
	if i, ok := f.View().Identity(256); !ok || i.Refs != 1 || i.ReleasedRevision != 0 || f.identity("default", "web") != 256 {
		t.Errorf("%+v: want the number back in use", i)
	}
}

func (f *fold) needFor(e *Endpoint) *need { return f.needOf(e.Ref.Namespace, e, workloadKey(nil, e)) }

// fill takes numbers until n are left, by the labels of endpoints that no test
// looks at; it goes around Apply since 65,000 events would take long.
func (f *fold) fill(left int) {
	for i := 0; f.tables.identities.Len() < identityCount-left; i++ {
		e := Endpoint{Ref: EndpointRef{"fill", fmt.Sprintf("e%d", i)}, Labels: labels("n", fmt.Sprint(i)), Node: "n1"}
		e.ServiceAccount, e.ID, e.Incarnation, e.MAC = "default", 1_000_000+uint32(i), 1, [6]byte{2}
		e.Identity = f.acquire([]*need{f.needFor(&e)}, f.revision, f.timeNS)[0]
		e.Created, e.Revision, e.IdentityRevision = f.revision, f.revision, f.revision
		f.putEndpoint(e.Ref.key(), e)
	}
	n, _ := lookup(f.nodes, "n1")
	row := *n
	row.NextEndpointID = 2_000_000
	f.putNode(row)
}

func TestIdentitiesExhausted(t *testing.T) {
	const hour = 3600 * second
	f := base(t)
	f.ok(create("n1", "default", "db", 1, "", labels("app", "db")))
	f.fill(1)
	exhausted := func(what string, r log.Result) {
		t.Helper()
		if r.Outcome != log.OutcomeRejected || !strings.Contains(r.Reason, "65280 numbers") {
			t.Fatalf("%s: %+v, want a rejection for want of numbers", what, r)
		}
	}
	f.ok(create("n1", "default", "last", 1, "", labels("app", "last")))
	if got := f.identity("default", "last"); got != maxIdentity {
		t.Errorf("the last number is %d", got)
	}
	before := f.View().Digest()
	exhausted("create", f.do(create("n1", "default", "more", 1, "", labels("app", "more"))))
	exhausted("update", f.do(update("n1", "default", "last", 1, labels("app", "more"))))
	exhausted("relabel", f.do(setNamespace("default", labels("a", "b"))))
	if f.View().Digest() != before {
		t.Error("the rejections changed the state")
	}
	f.ok(create("n1", "default", "known", 1, "", labels("app", "web"))) // has a number

	// A released number counts once its grace is over: then the cursor, which has
	// wrapped, finds it. Rejections alone do not collect it.
	f.ok(deleteEndpoint("n1", "default", "last", 1, at(hour)))
	exhausted("within grace", f.do(create("n1", "default", "more", 1, "", labels("app", "more"))))
	for range graceRevisions {
		if r := f.do(deleteNamespace("none", at(2*hour))); r.Outcome != log.OutcomeRejected {
			t.Fatalf("outcome %d", r.Outcome)
		}
	}
	if _, ok := f.View().Identity(maxIdentity); !ok {
		t.Fatal("collected by a rejection")
	}
	g := &fold{State: restore(t, snapshot(t, f.View())), t: t}
	for _, f := range []*fold{f, g} {
		// Two are needed and one is there: nothing may be taken.
		before := f.View().Digest()
		exhausted("relabel", f.do(setNamespace("default", labels("a", "b"))))
		if f.View().Digest() != before {
			t.Error("the rejection changed the state")
		}
		f.ok(create("n1", "default", "more", 1, "", labels("app", "more")))
		if got := f.identity("default", "more"); got != maxIdentity {
			t.Errorf("identity %d, want the one that was freed", got)
		}
	}
	if g.View().Digest() != f.View().Digest() || g.View().Chain() != f.View().Chain() {
		t.Error("from a snapshot another state")
	}
}

// A relabel that needs a released number and one more number, where the only one
// to be freed is the one it needs.
func TestAcquireKeepsWhatItNeeds(t *testing.T) {
	const hour = 3600 * second
	f := base(t)
	f.ok(
		create("n1", "a", "x", 1, "", labels("app", "x")),
		deleteEndpoint("n1", "default", "web", 5, at(hour)), // releases 256
	)
	f.fill(0)
	for range graceRevisions {
		f.do(deleteNamespace("none", at(2*hour)))
	}
	web := Endpoint{Ref: EndpointRef{"default", "web"}, Labels: labels("app", "web"), ServiceAccount: "default"}
	more := Endpoint{Ref: EndpointRef{"default", "more"}, Labels: labels("app", "more"), ServiceAccount: "default"}
	rev, now := f.revision+1, f.timeNS
	if err := f.canAcquire([]*need{f.needFor(&more)}, rev, now); err != nil {
		t.Errorf("one new: %v", err)
	}
	if err := f.canAcquire([]*need{f.needFor(&web)}, rev, now); err != nil {
		t.Errorf("one that exists: %v", err)
	}
	if err := f.canAcquire([]*need{f.needFor(&more), f.needFor(&web)}, rev, now); err == nil {
		t.Error("one new beside the only one that could be freed: taken")
	}
}
