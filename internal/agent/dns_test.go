package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// fakeProxy has a journal of facts, and notes what it is asked.
type fakeProxy struct {
	status  dnslink.Status
	facts   []dnslink.Fact
	seeded  []dnslink.Seed
	shipped []uint64
	loaded  []*dnslink.Rules
	rules   string
}

func (p *fakeProxy) Status(context.Context) (dnslink.Status, error) { return p.status, nil }
func (p *fakeProxy) Seed(_ context.Context, s dnslink.Seed) error {
	p.seeded = append(p.seeded, s)
	p.status.Last = s.Last
	return nil
}

var errDone = errors.New("no more facts")

func (p *fakeProxy) Facts(_ context.Context, after uint64, limit int, _ time.Duration) (out []dnslink.Fact, err error) {
	for _, f := range p.facts {
		if f.Seq > after && len(out) < limit {
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		return nil, errDone
	}
	return out, nil
}
func (p *fakeProxy) Shipped(_ context.Context, last uint64) error {
	p.shipped = append(p.shipped, last)
	return nil
}
func (p *fakeProxy) Repair(context.Context) (int, []dnslink.Difference, error) { return 0, nil, nil }
func (p *fakeProxy) Verify(context.Context) (int, []dnslink.Difference, error) { return 0, nil, nil }
func (p *fakeProxy) Load(context.Context) error {
	r, err := dnslink.ReadRules(p.rules)
	p.loaded = append(p.loaded, r)
	return err
}

// stateLog applies what is appended.
type stateLog struct{ *fsm.State }

func (l stateLog) Append(_ context.Context, events ...*eventpb.Event) ([]log.Result, error) {
	var out []log.Result
	for _, e := range events {
		b, err := log.Marshal(e)
		if err != nil {
			return nil, err
		}
		_, r, err := l.Apply(b)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func observed(seq uint64, name string, expires int64, addrs ...string) dnslink.Fact {
	o := &eventpb.DnsObserved{Node: "n", Ref: &eventpb.EndpointRef{Namespace: "d", Name: "web"}, Incarnation: 1, Name: name}
	for _, a := range addrs {
		o.Addresses = append(o.Addresses, &eventpb.DnsAddress{Address: netip.MustParseAddr(a).AsSlice(), ExpiresUnixNs: expires})
	}
	return encoded(seq, &eventpb.Event{Payload: &eventpb.Event_DnsObserved{DnsObserved: o}})
}

func encoded(seq uint64, e *eventpb.Event) dnslink.Fact {
	b, err := e.MarshalVT()
	if err != nil {
		panic(err)
	}
	return dnslink.Fact{Seq: seq, Data: b}
}

func forgotten(seq uint64, name, addr string) dnslink.Fact {
	return encoded(seq, &eventpb.Event{Payload: &eventpb.Event_DnsCollected{DnsCollected: &eventpb.DnsCollected{
		Node: "n", Ref: &eventpb.EndpointRef{Namespace: "d", Name: "web"}, Incarnation: 1, Name: name, Addresses: [][]byte{netip.MustParseAddr(addr).AsSlice()},
	}}})
}

func dnsState(t *testing.T) stateLog {
	t.Helper()
	s := stateLog{fsm.New("c")}
	for i, payload := range []*eventpb.Event{
		{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "n"}}},
		{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
			Ref: &eventpb.EndpointRef{Namespace: "d", Name: "web"}, Incarnation: 1, Node: "n", Mac: []byte{2, 0, 0, 0, 0, 1},
		}}},
	} {
		payload.Actor, payload.Origin = &eventpb.Actor{Role: eventpb.Role_ROLE_NODE}, &eventpb.Origin{Cluster: "c", Node: "n"}
		payload.Stream, _ = log.StreamOf(payload)
		if r, err := s.Append(t.Context(), payload); err != nil || r[0].Outcome != log.OutcomeApplied {
			t.Fatalf("event %d: %+v, %v", i, r, err)
		}
	}
	return s
}

func learned(v fsm.View) string {
	var out []string
	for n := range v.Names() {
		line := n.Name
		for _, a := range n.Addresses {
			line += fmt.Sprintf(" %s@%d", a.Addr, a.ExpiresNS)
		}
		out = append(out, line)
	}
	return strings.Join(out, ", ")
}

// However often and wherever shipping is cut short, each fact is in the log once, in
// its order, and what adds nothing is not.
func TestDNSFactsAreShippedOnce(t *testing.T) {
	s := dnsState(t)
	p := &fakeProxy{status: dnslink.Status{Cluster: "c", Node: "n", Last: 5}, facts: []dnslink.Fact{
		observed(1, "a.io.", 10, "10.0.0.1"), observed(2, "b.io.", 10, "10.0.0.2"), observed(3, "a.io.", 20, "10.0.0.1", "10.0.0.3"),
		forgotten(4, "a.io.", "10.0.0.1"), observed(5, "a.io.", 30, "10.0.0.4"),
	}}
	d := &dnsFacts{log: s, view: s.View, proxy: p, cluster: "c", node: "n", logger: slog.New(slog.DiscardHandler)}
	before := s.View().Revision()
	for range 3 {
		if err := d.follow(t.Context()); !errors.Is(err, errDone) {
			t.Fatal(err)
		}
	}
	if got, want := learned(s.View()), "a.io. 10.0.0.3@20 10.0.0.4@30, b.io. 10.0.0.2@10"; got != want {
		t.Errorf("learned %q, want %q", got, want)
	}
	if events := s.View().Revision() - before; events != 4 {
		t.Errorf("%d events for 5 facts of which two are joined", events)
	}
	if !slices.Equal(p.shipped, []uint64{5}) || len(p.seeded) != 0 {
		t.Errorf("shipped %v, seeded %v", p.shipped, p.seeded)
	}
	// A repeat that adds nothing adds no event.
	p.facts, p.status.Last = append(p.facts, observed(6, "a.io.", 25, "10.0.0.4")), 6
	if err := d.follow(t.Context()); !errors.Is(err, errDone) {
		t.Fatal(err)
	}
	if events := s.View().Revision() - before; events != 4 {
		t.Errorf("a repeat made event %d", events)
	}
	// A proxy that has lost its journal is told, and numbers go on.
	p.facts, p.status.Last = nil, 0
	if err := d.follow(t.Context()); !errors.Is(err, errDone) {
		t.Fatal(err)
	}
	if len(p.seeded) != 1 || p.seeded[0].Last != 5 || len(p.seeded[0].Facts) != 2 {
		t.Errorf("seeded %+v", p.seeded)
	}
	// One of another node is left alone.
	p.status.Node = "m"
	if err := d.follow(t.Context()); !errors.Is(err, dnslink.ErrOtherNode) {
		t.Errorf("another node's proxy: %v", err)
	}
}

// While the kernel is written, the proxy's rules cover what it had and what it gets.
func TestDNSRulesCoverBothSides(t *testing.T) {
	rules := func(names []string, row, table, class uint64) *dnslink.Rules {
		return &dnslink.Rules{
			Cluster: "c", Node: "n", Sets: [][]string{names},
			Endpoints: []dnslink.Endpoint{{ID: 1, Namespace: "d", Name: "web", Incarnation: 1, Tables: []uint64{table}}},
			Rows:      []dnslink.Row{{ID: row, Set: 0}, {ID: row + 100, Set: dnslink.EveryName}},
			Classes:   []dnslink.Class{{Table: table, ID: class, Set: 0}},
		}
	}
	path := filepath.Join(t.TempDir(), "rules")
	p := &fakeProxy{rules: path}
	d := &dnsRules{path: path, cluster: "c", node: "n", proxy: p, logger: slog.New(slog.DiscardHandler)}
	old, next := rules([]string{"a.io."}, 1, 10, 20), rules([]string{"b.io."}, 2, 11, 21)
	if err := d.write(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	both := unite(old, next)
	if err := d.write(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	want := &dnslink.Rules{
		Cluster: "c", Node: "n", Sets: [][]string{{"b.io."}, {"a.io."}},
		Endpoints: []dnslink.Endpoint{{ID: 1, Namespace: "d", Name: "web", Incarnation: 1, Tables: []uint64{11, 10}}},
		Rows:      []dnslink.Row{{ID: 2, Set: 0}, {ID: 102, Set: -1}, {ID: 1, Set: 1}, {ID: 101, Set: -1}},
		Classes:   []dnslink.Class{{Table: 11, ID: 21, Set: 0}, {Table: 10, ID: 20, Set: 1}},
	}
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, p.loaded[1], same); diff != "" {
		t.Errorf("rules of both sides (-want +got):\n%s", diff)
	}
	if !sameRules(unite(next, next), next) {
		t.Error("rules united with themselves differ")
	}
}

// Observations of a name are joined as far as one event can have their addresses.
func TestCoalesceIsBounded(t *testing.T) {
	observed := func(seq uint64, first, n int) fact {
		o := &eventpb.DnsObserved{Node: "n1", Ref: &eventpb.EndpointRef{Namespace: "default", Name: "web"}, Incarnation: 1, Name: "a.example."}
		for i := first; i < first+n; i++ {
			o.Addresses = append(o.Addresses, &eventpb.DnsAddress{Address: []byte{10, 1, byte(i >> 8), byte(i)}, ExpiresUnixNs: 1})
		}
		return fact{seq, &eventpb.Event{Payload: &eventpb.Event_DnsObserved{DnsObserved: o}}}
	}
	var got []string
	for _, f := range coalesce([]fact{observed(1, 0, 4000), observed(2, 3950, 100), observed(3, 5000, 50), observed(4, 4096, 1)}) {
		got = append(got, fmt.Sprint(f.seq, " ", len(f.event.GetDnsObserved().Addresses)))
	}
	if want := []string{"2 4050", "4 51"}; !slices.Equal(got, want) {
		t.Errorf("facts and their addresses: %q, want %q", got, want)
	}
}
