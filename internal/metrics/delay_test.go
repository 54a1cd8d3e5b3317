package metrics

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/log"
)

// delays is what varve_policy_implementation_delay has seen.
func (k *kit) delays() (count uint64, sum float64) {
	k.t.Helper()
	families, err := k.registry.Gather()
	if err != nil {
		k.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "varve_policy_implementation_delay" {
			h := f.Metric[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
	}
	k.t.Fatal("not registered")
	return 0, 0
}

// follow runs Follow until the test ends, and returns a wait for the revision of
// the last policy change in force.
func (k *kit) follow() (await func(log.Revision)) {
	ctx, stop := context.WithCancel(k.t.Context())
	ended := make(chan error, 1)
	view, inForce := k.log.View(), log.Revision(k.inForce.Load())
	go func() { ended <- k.Follow(ctx, k.log, view, inForce) }()
	k.t.Cleanup(func() {
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			k.t.Error(err)
		}
	})
	return func(want log.Revision) {
		k.t.Helper()
		deadline := time.After(time.Minute)
		for k.rounds.policyRevision() != want {
			select {
			case <-deadline:
				k.t.Fatalf("policy of revision %d is in force, want %d", k.rounds.policyRevision(), want)
			case <-time.After(time.Millisecond):
			}
		}
	}
}

func TestDelayOfPolicyChanges(t *testing.T) {
	k := newKit(t)
	k.mustAppend(joined())
	before := k.mustAppend(policySet(t, "before"))
	k.round(dataplane.Stats{}, nil)
	await := k.follow()
	await(before) // known from the view
	if n, _ := k.delays(); n != 0 {
		t.Errorf("%d delays of what was in force at the start", n)
	}

	// Two changes and something else in one round, the first try of which fails.
	k.mustAppend(policySet(t, "web"))
	k.mustAppend(created("web", 2))
	last := k.mustAppend(policySet(t, "more"))
	k.round(dataplane.Stats{}, errors.New("map policy is full"))
	if n, _ := k.delays(); n != 0 {
		t.Errorf("%d delays while nothing is in force", n)
	}
	k.round(dataplane.Stats{}, nil)
	await(last)

	last = k.mustAppend(policyDeleted("web"))
	if r := k.append(policyDeleted("web")); r.Outcome != log.OutcomeRejected {
		t.Fatalf("%+v", r)
	}
	k.ObserveRound(Round{Revision: k.round(dataplane.Stats{}, nil) + 1, Ended: time.Now(), Tables: k.tables})
	await(last)
	if n, sum := k.delays(); n != 3 || sum <= 0 || sum > 10 {
		t.Errorf("%d delays of %g s together, want those of 3 changes", n, sum)
	}
}

func TestDelayIsFromTheEventToTheRound(t *testing.T) {
	k := newKit(t)
	k.mustAppend(joined())
	k.round(dataplane.Stats{}, nil)
	await := k.follow()
	late := k.mustAppend(policySet(t, "late"))
	at := time.Unix(0, k.log.View().TimeNS())
	k.ObserveRound(Round{Revision: late, Ended: at.Add(40 * time.Second), Tables: k.tables})
	await(late)
	if n, sum := k.delays(); n != 1 || sum != 40 {
		t.Errorf("%d delays of %g s, want one of 40 s", n, sum)
	}
	early := k.mustAppend(policySet(t, "early")) // and then the clock is set back
	k.ObserveRound(Round{Revision: early, Ended: at.Add(-time.Hour), Tables: k.tables})
	await(early)
	if n, sum := k.delays(); n != 2 || sum != 40 {
		t.Errorf("%d delays of %g s, want a second one of 0 s", n, sum)
	}
}

// Who is behind still learns when each revision came into force.
func TestRoundsAreRemembered(t *testing.T) {
	var r rounds
	start := time.Unix(1000, 0)
	for i := range keepRounds + 10 {
		rev := log.Revision(2 * (i + 1))
		r.ended(rev, start.Add(time.Duration(rev)*time.Second))
		r.ended(rev, start.Add(time.Hour)) // the same again, later
	}
	newest := log.Revision(2 * (keepRounds + 10))
	for _, tt := range []struct{ revision, want log.Revision }{
		{newest, newest}, {newest - 1, newest}, {newest - 2, newest - 2}, {newest - 401, newest - 400},
		{1, 22}, // forgotten: the oldest that is known
	} {
		at, err := r.wait(t.Context(), tt.revision)
		if want := start.Add(time.Duration(tt.want) * time.Second); err != nil || !at.Equal(want) {
			t.Errorf("revision %d: in force at %v (%v), want %v", tt.revision, at, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.wait(ctx, newest+1); !errors.Is(err, context.Canceled) {
		t.Errorf("a revision that never comes into force: %v", err)
	}
}

func FuzzIsPolicy(f *testing.F) {
	for _, stream := range []string{"policy/cnp/default/web", "policy", "policyx/", "namespace/policy/", ""} {
		e := created("web", 2)
		e.Stream = stream
		b, err := log.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := isPolicy(b)
		e, err := log.Unmarshal(b)
		if err != nil {
			return
		}
		if want := len(e.Stream) >= 7 && e.Stream[:7] == "policy/"; got != want {
			t.Errorf("stream %q: %t", e.Stream, got)
		}
	})
}
