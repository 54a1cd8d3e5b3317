package fsm

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// A State resumed from a View of any revision answers what follows as the first
// one did, and the View stays as it was.
func TestResume(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := drawHistory(t)
		cut := rapid.IntRange(0, len(history)).Draw(t, "cut")
		first := New(testCluster)
		applyAll(t, first, history[:cut])
		at := first.View()
		before := contentsOf(at)
		want := applyAll(t, first, history[cut:])

		for range 2 {
			resumed := Resume(at)
			if diff := cmp.Diff(want, applyAll(t, resumed, history[cut:])); diff != "" {
				t.Fatalf("answers (-first +resumed):\n%s", diff)
			}
			sameViews(t, "resumed", resumed.View(), first.View())
			if diff := cmp.Diff(before, contentsOf(at), compareContents...); diff != "" {
				t.Fatalf("the View changed (-before +after):\n%s", diff)
			}
		}
	})
}
