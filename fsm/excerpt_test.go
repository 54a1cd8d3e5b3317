package fsm

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// An excerpt that is folded on has the rows that the State has: of the endpoints
// and policies that it is of, and of every namespace and node.
func TestExcerpt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := drawHistory(t)
		cut := rapid.IntRange(0, len(history)).Draw(t, "cut")
		namespace := rapid.SampledFrom([]string{"a", "b", "default"}).Draw(t, "of")
		inside := func(ref policy.Ref) bool { return ref.Namespace == namespace }
		full := New(testCluster)
		applyAll(t, full, history[:cut])
		at := full.View()
		var refs []EndpointRef
		for _, name := range []string{"w", "x", "y", "z"} {
			refs = append(refs, EndpointRef{namespace, name}, EndpointRef{namespace, name})
		}
		part := at.Excerpt(refs, inside)
		compareExcerpt(t, namespace, part.View(), at)

		var records []log.Record
		for _, event := range history[cut:] {
			r, _, err := full.Apply(event)
			if err != nil {
				t.Fatal(err)
			}
			if r.Revision != 0 {
				records = append(records, r)
			}
		}
		for i := range records {
			stream := string(log.PeekStream(records[i].Event))
			if ref, err := policy.ParseStream(stream); err == nil && !inside(ref) && records[i].Outcome == log.OutcomeApplied {
				continue
			}
			if len(stream) > 9 && stream[:9] == "endpoint/" && !slices.ContainsFunc(refs, func(r EndpointRef) bool { return stream == "endpoint/"+r.String() }) {
				continue
			}
			if of, ok := strings.CutPrefix(stream, "dns/"); ok && !slices.ContainsFunc(refs, func(r EndpointRef) bool { return of == r.String() }) {
				continue
			}
			if err := part.Fold(&records[i]); err != nil {
				t.Fatal(err)
			}
		}
		compareExcerpt(t, namespace, part.View(), full.View())
		if len(records) > 0 {
			if err := part.Fold(&records[0]); err == nil && part.View().Revision() > records[0].Revision {
				t.Fatalf("a record of the past was folded")
			}
		}
	})
}

// compareExcerpt compares the rows of one namespace, bar numbers that an excerpt
// does not have: of identities, of endpoints once others were left out, and of
// journals.
func compareExcerpt(t *rapid.T, namespace string, part, full View) {
	type rows struct {
		Namespaces []*Namespace
		Nodes      []*Node
		Endpoints  []*Endpoint
		Labels     []string
		Policies   []*Policy
	}
	of := func(v View) rows {
		r := rows{Namespaces: slices.Collect(v.Namespaces()), Nodes: slices.Collect(v.Nodes())}
		for e := range v.Endpoints() {
			if e.Ref.Namespace == namespace {
				r.Endpoints = append(r.Endpoints, e)
				id, ok := v.Identity(e.Identity)
				if !ok {
					t.Fatalf("endpoint %s: identity %d is missing", e.Ref, e.Identity)
				}
				r.Labels = append(r.Labels, id.Labels.String())
			}
		}
		for p := range v.Policies() {
			if p.Policy.Ref.Namespace == namespace {
				r.Policies = append(r.Policies, p)
			}
		}
		return r
	}
	opts := append(slices.Clone(compareContents),
		cmpopts.IgnoreFields(Endpoint{}, "ID", "Identity"), cmpopts.IgnoreFields(Node{}, "JournalSeq", "DNSSeq", "NextEndpointID"))
	if diff := cmp.Diff(of(full), of(part), opts...); diff != "" {
		t.Fatalf("(-full +excerpt):\n%s", diff)
	}
	users := map[uint32]int{}
	for e := range part.Endpoints() {
		users[e.Identity]++
	}
	for id, n := range users {
		if i, _ := part.Identity(id); i.Refs != n {
			t.Fatalf("identity %d: %d references, %d endpoints have it", id, i.Refs, n)
		}
	}
}
