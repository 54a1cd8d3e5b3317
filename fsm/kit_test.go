package fsm

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

const (
	testCluster = "test"
	second      = int64(1_000_000_000)
)

// option changes an event that one of the constructors below made.
type option func(*eventpb.Event)

func at(ns int64) option         { return func(e *eventpb.Event) { e.TimeUnixNs = ns } }
func id(request string) option   { return func(e *eventpb.Event) { e.RequestId = request } }
func seq(n uint64) option        { return func(e *eventpb.Event) { e.JournalSeq = n } }
func from(node string) option    { return func(e *eventpb.Event) { e.Origin.Node = node } }
func stream(name string) option  { return func(e *eventpb.Event) { e.Stream = name } }
func expect(rev uint64) option   { return func(e *eventpb.Event) { e.ExpectedRevision = &rev } }
func cluster(name string) option { return func(e *eventpb.Event) { e.Origin.Cluster = name } }
func as(role eventpb.Role) option {
	return func(e *eventpb.Event) { e.Actor.Role = role }
}

// with changes the EndpointCreated.
func with(change func(*eventpb.EndpointCreated)) option {
	return func(e *eventpb.Event) { change(e.GetEndpointCreated()) }
}

func event(role eventpb.Role, node string, payload *eventpb.Event, options []option) *eventpb.Event {
	e := payload
	e.Actor = &eventpb.Actor{Role: role, Name: "test"}
	e.Origin = &eventpb.Origin{Cluster: testCluster, Node: node}
	if s, err := log.StreamOf(e); err == nil {
		e.Stream = s
	}
	for _, o := range options {
		o(e)
	}
	return e
}

func admin(payload *eventpb.Event, options []option) *eventpb.Event {
	return event(eventpb.Role_ROLE_ADMIN, "n1", payload, options)
}

func fact(node string, payload *eventpb.Event, options []option) *eventpb.Event {
	return event(eventpb.Role_ROLE_NODE, node, payload, options)
}

func labels(pairs ...string) map[string]string {
	if len(pairs) == 0 {
		return nil
	}
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

func cnp(namespace, name string) *eventpb.PolicyRef {
	return &eventpb.PolicyRef{Kind: policy.KindCiliumNetworkPolicy, Namespace: namespace, Name: name}
}

// setPolicy allows app=APP in from the world.
func setPolicy(ref *eventpb.PolicyRef, app string, options ...option) *eventpb.Event {
	requirements := []*eventpb.Requirement{{Key: "any:app", Operator: eventpb.Requirement_IN, Values: []string{app}}}
	if ref.Namespace != "" {
		requirements = append(requirements, &eventpb.Requirement{
			Key: "k8s:" + policy.KeyNamespace, Operator: eventpb.Requirement_IN, Values: []string{ref.Namespace},
		})
	}
	return admin(&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: &eventpb.PolicySet{
		Ref: ref,
		Specs: []*eventpb.PolicySpec{{
			Subject:            &eventpb.Selector{Requirements: requirements},
			DefaultDenyIngress: true,
			Ingress: []*eventpb.Rule{{
				Peers: []*eventpb.Peer{{Peer: &eventpb.Peer_Entity{Entity: "world"}}},
				Ports: []*eventpb.Port{{Protocol: 6, First: 80, Last: 80}},
			}},
		}},
	}}}, options)
}

func deletePolicy(ref *eventpb.PolicyRef, options ...option) *eventpb.Event {
	return admin(&eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: ref}}}, options)
}

func setNamespace(name string, l map[string]string, options ...option) *eventpb.Event {
	return admin(&eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: name, Labels: l}}}, options)
}

func deleteNamespace(name string, options ...option) *eventpb.Event {
	return admin(&eventpb.Event{Payload: &eventpb.Event_NamespaceDeleted{NamespaceDeleted: &eventpb.NamespaceDeleted{Name: name}}}, options)
}

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// create makes endpoint NAMESPACE/NAME on a node, its address if one is given.
func create(node, namespace, name string, incarnation uint64, address string, l map[string]string, options ...option) *eventpb.Event {
	c := &eventpb.EndpointCreated{
		Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: incarnation, Node: node,
		Labels: l, Mac: []byte{2, 0, 0, 0, 0, 1},
	}
	if address != "" {
		c.Addresses = [][]byte{ip(address)}
	}
	return fact(node, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: c}}, options)
}

func update(node, namespace, name string, incarnation uint64, l map[string]string, options ...option) *eventpb.Event {
	return fact(node, &eventpb.Event{Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: &eventpb.EndpointUpdated{
		Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: incarnation, Labels: l,
	}}}, options)
}

func deleteEndpoint(node, namespace, name string, incarnation uint64, options ...option) *eventpb.Event {
	return fact(node, &eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{
		Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: incarnation,
	}}}, options)
}

func join(node string, addresses []string, options ...option) *eventpb.Event {
	j := &eventpb.NodeJoined{Name: node}
	for _, a := range addresses {
		j.Addresses = append(j.Addresses, ip(a))
	}
	return fact(node, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: j}}, options)
}

func updateNode(node string, addresses []string, cidrs []string, options ...option) *eventpb.Event {
	u := &eventpb.NodeUpdated{Name: node, EndpointCidrs: cidrs}
	for _, a := range addresses {
		u.Addresses = append(u.Addresses, ip(a))
	}
	return fact(node, &eventpb.Event{Payload: &eventpb.Event_NodeUpdated{NodeUpdated: u}}, options)
}

func leave(node string, options ...option) *eventpb.Event {
	return fact(node, &eventpb.Event{Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: node}}}, options)
}

// observe says that an endpoint was told addresses, which expire at these seconds.
func observe(node, namespace, name string, incarnation uint64, asked string, told map[string]int64, options ...option) *eventpb.Event {
	o := &eventpb.DnsObserved{Node: node, Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: incarnation, Name: asked}
	var addrs []netip.Addr
	for a := range told {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range addrs {
		o.Addresses = append(o.Addresses, &eventpb.DnsAddress{Address: a.AsSlice(), ExpiresUnixNs: told[a.String()] * second})
	}
	return fact(node, &eventpb.Event{Payload: &eventpb.Event_DnsObserved{DnsObserved: o}}, options)
}

func collected(node, namespace, name string, incarnation uint64, asked string, gone []string, options ...option) *eventpb.Event {
	o := &eventpb.DnsCollected{Node: node, Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: incarnation, Name: asked}
	for _, a := range gone {
		o.Addresses = append(o.Addresses, ip(a))
	}
	return fact(node, &eventpb.Event{Payload: &eventpb.Event_DnsCollected{DnsCollected: o}}, options)
}

func marshal(t testing.TB, e *eventpb.Event) []byte {
	t.Helper()
	b, err := log.Marshal(e)
	if err != nil {
		t.Fatalf("marshal %v: %v", e, err)
	}
	return b
}

// fold is a State and the records it made.
type fold struct {
	*State
	t       testing.TB
	records []log.Record
}

func newFold(t testing.TB) *fold { return &fold{State: New(testCluster), t: t} }

func (f *fold) do(e *eventpb.Event) log.Result {
	f.t.Helper()
	record, result, err := f.Apply(marshal(f.t, e))
	if err != nil {
		f.t.Fatalf("%v: %v", e, err)
	}
	if record.Revision != 0 {
		f.records = append(f.records, record)
	}
	return result
}

// ok applies events that must all be applied and returns the last revision.
func (f *fold) ok(events ...*eventpb.Event) log.Revision {
	f.t.Helper()
	for _, e := range events {
		if r := f.do(e); r.Outcome != log.OutcomeApplied {
			f.t.Fatalf("%v: outcome %d: %s", e, r.Outcome, r.Reason)
		}
	}
	return f.revision
}

func (f *fold) identity(namespace, name string) uint32 {
	f.t.Helper()
	e, ok := f.View().Endpoint(EndpointRef{namespace, name})
	if !ok {
		f.t.Fatalf("endpoint %s/%s does not exist", namespace, name)
	}
	return e.Identity
}

// contents is all that a View shows, to compare two of them.
type contents struct {
	Revision   log.Revision
	Chain      log.Hash
	TimeNS     int64
	Cluster    string
	Digest     log.Hash
	Namespaces []*Namespace
	Nodes      []*Node
	Identities []*Identity
	Endpoints  []*Endpoint
	Policies   []*Policy
	Names      []*Name
	Requests   []*request
	Parts      []*part
	Next       uint32
}

func contentsOf(v View) contents {
	return contents{
		v.Revision(), v.Chain(), v.TimeNS(), v.Cluster(), v.Digest(),
		slices.Collect(v.Namespaces()), slices.Collect(v.Nodes()), slices.Collect(v.Identities()),
		slices.Collect(v.Endpoints()), slices.Collect(v.Policies()), slices.Collect(v.Names()), slices.Collect(v.tables().requests.all()), slices.Collect(all(v.tables().parts)),
		v.tables().nextIdentity,
	}
}

var compareContents = []cmp.Option{
	protocmp.Transform(),
	cmpopts.IgnoreFields(Policy{}, "Policy"), // follows from Set
	cmp.AllowUnexported(request{}, requestID{}, part{}),
	cmpopts.IgnoreFields(part{}, "policies"), // follow from set
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func sameViews(t interface{ Fatalf(string, ...any) }, what string, got, want View) {
	if diff := cmp.Diff(contentsOf(want), contentsOf(got), compareContents...); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// digestFromScratch hashes every row anew.
func digestFromScratch(v View) log.Hash {
	s := New(v.Cluster())
	s.nextIdentity = v.tables().nextIdentity
	for n := range v.Namespaces() {
		s.putNamespace(*n)
	}
	for n := range v.Nodes() {
		s.putNode(*n)
	}
	for i := range v.Identities() {
		s.putIdentity(*i)
	}
	for e := range v.Endpoints() {
		s.putEndpoint(e.Ref.key(), *e)
	}
	for p := range v.Policies() {
		s.putPolicy(*p)
	}
	for n := range v.Names() {
		s.putName(nameKey(n.Endpoint.key(), n.Name), *n)
	}
	for r := range v.tables().requests.all() {
		s.remember(r)
	}
	for p := range all(v.tables().parts) {
		s.putPart(*p)
	}
	return s.sum()
}

func snapshot(t testing.TB, v View) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := v.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func restore(t testing.TB, b []byte) *State {
	t.Helper()
	s, err := ReadSnapshot(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func addr(n int) string { return fmt.Sprintf("10.%d.%d.%d", 1+n>>16, n>>8&255, n&255) }
