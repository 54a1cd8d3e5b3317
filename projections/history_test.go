package projections

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/drawn"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// history is a log in the making: events that a cluster might see, applied to a
// State.
type history struct {
	t     testing.TB
	state *fsm.State
	now   int64
	// generations of endpoints, since each incarnation is higher than the last
	incarnation uint64
	skipped     bool // identities were released once
	saved       []fsm.View
}

func newHistory(t testing.TB) *history {
	h := &history{t: t, state: fsm.New("default")}
	h.fact("one", &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "one", Addresses: [][]byte{{10, 0, 0, 1}}}}})
	return h
}

func (h *history) apply(role eventpb.Role, node string, e *eventpb.Event) log.Outcome {
	h.t.Helper()
	e.Actor = &eventpb.Actor{Role: role, Name: "test"}
	e.Origin = &eventpb.Origin{Cluster: "default", Node: node}
	e.TimeUnixNs = h.now
	var err error
	if e.Stream, err = log.StreamOf(e); err != nil {
		h.t.Fatal(err)
	}
	b, err := log.Marshal(e)
	if err != nil {
		h.t.Fatal(err)
	}
	_, r, err := h.state.Apply(b)
	if err != nil {
		h.t.Fatal(err)
	}
	return r.Outcome
}

func (h *history) admin(e *eventpb.Event) log.Outcome {
	return h.apply(eventpb.Role_ROLE_ADMIN, "one", e)
}

func (h *history) fact(node string, e *eventpb.Event) log.Outcome {
	return h.apply(eventpb.Role_ROLE_NODE, node, e)
}

var (
	drawnNodes      = []string{"one", "two", "three"}
	drawnNamespaces = []string{"default", "other"}
	drawnPods       = []string{"p0", "p1", "p2", "p3"}
)

// drawEvent makes one event; it may be one that is rejected.
func (h *history) drawEvent(t *rapid.T) {
	labels := func() map[string]string {
		out := make(map[string]string)
		for _, k := range []string{"app", "role"} {
			if v := rapid.SampledFrom([]string{"", "a", "b", "absent"}).Draw(t, k); v != "absent" {
				out[k] = v
			}
		}
		return out
	}
	ports := func() []*eventpb.NamedPort {
		var out []*eventpb.NamedPort
		for _, name := range drawn.Names {
			if rapid.IntRange(0, 2).Draw(t, "has "+name) == 0 {
				out = append(out, &eventpb.NamedPort{Name: name, Protocol: 6, Port: uint32(rapid.SampledFrom(drawn.Ports[2:8]).Draw(t, name))})
			}
		}
		return out
	}
	namespace := func() string { return rapid.SampledFrom(drawnNamespaces).Draw(t, "namespace") }
	pod := func() (string, string) { return namespace(), rapid.SampledFrom(drawnPods).Draw(t, "pod") }
	node := func() string { return rapid.SampledFrom(drawnNodes).Draw(t, "node") }
	live := func(ns, name string) (*fsm.Endpoint, bool) {
		return h.state.View().Endpoint(fsm.EndpointRef{Namespace: ns, Name: name})
	}
	switch rapid.IntRange(0, 19).Draw(t, "event") {
	case 18:
		h.saved = append(h.saved, h.state.View())
	case 19:
		if len(h.saved) > 0 {
			h.restore(rapid.SampledFrom(h.saved).Draw(t, "restored"))
		}
	case 0, 1, 2, 3:
		ns, name := pod()
		h.incarnation++
		// Few addresses, so that they go from one endpoint or node to another.
		a := byte(rapid.IntRange(1, 9).Draw(t, "address"))
		n := node()
		h.fact(n, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
			Ref: &eventpb.EndpointRef{Namespace: ns, Name: name}, Incarnation: h.incarnation, Node: n, Labels: labels(), NamedPorts: ports(),
			Mac: []byte{2, 0, 0, 0, 0, a}, Addresses: [][]byte{{10, 0, 0, a}, {0xfd, 15: a}},
		}}})
	case 4, 5:
		ns, name := pod()
		if e, ok := live(ns, name); ok {
			h.fact(e.Node, &eventpb.Event{Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: &eventpb.EndpointUpdated{
				Ref: &eventpb.EndpointRef{Namespace: ns, Name: name}, Incarnation: e.Incarnation, Labels: labels(), NamedPorts: ports(),
			}}})
		}
	case 6:
		ns, name := pod()
		if e, ok := live(ns, name); ok {
			h.fact(e.Node, &eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{
				Ref: &eventpb.EndpointRef{Namespace: ns, Name: name}, Incarnation: e.Incarnation,
			}}})
		}
	case 7:
		h.admin(&eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: namespace(), Labels: labels()}}})
	case 8:
		n := node()
		addr := []byte{10, 0, 0, byte(rapid.IntRange(1, 9).Draw(t, "node address"))}
		api := n != "one" && rapid.Bool().Draw(t, "api") || rapid.IntRange(0, 5).Draw(t, "own api") == 0
		h.fact(n, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: n, Addresses: [][]byte{addr}, KubeApiserver: api}}})
	case 9:
		n := rapid.SampledFrom([]string{"two", "two", "three", "one"}).Draw(t, "leaves")
		h.admin(&eventpb.Event{Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: n}}})
	case 10:
		if name := fmt.Sprintf("p%d", rapid.IntRange(0, 5).Draw(t, "deleted")); h.hasPolicy(name) {
			h.admin(&eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: drawnRef(name)}}})
		}
	case 11: // released numbers are freed and given to other labels
		if !h.skipped && rapid.IntRange(0, 3).Draw(t, "release") == 0 {
			h.skipped = true // it takes long
			h.now += 10 * 60 * 1e9
			h.skip(10_000)
		}
	case 12: // the same policy once more
		name := fmt.Sprintf("p%d", rapid.IntRange(0, 5).Draw(t, "again"))
		if p, ok := h.state.View().Policy(policy.Ref{Kind: policy.KindCiliumClusterwideNetworkPolicy, Name: name}); ok {
			h.admin(&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: p.Set}})
		}
	case 13, 14: // names
		selectors := func(what string) []*eventpb.FqdnSelector {
			var out []*eventpb.FqdnSelector
			for _, name := range []string{"a.io.", "b.io."} {
				if rapid.Bool().Draw(t, what+name) {
					out = append(out, &eventpb.FqdnSelector{MatchName: name})
				}
			}
			return append(out, &eventpb.FqdnSelector{MatchPattern: "*.c.io."})
		}
		web := &eventpb.Rule{Ports: []*eventpb.Port{{Protocol: 6, First: 443, Last: uint32(rapid.IntRange(443, 445).Draw(t, "last"))}}}
		for _, s := range selectors("to ") {
			web.Peers = append(web.Peers, &eventpb.Peer{Peer: &eventpb.Peer_Fqdn{Fqdn: s}})
		}
		ask := &eventpb.Rule{
			Peers: []*eventpb.Peer{{Peer: &eventpb.Peer_Entity{Entity: rapid.SampledFrom([]string{"cluster", "world", "host"}).Draw(t, "server")}}},
			Ports: []*eventpb.Port{{Protocol: 17, First: 53, Last: 53, Dns: &eventpb.DnsRules{Names: selectors("ask ")}}},
		}
		set := &eventpb.PolicySet{Ref: drawnRef(fmt.Sprintf("p%d", rapid.IntRange(0, 5).Draw(t, "set"))), Specs: []*eventpb.PolicySpec{{
			Subject: &eventpb.Selector{}, DefaultDenyEgress: rapid.Bool().Draw(t, "deny"), Egress: []*eventpb.Rule{ask, web},
		}}}
		if got := h.admin(&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: set}}); got != log.OutcomeApplied {
			t.Fatalf("policy of names: outcome %d", got)
		}
	default:
		for _, p := range drawPolicies(t) {
			p.Set.Ref = drawnRef(fmt.Sprintf("p%d", rapid.IntRange(0, 5).Draw(t, "set")))
			h.admin(&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: p.Set}})
		}
	}
}

func drawnRef(name string) *eventpb.PolicyRef {
	return &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_CLUSTERWIDE_NETWORK_POLICY, Name: name}
}

func (h *history) hasPolicy(name string) bool {
	_, ok := h.state.View().Policy(policy.Ref{Kind: policy.KindCiliumClusterwideNetworkPolicy, Name: name})
	return ok
}

// skip lets revisions pass with nothing that tables see.
func (h *history) skip(revisions int) {
	for range revisions {
		h.admin(&eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: "clock"}}})
	}
}

// restore puts policies and namespaces back.
func (h *history) restore(to fsm.View) {
	h.t.Helper()
	for _, e := range to.Restoring(fmt.Sprint(h.state.View().Revision()), 4096) {
		if got := h.apply(eventpb.Role_ROLE_RESTORER, "one", e); got != log.OutcomeApplied {
			h.t.Fatalf("restore: outcome %d", got)
		}
	}
}

// restart makes a new State of a snapshot.
func (h *history) restart() {
	var b bytes.Buffer
	if err := h.state.View().WriteSnapshot(&b); err != nil {
		h.t.Fatal(err)
	}
	state, err := fsm.ReadSnapshot(&b)
	if err != nil {
		h.t.Fatal(err)
	}
	h.state = state
}

// modelRows is what a reader of deltas holds.
type modelRows struct {
	endpoints map[EndpointKey]abi.EndpointValue
	ipcache   map[Prefix]abi.IPCacheValue
	classes   map[abi.ClassKey]abi.ClassValue
	policy    map[abi.PolicyKey]abi.PolicyValue
}

func (m *modelRows) equal(o *modelRows) bool {
	return maps.Equal(m.endpoints, o.endpoints) && maps.Equal(m.ipcache, o.ipcache) &&
		maps.Equal(m.classes, o.classes) && maps.Equal(m.policy, o.policy)
}

func contents[K, V comparable](t *Table[K, V]) map[K]V {
	out := make(map[K]V, t.Len())
	for r := range t.All() {
		out[r.Key] = r.Value
	}
	return out
}

func rowsOf(t *Tables) modelRows {
	return modelRows{contents(&t.Endpoints), contents(&t.IPCache), contents(&t.Classes), contents(&t.Policy)}
}

func follow[K, V comparable](t testing.TB, rows map[K]V, c Changes[K, V]) {
	t.Helper()
	for _, r := range c.Removed {
		if v, ok := rows[r.Key]; !ok || v != r.Value {
			t.Fatalf("row %+v is removed and was %+v, %v", r, v, ok)
		}
		delete(rows, r.Key)
	}
	for _, r := range c.Changed {
		if v, ok := rows[r.Key]; !ok || v == r.Value {
			t.Fatalf("row %+v is changed and was %+v, %v", r, v, ok)
		}
		rows[r.Key] = r.Value
	}
	for _, r := range c.Added {
		if v, ok := rows[r.Key]; ok {
			t.Fatalf("row %+v is added and was %+v", r, v)
		}
		rows[r.Key] = r.Value
	}
}

func (m *modelRows) apply(t testing.TB, tables *Tables, d *Delta) {
	t.Helper()
	if d.From == nil {
		*m = rowsOf(tables)
		return
	}
	follow(t, m.endpoints, d.Endpoints)
	follow(t, m.ipcache, d.IPCache)
	follow(t, m.classes, d.Classes)
	follow(t, m.policy, d.Policy)
}

func sameTable[K, V comparable](t testing.TB, name string, want, got *Table[K, V]) {
	t.Helper()
	w, g := slices.Collect(want.All()), slices.Collect(got.All())
	same := slices.EqualFunc(w, g, func(a, b *Row[K, V]) bool {
		return a.Key == b.Key && a.Value == b.Value && sameCause(a.Cause, b.Cause)
	})
	if same && want.Digest() == got.Digest() {
		return
	}
	if diff := cmp.Diff(w, g, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s, -from scratch +incremental:\n%s", name, diff)
	}
	if want.Digest() != got.Digest() {
		t.Fatalf("%s: equal rows have digests %s and %s", name, want.Digest(), got.Digest())
	}
}

func sameTables(t testing.TB, want, got *Tables) {
	t.Helper()
	if want.Node != got.Node || want.Revision != got.Revision {
		t.Fatalf("tables of %s at %d, want %s at %d", got.Node, got.Revision, want.Node, want.Revision)
	}
	sameTable(t, "endpoints", &want.Endpoints, &got.Endpoints)
	sameTable(t, "ipcache", &want.IPCache, &got.IPCache)
	sameTable(t, "classes", &want.Classes, &got.Classes)
	sameTable(t, "policy", &want.Policy, &got.Policy)
	sameTable(t, "reasons", &want.Reasons, &got.Reasons)
	sameTable(t, "questions", &want.Questions, &got.Questions)
	sameTable(t, "learned", &want.Learned, &got.Learned)
	if diff := cmp.Diff(want.Names, got.Names); diff != "" {
		t.Fatalf("names, -from scratch +incremental:\n%s", diff)
	}
	if want.Digest() != got.Digest() {
		t.Fatal("equal tables, other digest")
	}
}

func TestUpdatesEqualBuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(tbOf(t))
		p := New("one", Options{LocalhostByPolicy: rapid.Bool().Draw(t, "localhost by policy")})
		var model modelRows
		var last *Tables
		kept := make(map[*Tables]modelRows)
		for range rapid.IntRange(1, 25).Draw(t, "rounds") {
			for range rapid.IntRange(0, 6).Draw(t, "batch") {
				h.drawEvent(t)
			}
			switch rapid.IntRange(0, 20).Draw(t, "restart") {
			case 0:
				h.restart()
			case 1:
				p = New("one", p.opts)
				last = nil
			}
			want, wantErr := Build(h.state.View(), "one", p.opts)
			got, delta, err := p.Update(h.state.View())
			if (wantErr == nil) != (err == nil) {
				t.Fatalf("Build: %v, Update: %v", wantErr, err)
			}
			if err != nil {
				last = nil
				continue
			}
			sameTables(tbOf(t), want, got)
			if delta.From != nil && delta.From != last {
				t.Fatal("the delta follows on other tables than the last")
			}
			model.apply(tbOf(t), got, &delta)
			if now := rowsOf(got); !now.equal(&model) {
				t.Fatalf("the deltas lead elsewhere:\n%s", cmp.Diff(now, model, cmp.AllowUnexported(modelRows{})))
			}
			p.live.checkNoLeaks(tbOf(t))
			last = got
			kept[got] = rowsOf(got)
		}
		for tables, rows := range kept {
			if now := rowsOf(tables); !now.equal(&rows) {
				t.Fatalf("tables of revision %d changed later", tables.Revision)
			}
		}
	})
}

// rapidTB lets helpers for tests serve in properties.
type rapidTB struct {
	testing.TB
	t *rapid.T
}

func tbOf(t *rapid.T) testing.TB { return rapidTB{t: t} }

func (r rapidTB) Helper()                   { r.t.Helper() }
func (r rapidTB) Fatal(args ...any)         { r.t.Fatal(args...) }
func (r rapidTB) Fatalf(f string, a ...any) { r.t.Fatalf(f, a...) }

// checkNoLeaks: what nothing refers to is forgotten.
func (x *live) checkNoLeaks(t testing.TB) {
	t.Helper()
	for id, s := range x.scopes {
		if len(s.tables) == 0 || !s.filled {
			t.Fatalf("scope %x has %d tables", id, len(s.tables))
		}
		members := 0
		for _, c := range s.classes {
			members += c.members
		}
		if rows := len(x.classRows(id)); rows != members || len(s.bySig) != len(s.classes) {
			t.Fatalf("scope %x has %d rows of %d members, %d classes, %d signatures", id, rows, members, len(s.classes), len(s.bySig))
		}
	}
	for _, tbl := range x.tables {
		if len(tbl.subjects) == 0 || !tbl.filled || tbl.recaused {
			t.Fatalf("table %x has %d subjects", tbl.id, len(tbl.subjects))
		}
	}
	uses := make(map[*liveSelector]bool)
	for _, s := range x.scopes {
		for _, sel := range s.selectors {
			uses[sel] = true
		}
	}
	if len(uses) != len(x.selectors) {
		t.Fatalf("%d selectors are known, %d are in use", len(x.selectors), len(uses))
	}
	kinds := make(map[string]int)
	for k := range x.ids.seen {
		kinds[k.kind]++
	}
	numbered := 0
	for id, g := range x.groups {
		for _, v := range g.variants {
			if v.users == 0 || !v.placed {
				t.Fatalf("identity %d has a variant with %d users", id, v.users)
			}
			if len(v.ports) > 0 {
				numbered++
			}
		}
	}
	want := map[string]int{
		"scope": len(x.scopes), "table": len(x.tables), "class": len(x.classUsers), "cidr": len(x.cidrs), "row": x.policy.tree.Len(), "peer": numbered,
		"learned": len(x.learnedBy),
	}
	maps.DeleteFunc(want, func(_ string, n int) bool { return n == 0 })
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Fatalf("ids, -in use +remembered:\n%s", diff)
	}
	for _, id := range x.identities {
		for s := range id.subjects {
			if len(s.users) == 0 || x.subjects[s.key] != s {
				t.Fatalf("identity %d has a subject with %d users", id.ID, len(s.users))
			}
		}
	}
}
