package audit

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/projections"
)

func TestDiffState(t *testing.T) {
	m := incident(t)
	var b strings.Builder
	if err := DiffState(m.views[4], m.views[10], func(c StateChange) error {
		fmt.Fprintf(&b, "%d %s %s: %s -> %s\n", c.Revision, c.Kind, c.Name, c.Was, c.Is)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := `
10 policy cnp/shop/guard:  -> 2 ingress, set at revision 10
`
	got := ""
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, " policy ") {
			got += line
		}
	}
	if diff := cmp.Diff(strings.TrimLeft(want, "\n"), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, want := range []string{
		"endpoint shop/thief:  -> node one, id 3, identity 256, 10.0.0.5, fd00::5, labels app=web, incarnation 3\n",
		"3 endpoint shop/web: node one, id 1, identity 256, 10.0.0.5, fd00::5, labels app=web, incarnation 1 -> \n",
		"8 identity 258:  -> ",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "shop/db") {
		t.Errorf("what did not change:\n%s", b.String())
	}
}

// Applied to the earlier state, the changes give the later one.
func TestDiffIsComplete(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	m := newMemory(t)
	m.join("one", 1)
	for range 200 {
		m.churn(r)
	}
	rows := func(v fsm.View) map[string]string {
		out := map[string]string{}
		// Against nothing, a diff is the whole.
		if err := DiffState(fsm.View{}, v, func(c StateChange) error { out[c.Kind+" "+c.Name] = c.Is; return nil }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for range 60 {
		from, to := r.IntN(len(m.views)), r.IntN(len(m.views))
		have := rows(m.views[from])
		if err := DiffState(m.views[from], m.views[to], func(c StateChange) error {
			key := c.Kind + " " + c.Name
			if have[key] != c.Was {
				t.Errorf("%s was %q, not %q", key, have[key], c.Was)
			}
			if have[key] = c.Is; c.Is == "" {
				delete(have, key)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rows(m.views[to]), have); diff != "" {
			t.Fatalf("from %d to %d (-want +got):\n%s", from, to, diff)
		}
		diffTables(t, m, from, to)
	}
}

func diffTables(t *testing.T, m *memory, from, to int) {
	t.Helper()
	build := func(at int) *projections.Tables {
		tables, err := projections.Build(m.views[at], "one", projections.Options{})
		if err != nil {
			return &projections.Tables{}
		}
		return tables
	}
	was, is := build(from), build(to)
	have := map[abi.PolicyKey]abi.PolicyValue{}
	for row := range was.Policy.All() {
		have[row.Key] = row.Value
	}
	if err := DiffTable(&was.Policy, &is.Policy, func(was, is *projections.PolicyRow) error {
		if is == nil {
			delete(have, was.Key)
			return nil
		}
		if was != nil && was.Value == is.Value {
			t.Error("an equal row")
		}
		have[is.Key] = is.Value
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := map[abi.PolicyKey]abi.PolicyValue{}
	for row := range is.Policy.All() {
		want[row.Key] = row.Value
	}
	if len(have) != len(want) {
		t.Fatalf("%d rows, want %d", len(have), len(want))
	}
	for k, v := range want {
		if have[k] != v {
			t.Fatalf("%+v: %+v, want %+v", k, have[k], v)
		}
	}
}
