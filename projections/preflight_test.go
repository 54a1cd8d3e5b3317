package projections

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/policy"
)

// What Preflight says is what the old and the new tables have together, or, where that
// would do, bounded by what it was satisfied with.
func TestPreflightIsTheUnionOfBothTables(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		current, err := build(w.facts, "one", Options{})
		if err != nil {
			t.Fatal(err)
		}
		var set []*policy.Policy
		after := w.facts
		after.policies = nil
		drawn := drawPolicies(t)
		for _, p := range drawn {
			set = append(set, p.Policy)
		}
		after.policies = append(after.policies, drawn...)
		if len(drawn) < len(w.facts.policies) { // those of the same names are replaced
			after.policies = append(after.policies, w.facts.policies[len(drawn):]...)
		}
		next, err := build(after, "one", Options{})
		if err != nil {
			t.Fatal(err)
		}
		want, ranges := current.beside(next)

		exact, err := preflight(current, w.facts, Options{}, set, func(Need) bool { return false })
		if err != nil || exact != want {
			t.Fatalf("need %+v, want %+v (%v)", exact, want, err)
		}
		bound := Need{}
		quick, err := preflight(current, w.facts, Options{}, set, func(n Need) bool { bound = n; return true })
		if err != nil {
			t.Fatal(err)
		}
		if ranges == 0 && quick != want {
			t.Fatalf("need %+v, want %+v", quick, want)
		}
		if ranges > 0 && (bound.Policy < want.Policy || bound.Classes < want.Classes || bound.Ranges != want.Ranges) {
			t.Fatalf("bound %+v of %+v, with %d new ranges", bound, want, ranges)
		}
	})
}
