package fsm

import (
	"fmt"
	"testing"
)

// A replay without a View has the digest that it has with one after every event,
// also when more rows came and went than are kept to be hashed.
func TestDigestWithoutViews(t *testing.T) {
	s := New("test")
	for i := range maxUnhashed + 10 {
		name := fmt.Sprintf("ns-%d", i%1000)
		s.putNamespace(Namespace{Name: name, Revision: 1})
		if i%3 > 0 {
			remove(s, s.namespaces, &s.write.namespace, name)
		}
	}
	if n := len(s.write.namespace.unhashed); n > maxUnhashed {
		t.Errorf("%d rows wait to be hashed", n)
	}
	for i := range maxUnhashed + 10 {
		s.putNamespace(Namespace{Name: fmt.Sprintf("live-%d", i), Revision: 1})
	}
	if n := len(s.write.namespace.unhashed); n > maxUnhashed {
		t.Errorf("%d rows wait to be hashed", n)
	}
	v := s.View()
	if got := digestFromScratch(v); got != v.Digest() {
		t.Errorf("digest %s, of all rows anew %s", v.Digest(), got)
	}
	if cap(s.write.namespace.unhashed) > 1024 {
		t.Error("the list of a replay is kept")
	}
}

// What a View has, later events never write to: each of its rows is as it was, and
// so is its digest.
func TestViewsKeepTheirRows(t *testing.T) {
	f := base(t)
	f.ok(setNamespace("default", labels("a", "1")))
	before := f.View()
	digest, rows := digestFromScratch(before), fmt.Sprint(snapshot(t, before))
	refs := func(v View) (n []int) {
		for i := range v.Identities() {
			n = append(n, i.Refs)
		}
		return n
	}
	had := fmt.Sprint(refs(before))
	for i := range 5 {
		f.ok(
			update("n1", "default", "web", 5, labels("app", fmt.Sprint(i%2))),
			create("n1", "default", "db", uint64(i+1), addr(i), labels("app", "web")),
			setNamespace("default", labels("a", fmt.Sprint(i))),
		)
	}
	if got := digestFromScratch(before); got != digest || got != before.Digest() {
		t.Errorf("digest %s, was %s, kept %s", got, digest, before.Digest())
	}
	if fmt.Sprint(snapshot(t, before)) != rows || fmt.Sprint(refs(before)) != had {
		t.Error("rows of an earlier View have changed")
	}
}
