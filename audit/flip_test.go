package audit

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// naive judges a question at a View with all of the tables of all of the nodes.
func naive(t *testing.T, m *memory, q Question, at log.Revision, timeNS int64) Outcome {
	t.Helper()
	view := m.views[at]
	resolved, err := q.resolve(view)
	if errors.Is(err, ErrAbsent) {
		return Absent
	}
	if err != nil {
		t.Fatal(err)
	}
	resolved.TimeNS = timeNS
	answer, err := verdict.Ask(view, verdict.Projected(view, projections.Options{}), resolved)
	switch {
	case errors.Is(err, verdict.ErrFamily):
		return Absent
	case err != nil:
		t.Fatalf("revision %d: %v", at, err)
	case answer.Allowed():
		return Allowed
	}
	return Denied
}

// tick is the time between two moments of a walk: events are at whole seconds, and what
// is learned expires between two.
const tick = int64(500 * time.Millisecond)

// walk judges at every revision and, after each, at every tick until the next one.
func walk(t *testing.T, m *memory, q Question) (flips []Flip, seen [3]int) {
	t.Helper()
	before := naive(t, m, q, 0, 0)
	judge := func(f Flip) {
		if f.After = naive(t, m, q, f.Revision, f.TimeNS); f.After != before {
			f.Before = before
			before = f.After
			flips = append(flips, f)
		}
		seen[before]++
	}
	for rev := log.Revision(1); rev <= m.Head(); rev++ {
		at := m.views[rev].TimeNS()
		if last := m.views[rev-1].TimeNS(); rev > 1 && m.learns(q, rev-1) {
			for now := last + tick; now < at; now += tick {
				judge(Flip{Revision: rev - 1, TimeNS: now})
			}
		}
		judge(Flip{Revision: rev, TimeNS: at})
	}
	return flips, seen
}

// equalFlips wants the same flips. Those that no record made name what expired.
func equalFlips(t *testing.T, what string, m *memory, want, got []Flip) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Flip{}, "Expired")); diff != "" {
		t.Fatalf("%s (-walk +search):\n%s", what, diff)
	}
	for _, f := range got {
		if byRecord := m.views[f.Revision].TimeNS() == f.TimeNS; byRecord != (f.Expired == nil) {
			t.Fatalf("%s: %+v", what, f)
		}
		for _, x := range f.Expired {
			if x.ExpiresNS != f.TimeNS || f.Cause() == 0 || f.Cause() > f.Revision {
				t.Fatalf("%s: %+v", what, f)
			}
		}
	}
}

// A search finds what a walk over every revision and every moment between finds, whoever
// the parties are: pods that come and go, addresses that go from one to another, nodes,
// the world, names.
func TestSearchEqualsWalk(t *testing.T) {
	port := func(s string) Port {
		p, err := ParsePort(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	var kinds [3]int
	expired := 0
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := newMemory(t)
		m.join("one", 1)
		for range 250 {
			if r.IntN(3) == 0 {
				m.talk(r)
			} else {
				m.churn(r)
			}
		}
		a := &Auditor{Past: m, span: 8}
		for _, q := range []Question{
			{From: "default/web", To: "shop/db", Port: port("80")},
			{From: "shop/web", To: "shop/db", Port: port("http")},
			{From: "default/web", To: "web", Port: port("http/tcp")},
			{From: "10.0.0.4", To: "10.0.0.5", Port: port("80/tcp")},
			{From: "10.0.0.2", To: "shop/db", Port: port("53/udp")},
			{From: "192.0.2.7", To: "default/web", Port: port("80")},
			{From: "default/db", To: "192.0.2.200", Port: port("80")},
			{From: "shop/other", To: "fd00::6", Port: port("8/icmp")},
			{From: "shop/other", To: "fd00::6", Port: port("128/icmpv6")},
			{From: "web", To: "reserved:world", Port: port("80")},
			{From: "web", To: "192.0.2.7", Port: port("80")},
			{From: "web", To: "api.example.com", Port: port("80")},
			{From: "10.0.0.4", To: "www.example.com", Port: port("80")},
			{From: "shop/db", To: "2001:db8::7", Port: port("80")},
		} {
			walk, seen := walk(t, m, q)
			for o, n := range seen {
				kinds[o] += n
			}
			var found []Flip
			if err := a.Flips(t.Context(), q, 0, m.Head(), func(f Flip) error { found = append(found, f); return nil }); err != nil {
				t.Fatalf("seed %d, %v: %v", seed, q, err)
			}
			equalFlips(t, fmt.Sprintf("seed %d, %+v", seed, q), m, walk, found)
			for _, f := range found {
				expired += len(f.Expired)
			}
			m.first = log.Revision(r.IntN(100))
			for range 8 {
				at := m.first + log.Revision(r.IntN(int(m.Head()-m.first)+1))
				checkNext(t, a, m, q, at, m.Head(), walk)
				checkLast(t, a, m, q, at, walk)
			}
			m.first = 0
		}
	}
	for o, n := range kinds {
		if n == 0 {
			t.Errorf("no question was ever %s: the histories prove nothing", Outcome(o))
		}
	}
	if expired == 0 {
		t.Error("nothing ever expired: the histories prove nothing")
	}
}

func checkNext(t *testing.T, a *Auditor, m *memory, q Question, after, until log.Revision, walk []Flip) {
	t.Helper()
	q.SinceNS = m.views[after].TimeNS() + tick
	var want []Flip
	for _, f := range walk {
		if f.TimeNS > q.SinceNS || f.Revision > after {
			want = append(want, f)
			break
		}
	}
	got, err := a.NextFlip(t.Context(), q, after, until)
	if err != nil {
		t.Fatal(err)
	}
	equalFlips(t, fmt.Sprintf("%+v, first after %d", q, after), m, want, flipList(got))
}

func checkLast(t *testing.T, a *Auditor, m *memory, q Question, at log.Revision, walk []Flip) {
	t.Helper()
	q.TimeNS = m.views[at].TimeNS() + tick
	var want []Flip
	for i, f := range walk {
		if f.TimeNS <= q.TimeNS && f.TimeNS > m.views[m.first].TimeNS() {
			want = walk[i : i+1]
		}
	}
	got, err := a.LastFlip(t.Context(), q, at)
	if err != nil {
		t.Fatal(err)
	}
	equalFlips(t, fmt.Sprintf("%+v, last at %d", q, at), m, want, flipList(got))
	outcome, err := a.Outcome(t.Context(), q, at)
	if want := naive(t, m, q, at, q.TimeNS); err != nil || outcome != want {
		t.Fatalf("%+v at %d: %s, %v; want %s", q, at, outcome, err, want)
	}
}

func flipList(f *Flip) []Flip {
	if f == nil {
		return nil
	}
	return []Flip{*f}
}

func TestFlipsOfAPolicyThatIsDeletedAndRecreated(t *testing.T) {
	m := newMemory(t)
	m.must(m.join("one", 1))
	m.must(m.pod("one", "default", "web", 5, map[string]string{"app": "web"}))
	m.must(m.pod("one", "default", "db", 6, map[string]string{"app": "db"}))
	guard := `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: guard}
spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{}]}`
	m.apply(guard)
	ref := policy.Ref{Kind: policy.KindCiliumNetworkPolicy, Namespace: "default", Name: "guard"}
	m.must(m.delete(ref))
	m.apply(guard)
	var got []string
	err := (&Auditor{Past: m}).Flips(t.Context(), Question{From: "web", To: "db", Port: Port{Protocol: 6, Number: 80}}, 0, m.Head(), func(f Flip) error {
		got = append(got, fmt.Sprintf("%d %s", f.Revision, f.After))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"3 allowed", "4 denied", "5 allowed", "6 denied"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
