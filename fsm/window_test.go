package fsm

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// The index finds what a map finds, whatever came and went, in windows of every
// size, and a fork goes its own way.
func TestRequestIndexAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s State
		want := map[string]uint64{} // positions
		next := 0
		check := func(s *State) {
			for i := range next + 1 {
				id := newRequestID(fmt.Sprint("request-", i))
				position, found := s.requestIndex.find(&s.requests, &id)
				if at, ok := want[id.String()]; found != ok || found && position != at {
					t.Fatalf("%s: found %v at %d, want %v at %d", id.String(), found, position, ok, at)
				}
			}
			if s.requests.len() != len(want) || s.requestIndex.used != len(want) {
				t.Fatalf("%d requests, %d in the index, want %d", s.requests.len(), s.requestIndex.used, len(want))
			}
		}
		steps := rapid.SliceOfN(rapid.IntRange(-700, 700), 1, 8).Draw(t, "steps")
		for _, n := range steps {
			for range max(n, 0) {
				want[fmt.Sprint("request-", next)] = s.requests.end
				s.remember(&request{id: newRequestID(fmt.Sprint("request-", next))})
				next++
			}
			for range min(-n, s.requests.len()) {
				id := s.requests.at(s.requests.first).id
				s.requestIndex.remove(&id, s.requests.first)
				s.requests.pop(s.requestsHashed)
				delete(want, id.String())
			}
			check(&s)
		}
		view := s.requests
		forked := State{tables: tables{requests: s.requests.fork()}}
		forked.remember(&request{id: newRequestID("forked")})
		s.remember(&request{id: newRequestID("original")})
		if got := s.requests.at(s.requests.end - 1).id; got != newRequestID("original") {
			t.Fatalf("the fork wrote %s into its original", got.String())
		}
		if view.len() != len(want) {
			t.Fatalf("a copy has %d requests, had %d", view.len(), len(want))
		}
	})
}
