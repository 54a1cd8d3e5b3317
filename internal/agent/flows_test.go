package agent

import (
	"net/netip"
	"testing"
	"time"

	"log/slog"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// recording is a recorder over a state that the test moves.
type recording struct {
	*recorder
	t     *testing.T
	state *fsm.State
	seq   uint64
}

func newRecording(t *testing.T) *recording {
	store, err := flows.Open(flows.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	r := &recording{t: t, state: fsm.New("c")}
	r.recorder = newRecorder(store, func() (fsm.View, *projections.Tables) {
		view := r.state.View()
		tables, err := projections.Build(view, "n", projections.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return view, tables
	})
	r.clockRead = func() (time.Duration, int64) { return 100 * time.Second, 1_000_000_000_000 }
	r.fact(&eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "n"}}})
	return r
}

func (r *recording) apply(role eventpb.Role, e *eventpb.Event) {
	r.t.Helper()
	e.Actor, e.Origin = &eventpb.Actor{Role: role}, &eventpb.Origin{Cluster: "c", Node: "n"}
	var err error
	if e.Stream, err = log.StreamOf(e); err != nil {
		r.t.Fatal(err)
	}
	b, err := log.Marshal(e)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, result, err := r.state.Apply(b); err != nil || result.Outcome != log.OutcomeApplied {
		r.t.Fatalf("%+v, %v", result, err)
	}
}

func (r *recording) fact(e *eventpb.Event) { r.t.Helper(); r.apply(eventpb.Role_ROLE_NODE, e) }

func (r *recording) create(name string, addr byte) {
	r.t.Helper()
	r.seq++
	r.fact(&eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
		Ref: &eventpb.EndpointRef{Namespace: "default", Name: name}, Incarnation: r.seq, Node: "n", Labels: map[string]string{"app": name},
		Addresses: [][]byte{{10, 0, 0, addr}}, Mac: []byte{2, 0, 0, 0, 0, addr},
	}}})
}

func (r *recording) remove(name string, incarnation uint64) {
	r.t.Helper()
	r.fact(&eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{
		Ref: &eventpb.EndpointRef{Namespace: "default", Name: name}, Incarnation: incarnation,
	}}})
}

// names is who the ends of a flow from one address to another are.
func (r *recording) names(from, to byte) string {
	r.t.Helper()
	r.observe(dataplane.Event{
		Type: abi.EventNewFlow, SinceBoot: 101 * time.Second, Protocol: 6, DstPort: 80, SrcPort: 40000,
		Src: netip.AddrFrom4([4]byte{10, 0, 0, from}), Dst: netip.AddrFrom4([4]byte{10, 0, 0, to}),
	})
	var last string
	var n int
	err := r.store.Read(r.t.Context(), 0, 1<<62, func(f *flows.Flow) error {
		n++
		if f.FirstRevision == r.state.View().Revision() {
			last = f.SrcName + " " + f.DstName
		}
		return nil
	}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return last
}

// Names are those of the state in force when an event comes, also where an address
// goes from one endpoint to another.
func TestRecorderNames(t *testing.T) {
	r := newRecording(t)
	r.create("web", 5)
	r.create("db", 6)
	step := func(want string) {
		t.Helper()
		if got := r.names(5, 6); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	step("default/web default/db")
	r.remove("web", 1)
	step(" default/db")
	r.create("thief", 5)
	step("default/thief default/db")
	// Both addresses change hands between two events.
	r.remove("thief", 3)
	r.remove("db", 2)
	r.create("one", 6)
	r.create("two", 5)
	step("default/two default/one")
	// One endpoint takes the other address in its next incarnation.
	r.remove("one", 4)
	r.create("two", 6)
	step(" default/two")
}

func TestRecorderKeepsWhatEventsSay(t *testing.T) {
	r := newRecording(t)
	r.create("db", 6)
	sets, _, err := policy.Parse("test", []byte(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: guard}
spec: {endpointSelector: {matchLabels: {app: db}}, ingressDeny: [{fromEntities: [world]}]}`), policy.Options{Cluster: "c"})
	if err != nil {
		t.Fatal(err)
	}
	r.apply(eventpb.Role_ROLE_ADMIN, &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: sets[0]}})
	_, tables := r.inForce()
	var row uint64
	for p := range tables.Policy.All() {
		row = p.Value.Row
	}
	world, db := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.6")
	for _, e := range []dataplane.Event{
		{Type: abi.EventDrop, Reason: abi.PolicyDenied, Direction: abi.Ingress, SinceBoot: 100 * time.Second, Protocol: 1, SrcPort: 8, DstPort: 0, Src: world, Dst: db, SrcPeer: uint64(abi.IdentityWorldIPv4), DstPeer: 256, Row: row},
		{Type: abi.EventDrop, Reason: abi.PolicyDenied, Direction: abi.Ingress, SinceBoot: 103 * time.Second, Protocol: 1, SrcPort: 8, DstPort: 0, Src: world, Dst: db, SrcPeer: uint64(abi.IdentityWorldIPv4), DstPeer: 256, Row: row},
		{Type: abi.EventDrop, Drift: &dataplane.Drift{}},
		{Type: abi.EventClosed, Src: world, Dst: db},
		{Type: abi.EventAudited, Reason: abi.PolicyDefaultDeny, Direction: abi.Ingress, SinceBoot: 104 * time.Second, Protocol: 6, SrcPort: 4000, DstPort: 80, Src: world, Dst: db, SrcPeer: uint64(abi.IdentityWorldIPv4), DstPeer: 256},
	} {
		r.observe(e)
	}
	var got []flows.Flow
	if err := r.store.Read(t.Context(), 0, 1<<62, func(f *flows.Flow) error { got = append(got, *f); return nil }, nil); err != nil {
		t.Fatal(err)
	}
	want := []flows.Flow{{
		Key: flows.Key{
			Src: world, Dst: db, DstName: "default/db", SrcIdentity: abi.IdentityWorldIPv4, DstIdentity: 256, Protocol: 1, Port: 8,
			Verdict: flows.Dropped, Reason: abi.PolicyDenied, Direction: abi.Ingress, Row: row,
		},
		Rules: []string{"cnp/default/guard ingressDeny[0]"}, Count: 2, FirstNS: 1_000_000_000_000, LastNS: 1_003_000_000_000, FirstRevision: 3, LastRevision: 3,
	}, {
		Key: flows.Key{
			Src: world, Dst: db, DstName: "default/db", SrcIdentity: abi.IdentityWorldIPv4, DstIdentity: 256, Protocol: 6, Port: 80,
			Verdict: flows.Audited, Reason: abi.PolicyDefaultDeny, Direction: abi.Ingress,
		},
		Count: 1, FirstNS: 1_004_000_000_000, LastNS: 1_004_000_000_000, FirstRevision: 3, LastRevision: 3,
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// The rules of a row that is no longer in the tables are still known.
	r.apply(eventpb.Role_ROLE_ADMIN, &eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: sets[0].Ref}}})
	_, tables = r.inForce()
	if rules := r.rulesOf(row, tables); len(rules) != 1 {
		t.Errorf("the rules of a row that is gone: %q", rules)
	}
}
