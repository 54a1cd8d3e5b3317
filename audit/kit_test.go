package audit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

const testCluster = "test"

// memory is a Past with every View at hand: the naive one that answers are
// compared with. As after a retention, records up to first are gone.
type memory struct {
	t       testing.TB
	state   *fsm.State
	views   []fsm.View // by revision
	records []log.Record
	first   log.Revision
	reads   int
	now     int64
	seq     uint64
}

func newMemory(t testing.TB) *memory {
	s := fsm.New(testCluster)
	return &memory{t: t, state: s, views: []fsm.View{s.View()}}
}

func (m *memory) First() log.Revision { return m.first }
func (m *memory) Head() log.Revision  { return log.Revision(len(m.records)) }

// Near has a state at every tenth revision.
func (m *memory) Near(at log.Revision) log.Revision { return max(m.first, at-at%10) }

func (m *memory) View(_ context.Context, at log.Revision) (fsm.View, error) {
	if at < m.first || at > m.Head() {
		return fsm.View{}, fmt.Errorf("revision %d: %w", at, log.ErrCompacted)
	}
	return m.views[at], nil
}

func (m *memory) Tables(ctx context.Context, at log.Revision, node string) (*projections.Tables, error) {
	v, err := m.View(ctx, at)
	if err != nil {
		return nil, err
	}
	return projections.Build(v, node, projections.Options{})
}

func (m *memory) Read(_ context.Context, first, last log.Revision, fn func(log.Record) error) error {
	if first <= m.first {
		return fmt.Errorf("revision %d: %w", first, log.ErrCompacted)
	}
	var buf []byte
	for _, r := range m.records[first-1 : last] {
		m.reads++
		buf = append(buf[:0], r.Event...)
		r.Event = buf
		if err := fn(r); err != nil {
			return err
		}
		clear(buf)
	}
	return nil
}

// append gives an event to the state, and its revision if it takes one.
func (m *memory) append(role eventpb.Role, node string, e *eventpb.Event) log.Result {
	m.t.Helper()
	m.now += 1e9
	e.TimeUnixNs, e.Actor, e.Origin = m.now, &eventpb.Actor{Role: role, Name: "unix:uid=1000,gid=1000,pid=1"}, &eventpb.Origin{Cluster: testCluster, Node: node}
	var err error
	if e.Stream, err = log.StreamOf(e); err != nil {
		m.t.Fatal(err)
	}
	b, err := log.Marshal(e)
	if err != nil {
		m.t.Fatal(err)
	}
	r, result, err := m.state.Apply(b)
	if err != nil {
		m.t.Fatal(err)
	}
	if r.Revision != 0 {
		m.records = append(m.records, r)
		m.views = append(m.views, m.state.View())
	}
	return result
}

func (m *memory) must(result log.Result) log.Revision {
	m.t.Helper()
	if result.Outcome != log.OutcomeApplied {
		m.t.Fatalf("%+v", result)
	}
	return result.Revision
}

func (m *memory) join(node string, addr byte) log.Result {
	return m.append(eventpb.Role_ROLE_NODE, node, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{
		Name: node, Addresses: [][]byte{{10, 0, 0, addr}},
	}}})
}

func (m *memory) leave(node string) log.Result {
	return m.append(eventpb.Role_ROLE_NODE, node, &eventpb.Event{Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: node}}})
}

// pod creates an endpoint, or its next incarnation.
func (m *memory) pod(node, namespace, name string, addr byte, labels map[string]string, ports ...*eventpb.NamedPort) log.Result {
	m.seq++
	return m.append(eventpb.Role_ROLE_NODE, node, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
		Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: m.seq, Node: node, Labels: labels, NamedPorts: ports,
		Mac: []byte{2, 0, 0, 0, 0, addr}, Addresses: [][]byte{{10, 0, 0, addr}, {0xfd, 15: addr}},
	}}})
}

func (m *memory) relabel(namespace, name string, labels map[string]string) log.Result {
	e, ok := m.state.View().Endpoint(fsm.EndpointRef{Namespace: namespace, Name: name})
	if !ok {
		return log.Result{}
	}
	return m.append(eventpb.Role_ROLE_NODE, e.Node, &eventpb.Event{Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: &eventpb.EndpointUpdated{
		Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: e.Incarnation, Labels: labels,
	}}})
}

func (m *memory) remove(namespace, name string) log.Result {
	e, ok := m.state.View().Endpoint(fsm.EndpointRef{Namespace: namespace, Name: name})
	if !ok {
		return log.Result{}
	}
	return m.append(eventpb.Role_ROLE_NODE, e.Node, &eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{
		Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: e.Incarnation,
	}}})
}

// observe lets an endpoint learn addresses.
func (m *memory) observe(namespace, name, asked string, expiresNS int64, addrs ...string) log.Result {
	e, ok := m.state.View().Endpoint(fsm.EndpointRef{Namespace: namespace, Name: name})
	if !ok {
		return log.Result{}
	}
	o := &eventpb.DnsObserved{Node: e.Node, Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: e.Incarnation, Name: asked}
	for _, a := range addressList(addrs) {
		o.Addresses = append(o.Addresses, &eventpb.DnsAddress{Address: a, ExpiresUnixNs: expiresNS})
	}
	return m.fact(e.Node, &eventpb.Event{Payload: &eventpb.Event_DnsObserved{DnsObserved: o}})
}

// forget collects addresses that an endpoint has learned.
func (m *memory) forget(namespace, name, asked string, addrs ...string) log.Result {
	e, ok := m.state.View().Endpoint(fsm.EndpointRef{Namespace: namespace, Name: name})
	if !ok {
		return log.Result{}
	}
	return m.fact(e.Node, &eventpb.Event{Payload: &eventpb.Event_DnsCollected{DnsCollected: &eventpb.DnsCollected{
		Node: e.Node, Ref: &eventpb.EndpointRef{Namespace: namespace, Name: name}, Incarnation: e.Incarnation, Name: asked, Addresses: addressList(addrs),
	}}})
}

// fact appends what a node's DNS proxy says.
func (m *memory) fact(node string, e *eventpb.Event) log.Result {
	n, ok := m.state.View().Node(node)
	if !ok {
		return log.Result{}
	}
	e.JournalSeq = n.DNSSeq + 1
	return m.append(eventpb.Role_ROLE_NODE, node, e)
}

// addressList is addresses as events have them: ascending, each once.
func addressList(addrs []string) (out [][]byte) {
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, netip.MustParseAddr(a))
	}
	slices.SortFunc(all, netip.Addr.Compare)
	for _, a := range slices.Compact(all) {
		out = append(out, a.AsSlice())
	}
	return out
}

// learns tells whether somebody had learned of an address or a name, that a question is
// about, at a revision: then its outcome may change with time.
func (m *memory) learns(q Question, at log.Revision) bool {
	for n := range m.views[at].Names() {
		if strings.TrimSuffix(n.Name, ".") == q.To {
			return true
		}
		for _, a := range n.Addresses {
			if a.Addr.String() == q.To {
				return true
			}
		}
	}
	return false
}

func (m *memory) namespace(name string, labels map[string]string) log.Result {
	return m.append(eventpb.Role_ROLE_ADMIN, "one", &eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: name, Labels: labels}}})
}

// apply sets the policies of a manifest and returns the last one's revision.
func (m *memory) apply(manifest string) log.Revision {
	m.t.Helper()
	sets, _, err := policy.Parse("test", []byte(manifest), policy.Options{Cluster: testCluster})
	if err != nil {
		m.t.Fatal(err)
	}
	var last log.Revision
	for _, set := range sets {
		last = m.must(m.append(eventpb.Role_ROLE_ADMIN, "one", &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: set}}))
	}
	return last
}

func (m *memory) delete(ref policy.Ref) log.Result {
	return m.append(eventpb.Role_ROLE_ADMIN, "one", &eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: refPB(ref)}}})
}

func refPB(ref policy.Ref) *eventpb.PolicyRef {
	return &eventpb.PolicyRef{Kind: eventpb.PolicyKind(ref.Kind), Namespace: ref.Namespace, Name: ref.Name}
}

// restore puts policies and namespaces back.
func (m *memory) restore(to fsm.View) log.Revision {
	m.t.Helper()
	var last log.Revision
	for _, e := range to.Restoring(fmt.Sprint(m.Head()), 2000) {
		last = m.must(m.append(eventpb.Role_ROLE_RESTORER, "one", e))
	}
	return last
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// churn appends one random event, some of which are rejected.
func (m *memory) churn(r *rand.Rand) {
	labels := func() map[string]string {
		return pick(r, map[string]string{"app": "web"}, map[string]string{"app": "db"}, map[string]string{"app": "web", "tier": "gold"}, nil)
	}
	namespace := func() string { return pick(r, "default", "shop") }
	pod := func() string { return pick(r, "web", "db", "other") }
	node := func() string { return pick(r, "one", "two") }
	switch r.IntN(15) {
	case 14:
		m.restore(m.views[r.IntN(len(m.views))])
	case 0:
		m.join(node(), byte(1+r.IntN(4)))
	case 1:
		m.leave("two")
	case 2, 3, 4:
		m.pod(node(), namespace(), pod(), byte(3+r.IntN(5)), labels(), &eventpb.NamedPort{Name: "http", Protocol: 6, Port: pick[uint32](r, 80, 8080)})
	case 5, 6:
		m.relabel(namespace(), pod(), labels())
	case 7:
		m.remove(namespace(), pod())
	case 8:
		m.namespace(namespace(), pick(r, map[string]string{"env": "prod"}, map[string]string{"env": "dev"}, nil))
	case 9:
		ref := policy.Ref{Kind: policy.KindCiliumNetworkPolicy, Namespace: namespace(), Name: pick(r, "p0", "p1", "p2")}
		if r.IntN(3) == 0 {
			ref = policy.Ref{Kind: policy.KindCiliumClusterwideNetworkPolicy, Name: pick(r, "c0", "c1")}
		}
		m.delete(ref)
	default:
		m.apply(drawPolicy(r, namespace()))
	}
}

// talk appends a random event of what endpoints ask for and may reach by it.
func (m *memory) talk(r *rand.Rand) {
	namespace, pod := pick(r, "default", "shop"), pick(r, "web", "db", "other")
	switch r.IntN(6) {
	case 0:
		m.forget(namespace, pod, pick(r, "api.example.com.", "www.example.com."), pick(r, "192.0.2.7", "203.0.113.1"))
	case 1:
		m.apply(fmt.Sprintf("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %s, namespace: %s}\n"+
			"spec: {endpointSelector: {}, egress: [{toFQDNs: [%s]%s}]}", pick(r, "p1", "p2"), namespace,
			pick(r, "{matchPattern: '*.example.com'}", "{matchName: api.example.com}, {matchName: other.net}"),
			pick(r, "", ", toPorts: [{ports: [{port: '80', protocol: TCP}]}]")))
	default:
		m.observe(namespace, pod, pick(r, "api.example.com.", "www.example.com.", "other.net."), m.now+int64(1+r.IntN(20))*1e9+5e8,
			pick(r, "192.0.2.7", "192.0.2.200", "10.0.0.5", "2001:db8::7"), pick(r, "203.0.113.1", "192.0.2.7", "198.51.100.1"))
	}
}

func drawPolicy(r *rand.Rand, namespace string) string {
	head := fmt.Sprintf("kind: CiliumNetworkPolicy\nmetadata: {name: %s, namespace: %s}", pick(r, "p0", "p1", "p2"), namespace)
	if r.IntN(4) == 0 {
		head = "kind: CiliumClusterwideNetworkPolicy\nmetadata: {name: " + pick(r, "c0", "c1") + "}"
	}
	subject := pick(r, "{}", "{matchLabels: {app: web}}", "{matchLabels: {app: db}}", "{matchLabels: {tier: gold}}")
	section := pick(r, "ingress", "egress", "ingressDeny", "egressDeny")
	side := map[string]string{"ingress": "from", "ingressDeny": "from", "egress": "to", "egressDeny": "to"}[section]
	peers := pick(r,
		side+"Endpoints: [{matchLabels: {app: web}}]",
		side+"Endpoints: [{matchLabels: {app: db, k8s:io.kubernetes.pod.namespace: shop}}]",
		side+"Endpoints: [{matchLabels: {k8s:io.cilium.k8s.namespace.labels.env: prod}}]",
		side+"Entities: [world]", side+"Entities: [cluster]", side+"Entities: [host]", side+"Entities: [remote-node]",
		side+"CIDR: [192.0.2.0/24]", side+"CIDRSet: [{cidr: 192.0.0.0/16, except: [192.0.2.0/28]}]")
	ports := pick(r, "", "\n    toPorts: [{ports: [{port: http}]}]", "\n    toPorts: [{ports: [{port: '80', protocol: TCP}]}]", "\n    toPorts: [{ports: [{port: '53', protocol: UDP}]}]")
	return "apiVersion: cilium.io/v2\n" + head + "\nspec:\n  endpointSelector: " + subject + "\n  " + section + ":\n  - " + peers + ports + "\n"
}
