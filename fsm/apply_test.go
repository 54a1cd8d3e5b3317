package fsm

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// base joins node n1 (192.0.2.1), n2 (192.0.2.2) and makes default/web on n1.
func base(t testing.TB) *fold {
	f := newFold(t)
	f.ok(
		join("n1", []string{"192.0.2.1", "2001:db8::1"}),
		join("n2", []string{"192.0.2.2"}),
		create("n1", "default", "web", 5, "10.0.0.1", labels("app", "web")),
	)
	return f
}

// Each event is applied to base and must be rejected for the reason given,
// without effect.
func TestRejections(t *testing.T) {
	ok := func(options ...option) *eventpb.Event {
		return create("n1", "default", "db", 1, "10.0.0.2", labels("app", "db"), options...)
	}
	port := func(name string, protocol, number uint32) option {
		return with(func(c *eventpb.EndpointCreated) {
			c.NamedPorts = append(c.NamedPorts, &eventpb.NamedPort{Name: name, Protocol: protocol, Port: number})
		})
	}
	badPolicy := setPolicy(cnp("default", "p"), "web")
	badPolicy.GetPolicySet().Specs = nil
	node, reader := eventpb.Role_ROLE_NODE, eventpb.Role_ROLE_READER
	many := map[string]string{}
	for i := range maxLabels + 1 {
		many["k"+addr(i)] = ""
	}
	for name, c := range map[string]struct {
		event *eventpb.Event
		want  string
	}{
		"role":                  {setNamespace("a", nil, as(node)), "forbidden"},
		"reader":                {setPolicy(cnp("default", "p"), "web", as(reader)), "reader may not append"},
		"admin's endpoint":      {ok(as(eventpb.Role_ROLE_ADMIN)), "forbidden"},
		"another node's":        {ok(from("n2")), `node "n2" may not state a fact of node "n1"`},
		"another cluster":       {ok(cluster("other")), "origin.cluster"},
		"no stream":             {ok(stream("")), "stream"},
		"another stream":        {ok(stream("endpoint/default/web")), "stream"},
		"no payload":            {admin(&eventpb.Event{}, nil), "payload"},
		"request id":            {setNamespace("a", nil, id(strings.Repeat("x", 65))), "request_id: 65 bytes"},
		"admin's journal":       {setNamespace("a", nil, seq(1)), "journal_seq"},
		"policy":                {badPolicy, "specs"},
		"absent policy":         {deletePolicy(cnp("default", "p")), "cnp/default/p: does not exist"},
		"namespace name":        {setNamespace("No", nil), "No"},
		"namespace label":       {setNamespace("a", labels("-", "x")), "labels"},
		"many labels":           {setNamespace("a", many), "the most is 256"},
		"absent namespace":      {deleteNamespace("default"), "does not exist"},
		"endpoint namespace":    {create("n1", "a.b", "db", 1, "", nil), "ref.namespace"},
		"endpoint name":         {create("n1", "a", "D", 1, "", nil), "ref.name"},
		"incarnation":           {create("n1", "a", "db", 0, "", nil), "incarnation"},
		"equal incarnation":     {create("n1", "default", "web", 5, "10.0.0.1", nil), "5 is live"},
		"lower incarnation":     {create("n1", "default", "web", 4, "10.0.0.1", nil), "5 is live"},
		"node unknown":          {create("n3", "default", "db", 1, "", nil), "node n3 has not joined"},
		"label key":             {create("n1", "default", "db", 1, "", labels("a b", "")), "labels"},
		"label value":           {create("n1", "default", "db", 1, "", labels("a", strings.Repeat("x", 64))), "labels"},
		"service account":       {ok(with(func(c *eventpb.EndpointCreated) { c.ServiceAccount = "A" })), "service_account"},
		"address length":        {ok(with(func(c *eventpb.EndpointCreated) { c.Addresses = [][]byte{{1, 2, 3}} })), "addresses[0]: 3 bytes"},
		"mapped address":        {create("n1", "default", "db", 1, "::ffff:10.0.0.2", nil), "4 bytes"},
		"multicast":             {create("n1", "default", "db", 1, "224.0.0.1", nil), "unicast"},
		"loopback":              {create("n1", "default", "db", 1, "::1", nil), "unicast"},
		"unspecified":           {create("n1", "default", "db", 1, "0.0.0.0", nil), "unicast"},
		"broadcast":             {create("n1", "default", "db", 1, "255.255.255.255", nil), "unicast"},
		"link-local":            {create("n1", "default", "db", 1, "fe80::1", nil), "unicast"},
		"two of a family":       {ok(with(func(c *eventpb.EndpointCreated) { c.Addresses = append(c.Addresses, ip("10.0.0.3")) })), "at most one"},
		"endpoint's address":    {create("n1", "default", "db", 1, "10.0.0.1", nil), "endpoint default/web has it"},
		"node's address":        {create("n1", "default", "db", 1, "192.0.2.2", nil), "node n2 has it"},
		"short MAC":             {ok(with(func(c *eventpb.EndpointCreated) { c.Mac = []byte{2} })), "mac: 1 bytes"},
		"multicast MAC":         {ok(with(func(c *eventpb.EndpointCreated) { c.Mac = []byte{1, 0, 0, 0, 0, 1} })), "mac"},
		"zero MAC":              {ok(with(func(c *eventpb.EndpointCreated) { c.Mac = make([]byte, 6) })), "mac"},
		"port name":             {ok(port("1", 6, 80)), "named_ports[0].name"},
		"port protocol":         {ok(port("http", 1, 80)), "named_ports[0].protocol"},
		"port 0":                {ok(port("http", 6, 0)), "named_ports[0].port"},
		"port 65536":            {ok(port("http", 6, 65536)), "named_ports[0].port"},
		"port twice":            {ok(port("http", 6, 80), port("HTTP", 6, 81)), "twice"},
		"mtu":                   {ok(with(func(c *eventpb.EndpointCreated) { c.Mtu = 1279 })), "mtu"},
		"mtu of a giant":        {ok(with(func(c *eventpb.EndpointCreated) { c.Mtu = 65536 })), "mtu"},
		"interface":             {ok(with(func(c *eventpb.EndpointCreated) { c.HostInterface = "a/b" })), "host_interface"},
		"long interface":        {ok(with(func(c *eventpb.EndpointCreated) { c.ContainerInterface = strings.Repeat("x", 16) })), "container_interface"},
		"netns":                 {ok(with(func(c *eventpb.EndpointCreated) { c.Netns = "/a\n" })), "netns"},
		"update of none":        {update("n1", "default", "db", 1, nil), "does not exist"},
		"update of old":         {update("n1", "default", "web", 4, nil), "5 is live"},
		"update by another":     {update("n2", "default", "web", 5, nil), "forbidden"},
		"update of labels":      {update("n1", "default", "web", 5, labels("-", "")), "labels"},
		"delete of none":        {deleteEndpoint("n1", "default", "db", 1), "does not exist"},
		"delete of later":       {deleteEndpoint("n1", "default", "web", 6), "5 is live"},
		"delete by another":     {deleteEndpoint("n2", "default", "web", 5), "forbidden"},
		"node name":             {join("N", nil), "N"},
		"node address":          {join("n3", []string{"192.0.2.1"}), "node n1 has it"},
		"node's is endpoint's":  {join("n3", []string{"10.0.0.1"}), "endpoint default/web has it"},
		"node address twice":    {join("n3", []string{"192.0.2.9", "192.0.2.9"}), "twice"},
		"CIDR":                  {updateNode("n1", nil, []string{"10.0.0.1/24"}), "10.0.0.0/24"},
		"CIDR syntax":           {updateNode("n1", nil, []string{"x"}), "endpoint_cidrs[0]"},
		"CIDR overlap":          {updateNode("n1", nil, []string{"10.0.0.0/8", "10.1.0.0/16"}), "overlaps"},
		"update of absent node": {updateNode("n3", nil, nil), "has not joined"},
		"leave of absent node":  {leave("n3"), "has not joined"},
	} {
		t.Run(name, func(t *testing.T) {
			f := base(t)
			before := f.View()
			r := f.do(c.event)
			if r.Outcome != log.OutcomeRejected || !strings.Contains(r.Reason, c.want) {
				t.Fatalf("outcome %d, reason %q; want a rejection that says %q", r.Outcome, r.Reason, c.want)
			}
			record := f.records[len(f.records)-1]
			if r.Revision != 4 || r.Head != 4 || record.Revision != 4 || record.Reason != r.Reason || record.Outcome != r.Outcome {
				t.Errorf("result %+v, record %+v: want both of revision 4", r, record)
			}
			if after := f.View(); after.Digest() != before.Digest() || after.Chain() != log.Next(before.Chain(), log.Leaf(record.Event)) {
				t.Error("a rejection moves the chain and nothing else")
			}
		})
	}
}

func TestReasonIsBounded(t *testing.T) {
	f := newFold(t)
	r := f.do(setNamespace(strings.Repeat("é", 5000), nil))
	if r.Outcome != log.OutcomeRejected || len(r.Reason) > maxReason || !utf8.ValidString(r.Reason) {
		t.Errorf("outcome %d, reason of %d bytes", r.Outcome, len(r.Reason))
	}
	if got := clip("x" + strings.Repeat("é", maxReason)); len(got) > maxReason || !utf8.ValidString(got) {
		t.Errorf("clipped to %d bytes, valid %v", len(got), utf8.ValidString(got))
	}
}

func TestErrorsThatStopTheNode(t *testing.T) {
	f := base(t)
	before := f.View()
	unknownKind := protowire.AppendBytes(protowire.AppendTag(nil, 48, protowire.BytesType), nil)
	for name, c := range map[string]struct {
		event []byte
		want  error
	}{
		"unknown kind": {unknownKind, log.ErrUpgradeNeeded},
		"no protobuf":  {[]byte{0xff}, log.ErrCorrupt},
	} {
		_, _, err := f.Apply(c.event)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "revision 4") {
			t.Errorf("%s: %v, want %v at revision 4", name, err, c.want)
		}
	}
	sameViews(t, "after an error", f.View(), before)
}

func TestExpectedRevision(t *testing.T) {
	f := base(t)
	ref := cnp("default", "p")
	conflict := func(e *eventpb.Event, at log.Revision) {
		t.Helper()
		before := f.View()
		r := f.do(e)
		if r.Outcome != log.OutcomeConflict || r.Revision != at || r.Head != before.Revision() {
			t.Errorf("%v: %+v, want a conflict with revision %d", e, r, at)
		}
		sameViews(t, "after a conflict", f.View(), before)
	}
	conflict(setPolicy(ref, "web", expect(1)), 0)
	rev := f.ok(setPolicy(ref, "web", expect(0)))
	conflict(setPolicy(ref, "web", expect(0)), rev)
	rev = f.ok(setPolicy(ref, "web", expect(uint64(rev)))) // equal content moves the revision
	nothing := setPolicy(ref, "web")
	nothing.GetPolicySet().Specs = nil
	if r := f.do(nothing); r.Outcome != log.OutcomeRejected {
		t.Fatalf("outcome %d of a policy for nothing", r.Outcome)
	}
	rev = f.ok(setPolicy(ref, "db", expect(uint64(rev)))) // a rejection does not move the stream
	p, _ := f.View().Policy(policy.Ref{Kind: ref.Kind, Namespace: "default", Name: "p"})
	if p.Revision != rev || p.Created != 4 {
		t.Errorf("created at %d, revision %d; want 4 and %d", p.Created, p.Revision, rev)
	}
	f.ok(deletePolicy(ref, expect(uint64(rev))))
	f.ok(setPolicy(ref, "web", expect(0)))

	f.ok(setNamespace("a", nil, expect(0)), create("n1", "a", "x", 1, "", nil, expect(0)))
	for stream, want := range map[string]log.Revision{
		"policy/cnp/default/p": f.revision - 2,
		"policy/np/default/p":  0,
		"policy/cnp":           0,
		"namespace/a":          f.revision - 1,
		"namespace/b":          0,
		"endpoint/a/x":         f.revision,
		"endpoint/a":           0,
		"node/n1":              1,
		"node/n3":              0,
		"other":                0,
		"":                     0,
	} {
		if got := f.View().StreamRevision(stream); got != want {
			t.Errorf("stream %q is at %d, want %d", stream, got, want)
		}
	}
	f.ok(leave("n2"))
	if got := f.View().StreamRevision("node/n2"); got != 0 {
		t.Errorf("a node that left is at %d", got)
	}
	f.ok(join("n2", nil, expect(0)))
}

func TestRequestIDs(t *testing.T) {
	f := base(t)
	set := func(l map[string]string, options ...option) *eventpb.Event {
		return setNamespace("a", l, append(options, id("r1"))...)
	}
	rev := f.ok(set(labels("x", "1", "y", "2", "z", "3")))
	rejected := f.do(deleteNamespace("b", id("r2")))
	before := f.View()

	repeat := func(e *eventpb.Event, first log.Revision, reason string) {
		t.Helper()
		if r := f.do(e); r != (log.Result{Outcome: log.OutcomeRepeat, Revision: first, Head: before.Revision(), Reason: reason}) {
			t.Errorf("%v: %+v, want a repeat of revision %d", e, r, first)
		}
	}
	for range 8 { // map order of the retry
		repeat(set(labels("x", "1", "y", "2", "z", "3"), at(99*second), from("n2")), rev, "")
	}
	repeat(deleteNamespace("b", id("r2")), rejected.Revision, rejected.Reason)
	if r := f.do(set(nil)); r.Outcome != log.OutcomeConflict || !strings.Contains(r.Reason, "request_id") || r.Revision != rev {
		t.Errorf("another request of that id: %+v, want a conflict", r)
	}
	sameViews(t, "after repeats", f.View(), before)
}

func TestRequestWindowForgetsTheOldest(t *testing.T) {
	f := base(t)
	s := f.State
	first := s.revision + 1
	for i := range requestWindow + 1 {
		s.revision++
		s.remember(&request{id: newRequestID("r" + addr(i)), revision: s.revision, outcome: log.OutcomeApplied})
	}
	gone := newRequestID("r" + addr(0))
	if _, ok := s.requestOf(&gone); ok || s.requests.len() != requestWindow || s.requestIndex.used != requestWindow {
		t.Fatalf("%d requests, %d ids, the first still there: %v", s.requests.len(), s.requestIndex.used, ok)
	}
	if oldest := s.requests.at(s.requests.first).revision; oldest != first+1 {
		t.Errorf("the oldest is of revision %d, want %d", oldest, first+1)
	}
	if got := digestFromScratch(s.View()); got != s.sum() {
		t.Error("the digest does not follow the window")
	}
}

func TestJournalSequence(t *testing.T) {
	f := base(t)
	f.ok(create("n1", "default", "a", 1, "", nil, seq(3)))
	before := f.View()
	for _, n := range []uint64{1, 3} {
		r := f.do(create("n1", "default", "b", 1, "", nil, seq(n), expect(99)))
		if r.Outcome != log.OutcomeRepeat || r.Revision != 0 || r.Head != before.Revision() {
			t.Errorf("sequence %d: %+v, want a repeat", n, r)
		}
	}
	sameViews(t, "after repeats", f.View(), before)

	// What is rejected has been seen too, or its retry would be recorded for ever.
	if r := f.do(deleteEndpoint("n1", "default", "b", 1, seq(4))); r.Outcome != log.OutcomeRejected {
		t.Fatalf("outcome %d", r.Outcome)
	}
	if r := f.do(deleteEndpoint("n1", "default", "b", 1, seq(4))); r.Outcome != log.OutcomeRepeat {
		t.Errorf("outcome %d of a rejection's retry", r.Outcome)
	}
	// But a forged one counts for no one.
	if r := f.do(create("n1", "default", "b", 1, "", nil, seq(50), from("n2"))); r.Outcome != log.OutcomeRejected {
		t.Fatalf("outcome %d", r.Outcome)
	}
	f.ok(create("n2", "default", "c", 1, "", nil, seq(1)), create("n1", "default", "b", 1, "", nil, seq(5)))

	// One without a number leaves the count alone.
	f.ok(create("n1", "default", "b", 2, "", nil))
	if r := f.do(create("n1", "default", "b", 3, "", nil, seq(5))); r.Outcome != log.OutcomeRepeat {
		t.Errorf("outcome %d of sequence 5 after an event without a number", r.Outcome)
	}
	// The counters outlive a departure.
	f.ok(leave("n1", seq(6)), join("n1", nil, seq(7)))
	n, _ := f.View().Node("n1")
	if n.JournalSeq != 7 || n.NextEndpointID != 5 || n.Left {
		t.Errorf("%+v, want sequence 7, endpoint id 5", n)
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	f := newFold(t)
	for _, c := range []struct{ event, want int64 }{{-5, 0}, {10, 10}, {7, 10}, {11, 11}} {
		f.ok(setNamespace("a", nil, at(c.event)))
		if got := f.records[len(f.records)-1].TimeNS; got != c.want || f.View().TimeNS() != c.want {
			t.Errorf("event of %d has time %d, want %d", c.event, got, c.want)
		}
	}
}

func TestEndpointLifecycle(t *testing.T) {
	f := base(t)
	row := func() *Endpoint {
		e, _ := f.View().Endpoint(EndpointRef{"default", "web"})
		return e
	}
	ignoreRevisions := cmpopts.IgnoreFields(Endpoint{}, "Created", "Revision", "IdentityRevision")
	addr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	want := &Endpoint{
		Ref: EndpointRef{"default", "web"}, Incarnation: 5, Node: "n1", ID: 1, Identity: 256,
		Labels: labels("app", "web"), ServiceAccount: "default",
		IPv4: netip.MustParseAddr("10.0.0.1"), MAC: [6]byte{2, 0, 0, 0, 0, 1},
	}
	check := func(created, revision, identityRevision log.Revision) {
		t.Helper()
		got := row()
		if diff := cmp.Diff(want, got, ignoreRevisions, addr); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if got.Created != created || got.Revision != revision || got.IdentityRevision != identityRevision {
			t.Errorf("revisions %d, %d, %d; want %d, %d, %d", got.Created, got.Revision, got.IdentityRevision, created, revision, identityRevision)
		}
	}
	check(3, 3, 3)

	u := update("n1", "default", "web", 5, labels("app", "web"))
	u.GetEndpointUpdated().NamedPorts = []*eventpb.NamedPort{{Name: "B", Protocol: 6, Port: 2}, {Name: "a", Protocol: 17, Port: 1}, {Name: "a", Protocol: 6, Port: 1}}
	f.ok(u) // 4: the labels, and so the identity, stay
	want.NamedPorts = []NamedPort{{"a", 6, 1}, {"a", 17, 1}, {"b", 6, 2}}
	check(3, 4, 3)

	f.ok(update("n1", "default", "web", 5, labels("app", "db"))) // 5
	want.Labels, want.NamedPorts, want.Identity = labels("app", "db"), nil, 257
	check(3, 5, 5)

	f.ok(setNamespace("default", labels("team", "a"))) // 6
	want.Identity = 258
	check(3, 6, 6)
	f.ok(setNamespace("default", labels("team", "a"))) // 7: nothing new
	check(3, 6, 6)

	// A higher incarnation may come from another node and keep the address.
	f.ok(create("n2", "default", "web", 6, "10.0.0.1", labels("app", "db"))) // 8
	want.Node, want.Incarnation = "n2", 6
	check(8, 8, 8)
	if r := f.do(deleteEndpoint("n1", "default", "web", 5)); r.Outcome != log.OutcomeRejected { // 9
		t.Errorf("the old node's late delete: outcome %d", r.Outcome)
	}
	check(8, 8, 8)
	f.ok(deleteEndpoint("n2", "default", "web", 6))
	f.ok(create("n1", "default", "web", 1, "10.0.0.1", nil))
	if got := row().ID; got != 2 {
		t.Errorf("endpoint id %d on n1, want 2: 1 was used", got)
	}
}

func TestAddressesAreFreedWithTheirOwner(t *testing.T) {
	f := base(t)
	taken := func(address string) bool {
		g := &fold{State: restore(t, snapshot(t, f.View())), t: t}
		return g.do(create("n2", "probe", "probe", 1, address, nil)).Outcome == log.OutcomeRejected
	}
	check := func(want ...string) {
		t.Helper()
		if restored := restore(t, snapshot(t, f.View())); !maps.Equal(f.owners, restored.owners) {
			t.Errorf("owners %v, by the rows %v", f.owners, restored.owners)
		}
		var got []string
		for _, a := range []string{"10.0.0.1", "10.0.0.2", "192.0.2.1", "192.0.2.3", "2001:db8::1", "2001:db8::2"} {
			if taken(a) {
				got = append(got, a)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("taken %v, want %v", got, want)
		}
	}
	check("10.0.0.1", "192.0.2.1", "2001:db8::1")
	f.ok(create("n1", "default", "web", 6, "10.0.0.2", nil, with(func(c *eventpb.EndpointCreated) {
		c.Addresses = append(c.Addresses, ip("2001:db8::2"))
	})))
	check("10.0.0.2", "192.0.2.1", "2001:db8::1", "2001:db8::2")
	f.ok(updateNode("n1", []string{"192.0.2.3"}, []string{"10.0.0.0/24", "2001:db8:1::/64"}))
	check("10.0.0.2", "192.0.2.3", "2001:db8::2")
	f.ok(leave("n1"))
	check()
	// Who took an address over keeps it when the node that had it comes back.
	f.ok(create("n2", "default", "heir", 1, "192.0.2.3", nil), join("n1", nil))
	check("192.0.2.3")
	if e, ok := f.View().Endpoint(EndpointRef{"default", "web"}); ok {
		t.Errorf("the node left and %s is still there", e.Ref)
	}
}

func TestNamespaces(t *testing.T) {
	f := base(t)
	f.ok(setNamespace("default", labels(labelNamespaceName, "other", "team", "a")))
	ns, _ := f.View().Namespace("default")
	if diff := cmp.Diff(labels(labelNamespaceName, "default", "team", "a"), ns.Labels); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r := f.do(deleteNamespace("default")); r.Outcome != log.OutcomeRejected || !strings.Contains(r.Reason, "default/web") {
		t.Errorf("%+v, want a rejection that names the endpoint", r)
	}
	// Nothing of a namespace outlives its deletion.
	f.ok(setNamespace("gone", labels("team", "a")), create("n1", "gone", "x", 1, "", nil), deleteEndpoint("n1", "gone", "x", 1))
	f.ok(deleteNamespace("gone"), create("n1", "gone", "x", 2, "", nil))
	if i, _ := f.View().Identity(f.identity("gone", "x")); strings.Contains(i.Labels.String(), "team") {
		t.Errorf("labels %s after the namespace was deleted", i.Labels)
	}
	// The name of one namespace begins that of another.
	f.ok(create("n1", "default-2", "x", 1, "", nil), setNamespace("default", nil), deleteEndpoint("n1", "default", "web", 5), deleteNamespace("default"))
	if x, _ := f.View().Endpoint(EndpointRef{"default-2", "x"}); x.Revision != 11 {
		t.Errorf("the endpoint of another namespace changed at %d", x.Revision)
	}
}

func TestViewOrder(t *testing.T) {
	f := base(t)
	f.ok(create("n1", "a-b", "x", 1, "", nil), create("n1", "a", "y", 1, "", nil), create("n1", "a", "x.y", 1, "", nil), create("n1", "a", "x", 1, "", nil))
	var got []string
	for e := range f.View().Endpoints() {
		got = append(got, e.Ref.String())
	}
	if want := []string{"a/x", "a/x.y", "a/y", "a-b/x", "default/web"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	ccnp := &eventpb.PolicyRef{Kind: policy.KindCiliumClusterwideNetworkPolicy, Name: "a"}
	f.ok(setPolicy(ccnp, "web"), setPolicy(cnp("b", "a"), "web"), setPolicy(cnp("a", "z"), "web"))
	got = nil
	for p := range f.View().Policies() {
		got = append(got, p.Policy.Ref.String())
	}
	if want := []string{"cnp/a/z", "cnp/b/a", "ccnp/a"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for range f.View().Endpoints() {
		break // a reader may stop
	}
}

func TestZeroView(t *testing.T) {
	var v View
	if _, ok := v.Endpoint(EndpointRef{"a", "b"}); ok || v.Revision() != 0 || !v.Chain().IsZero() || v.StreamRevision("node/n") != 0 {
		t.Error("the zero View is not empty")
	}
	if v.Digest() != New("x").View().Digest() {
		t.Error("the zero View has another digest than an empty state")
	}
	for range v.Nodes() {
		t.Error("the zero View has a node")
	}
}

// log.StreamOf and policy.Ref.Stream name a stream alike.
func TestStreamsAgreeWithPolicy(t *testing.T) {
	for _, ref := range []policy.Ref{
		{Kind: policy.KindNetworkPolicy, Namespace: "a", Name: "b"},
		{Kind: policy.KindCiliumNetworkPolicy, Namespace: "a", Name: "b"},
		{Kind: policy.KindCiliumClusterwideNetworkPolicy, Name: "b"},
	} {
		got, err := log.StreamOf(deletePolicy(ref.PB()))
		if err != nil || got != ref.Stream() {
			t.Errorf("%s: log has %q, %v; policy has %q", ref, got, err, ref.Stream())
		}
	}
}

func TestRecordKeepsTheBytes(t *testing.T) {
	f := newFold(t)
	e := marshal(t, setNamespace("a", labels("x", "y")))
	record, _, err := f.Apply(bytes.Clone(e))
	if err != nil || !bytes.Equal(record.Event, e) || record.Chain != log.Next(log.Hash{}, log.Leaf(e)) {
		t.Errorf("%+v, %v", record, err)
	}
}
