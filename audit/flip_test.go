package audit

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// naive judges a question at a View with all of the tables of all of the nodes.
func naive(t *testing.T, m *memory, q Question, at log.Revision) Outcome {
	t.Helper()
	view := m.views[at]
	resolved, err := q.resolve(view)
	if errors.Is(err, ErrAbsent) {
		return Absent
	}
	if err != nil {
		t.Fatal(err)
	}
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

// A search finds what a walk over every revision finds, whoever the parties are:
// pods that come and go, addresses that go from one to another, nodes, the world.
func TestSearchEqualsWalk(t *testing.T) {
	port := func(s string) Port {
		p, err := ParsePort(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	var kinds [3]int
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := newMemory(t)
		m.join("one", 1)
		for range 250 {
			m.churn(r)
		}
		a := &Auditor{Past: m, span: 8}
		for _, q := range []Question{
			{"default/web", "shop/db", port("80")},
			{"shop/web", "shop/db", port("http")},
			{"default/web", "web", port("http/tcp")},
			{"10.0.0.4", "10.0.0.5", port("80/tcp")},
			{"10.0.0.2", "shop/db", port("53/udp")},
			{"192.0.2.7", "default/web", port("80")},
			{"default/db", "192.0.2.200", port("80")},
			{"shop/other", "fd00::6", port("8/icmp")},
			{"shop/other", "fd00::6", port("128/icmpv6")},
			{"web", "reserved:world", port("80")},
		} {
			var walk []Flip
			before := naive(t, m, q, 0)
			for rev := log.Revision(1); rev <= m.Head(); rev++ {
				if now := naive(t, m, q, rev); now != before {
					walk = append(walk, Flip{rev, before, now})
					before = now
				}
				kinds[before]++
			}
			var found []Flip
			if err := a.Flips(t.Context(), q, 0, m.Head(), func(f Flip) error { found = append(found, f); return nil }); err != nil {
				t.Fatalf("seed %d, %v: %v", seed, q, err)
			}
			if diff := cmp.Diff(walk, found); diff != "" {
				t.Fatalf("seed %d, %+v (-walk +search):\n%s", seed, q, diff)
			}
			m.first = log.Revision(r.IntN(100))
			for range 8 {
				at := m.first + log.Revision(r.IntN(int(m.Head()-m.first)+1))
				checkNext(t, a, q, at, m.Head(), walk)
				checkLast(t, a, q, at, m.first, walk)
			}
			m.first = 0
		}
	}
	for o, n := range kinds {
		if n == 0 {
			t.Errorf("no question was ever %s: the histories prove nothing", Outcome(o))
		}
	}
}

func checkNext(t *testing.T, a *Auditor, q Question, after, until log.Revision, walk []Flip) {
	t.Helper()
	var want *Flip
	for i := range walk {
		if walk[i].Revision > after {
			want = &walk[i]
			break
		}
	}
	got, err := a.NextFlip(t.Context(), q, after, until)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%+v, first after %d (-walk +search):\n%s", q, after, diff)
	}
}

func checkLast(t *testing.T, a *Auditor, q Question, at, first log.Revision, walk []Flip) {
	t.Helper()
	var want *Flip
	for i := range walk {
		if walk[i].Revision <= at && walk[i].Revision > first {
			want = &walk[i]
		}
	}
	got, err := a.LastFlip(t.Context(), q, at)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%+v, last at %d (-walk +search):\n%s", q, at, diff)
	}
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
	err := (&Auditor{Past: m}).Flips(t.Context(), Question{"web", "db", Port{Protocol: 6, Number: 80}}, 0, m.Head(), func(f Flip) error {
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
