package audit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// recording is a flow record in memory.
type recording struct {
	flows []flows.Flow
	gaps  []flows.Gap
}

func (r *recording) Read(_ context.Context, fromNS, toNS int64, flow func(*flows.Flow) error, gap func(flows.Gap) error) error {
	for _, g := range r.gaps {
		if err := gap(g); err != nil {
			return err
		}
	}
	for i := range r.flows {
		if f := &r.flows[i]; f.LastNS >= fromNS && f.FirstNS <= toNS {
			if err := flow(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// flow is one as the datapath of node one reports it at a revision.
func (m *memory) flow(at log.Revision, src, dst string, port uint16, allowed bool) flows.Flow {
	view := m.views[at]
	f := flows.Flow{
		Key: flows.Key{
			Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: 6, Port: port, Verdict: flows.Forwarded,
		},
		FirstNS: view.TimeNS(), LastNS: view.TimeNS(), Count: 1, FirstRevision: at, LastRevision: at,
	}
	if !allowed {
		f.Verdict, f.Reason = flows.Dropped, abi.PolicyDefaultDeny
	}
	for e := range view.Endpoints() {
		switch {
		case e.IPv4 == f.Src:
			f.SrcName = e.Ref.String()
		case e.IPv4 == f.Dst:
			f.DstName = e.Ref.String()
		}
	}
	return f
}

// onNode is the verdict of node one at a View.
func onNode(t *testing.T, view fsm.View, f *flows.Flow) bool {
	t.Helper()
	from, err := verdict.ParseParty(view, f.Src.String())
	if err != nil {
		t.Fatal(err)
	}
	to, err := verdict.ParseParty(view, f.Dst.String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := verdict.Ask(view, verdict.Projected(view, projections.Options{}), verdict.Question{From: from, To: to, Protocol: f.Protocol, Port: f.Port})
	if err != nil {
		t.Fatal(err)
	}
	return (from.Endpoint == nil || from.Endpoint.Node != "one" || a.Egress.Allowed) && (to.Endpoint == nil || to.Endpoint.Node != "one" || a.Ingress.Allowed)
}

// supposed is the state at a revision as if the supposition had held, from a log in
// which the policies' own events never were.
func supposed(t *testing.T, m *memory, at log.Revision, what Supposition) fsm.View {
	t.Helper()
	changed := slices.Clone(what.Delete)
	for _, set := range what.Set {
		ref, err := policy.RefFromPB(set.Ref)
		if err != nil {
			t.Fatal(err)
		}
		changed = append(changed, ref)
	}
	other := newMemory(t)
	for _, r := range m.records[:at] {
		if ref, err := policy.ParseStream(string(log.PeekStream(r.Event))); err == nil && slices.Contains(changed, ref) {
			continue
		}
		if _, _, err := other.state.Apply(r.Event); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range what.Delete {
		other.delete(ref) // should a restore have brought it back
	}
	for _, set := range what.Set {
		other.must(other.append(eventpb.Role_ROLE_ADMIN, "one", &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: set}}))
	}
	return other.state.View()
}

func parse(t *testing.T, manifest string) []*eventpb.PolicySet {
	t.Helper()
	sets, _, err := policy.Parse("test", []byte(manifest), policy.Options{Cluster: testCluster})
	if err != nil {
		t.Fatal(err)
	}
	return sets
}

// The flows that a replay names are those that a naive one finds, which makes the
// supposed state anew for each.
func TestReplayEqualsNaive(t *testing.T) {
	differ := 0
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 9))
		m := newMemory(t)
		m.join("one", 1)
		for range 150 {
			m.churn(r)
		}
		what := Supposition{
			Set:    parse(t, drawPolicy(r, "default")+"\n---\n"+"apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: c9}\nspec: {endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [world]}]}"),
			Delete: []policy.Ref{{Kind: policy.KindCiliumNetworkPolicy, Namespace: "shop", Name: "p1"}},
		}
		record := &recording{}
		want := map[string]uint64{}
		for range 120 {
			at := log.Revision(1 + r.IntN(len(m.records)))
			addr := func() string {
				return pick(r, "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.1", "192.0.2.9", "198.51.100.1")
			}
			src, dst := addr(), addr()
			if src == dst {
				continue
			}
			f := m.flow(at, src, dst, pick[uint16](r, 80, 8080), true)
			if !onNode(t, m.views[at], &f) {
				f = m.flow(at, src, dst, f.Port, false)
			}
			record.flows = append(record.flows, f)
			if was, is := f.Verdict == flows.Forwarded, onNode(t, supposed(t, m, at, what), &f); was != is {
				want[fmt.Sprintf("%s %s %d %t", src, dst, f.Port, is)]++
				differ++
			}
		}
		got, err := (&Auditor{Past: m}).ReplayFlows(t.Context(), record, "one", 0, 1<<62, what)
		if err != nil {
			t.Fatal(err)
		}
		var wantEvents, gotEvents uint64
		for _, n := range want {
			wantEvents += n
		}
		for _, g := range got.Groups {
			gotEvents += g.Events
			for _, s := range g.Samples {
				from, to, _ := strings.Cut(s, " -> ")
				key := fmt.Sprintf("%s %s %d %t", from[strings.LastIndex(from, " ")+1:], to[strings.LastIndex(to, " ")+1:], g.Port, g.Is == Allowed)
				if want[key] == 0 {
					t.Errorf("seed %d: %s is no difference", seed, key)
				}
			}
		}
		if wantEvents != gotEvents || got.Unexplained != 0 || got.Skipped != 0 {
			t.Errorf("seed %d: %d events differ, want %d; %d unexplained", seed, gotEvents, wantEvents, got.Unexplained)
		}
	}
	if differ < 20 {
		t.Errorf("only %d flows differ: the histories prove little", differ)
	}
}

func TestReplayTellsWhatItLacks(t *testing.T) {
	m := incident(t)
	late := m.flow(6, "10.0.0.5", "10.0.0.6", 8080, true) // denied by then
	foreign := m.flow(6, "10.0.0.5", "10.0.0.6", 8080, true)
	foreign.Verdict, foreign.Reason = flows.Dropped, abi.Malformed
	record := &recording{
		flows: []flows.Flow{m.flow(2, "192.0.2.1", "192.0.2.2", 1, true), m.flow(5, "10.0.0.5", "10.0.0.6", 8080, true), late, foreign},
		gaps:  []flows.Gap{{FromNS: 1, ToNS: 2}, {FromNS: 5, ToNS: 9, Lost: 3}},
	}
	record.flows[1].Count = 10
	m.first = 3
	got, err := (&Auditor{Past: m}).ReplayFlows(t.Context(), record, "one", 0, 1<<62, Supposition{
		Set: parse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: lockdown, namespace: shop}\nspec: {endpointSelector: {}, ingressDeny: [{fromEntities: [all]}]}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &Replay{
		ToNS: 1 << 62, Flows: 3, Events: 13, Skipped: 1, Unexplained: 1, TooOld: 1, Gaps: record.gaps,
		Groups: []ReplayGroup{{
			From: "shop/app=web", To: "shop/app=db", Protocol: 6, Port: 8080, Was: Allowed, Is: Denied, Reason: "ingress: cnp/shop/lockdown ingressDeny[0]",
			Flows: 1, Events: 10, FirstNS: 5e9, LastNS: 5e9, Samples: []string{"shop/web 10.0.0.5 -> shop/db 10.0.0.6"},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
