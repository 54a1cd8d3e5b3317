package past

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/audit"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/naive"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// model is the naive replayer: what the events of a mix say, in maps, and verdicts by
// package naive. It has no trees, identities, digests, checkpoints or tables, knows
// nothing of what package fsm does with an event, and so shares no mistake with it.
type model struct {
	cluster    string
	namespaces map[string]map[string]string // labels
	endpoints  map[string]*endpoint         // by "namespace/name"
	users      map[netip.Addr]string        // of addresses
	policies   map[string]map[string]*fsm.Policy
	names      map[string]map[string]map[netip.Addr]expiry // by endpoint and name
}

type endpoint struct {
	row     fsm.Endpoint
	labels  policy.Labels
	created log.Revision
}

type expiry struct {
	ns       int64
	revision log.Revision
}

func newModel(cluster string) *model {
	return &model{
		cluster: cluster, namespaces: map[string]map[string]string{}, endpoints: map[string]*endpoint{}, users: map[netip.Addr]string{},
		policies: map[string]map[string]*fsm.Policy{}, names: map[string]map[string]map[netip.Addr]expiry{},
	}
}

func nameOf(ref *eventpb.EndpointRef) string { return ref.GetNamespace() + "/" + ref.GetName() }

// apply folds an event that was applied.
func (m *model) apply(revision log.Revision, e *eventpb.Event) error {
	switch p := e.Payload.(type) {
	case *eventpb.Event_NodeJoined:
	case *eventpb.Event_NamespaceSet:
		labels := maps.Clone(p.NamespaceSet.Labels)
		labels["kubernetes.io/metadata.name"] = p.NamespaceSet.Name
		m.namespaces[p.NamespaceSet.Name] = labels
		for _, at := range m.endpoints {
			if at.row.Ref.Namespace == p.NamespaceSet.Name {
				m.label(at)
			}
		}
	case *eventpb.Event_EndpointCreated:
		return m.create(revision, p.EndpointCreated)
	case *eventpb.Event_EndpointUpdated:
		at := m.endpoints[nameOf(p.EndpointUpdated.Ref)]
		at.row.Labels = p.EndpointUpdated.Labels
		m.label(at)
	case *eventpb.Event_EndpointDeleted:
		m.forget(nameOf(p.EndpointDeleted.Ref))
	case *eventpb.Event_PolicySet:
		compiled, err := policy.Compile(p.PolicySet)
		if err != nil {
			return err
		}
		ref := compiled.Ref
		if m.policies[ref.Namespace] == nil {
			m.policies[ref.Namespace] = map[string]*fsm.Policy{}
		}
		m.policies[ref.Namespace][ref.String()] = &fsm.Policy{Policy: compiled, Set: p.PolicySet, Revision: revision}
	case *eventpb.Event_PolicyDeleted:
		ref, err := policy.RefFromPB(p.PolicyDeleted.Ref)
		if err != nil {
			return err
		}
		delete(m.policies[ref.Namespace], ref.String())
	case *eventpb.Event_DnsObserved:
		m.observe(revision, p.DnsObserved)
	case *eventpb.Event_DnsCollected:
		m.collect(p.DnsCollected)
	default:
		return fmt.Errorf("revision %d: the mix has no %T", revision, p)
	}
	return nil
}

// label gives an endpoint the labels that its own and its namespace's make.
func (m *model) label(at *endpoint) {
	at.labels = policy.EndpointLabels(m.cluster, at.row.Ref.Namespace, m.namespaces[at.row.Ref.Namespace], at.row.Labels, "default")
}

func (m *model) create(revision log.Revision, p *eventpb.EndpointCreated) error {
	name := nameOf(p.Ref)
	m.forget(name)
	addr, ok := netip.AddrFromSlice(p.Addresses[0])
	if !ok || len(p.Addresses) != 1 {
		return fmt.Errorf("revision %d: addresses %v", revision, p.Addresses)
	}
	at := &endpoint{created: revision, row: fsm.Endpoint{
		Ref: fsm.EndpointRef{Namespace: p.Ref.Namespace, Name: p.Ref.Name}, Incarnation: p.Incarnation, Node: p.Node, Labels: p.Labels, IPv4: addr,
	}}
	m.label(at)
	m.endpoints[name], m.users[addr] = at, name
	return nil
}

// forget removes an endpoint and what it has learned.
func (m *model) forget(name string) {
	if at, ok := m.endpoints[name]; ok {
		delete(m.users, at.row.IPv4)
	}
	delete(m.endpoints, name)
	delete(m.names, name)
}

func (m *model) observe(revision log.Revision, o *eventpb.DnsObserved) {
	of := nameOf(o.Ref)
	if m.names[of] == nil {
		m.names[of] = map[string]map[netip.Addr]expiry{}
	}
	if m.names[of][o.Name] == nil {
		m.names[of][o.Name] = map[netip.Addr]expiry{}
	}
	for _, a := range o.Addresses {
		addr, _ := netip.AddrFromSlice(a.Address)
		if known := m.names[of][o.Name][addr]; known.ns < a.ExpiresUnixNs {
			m.names[of][o.Name][addr] = expiry{a.ExpiresUnixNs, revision}
		}
	}
}

func (m *model) collect(c *eventpb.DnsCollected) {
	name := m.names[nameOf(c.Ref)][c.Name]
	for _, b := range c.Addresses {
		addr, _ := netip.AddrFromSlice(b)
		delete(name, addr)
	}
	if len(name) == 0 {
		delete(m.names[nameOf(c.Ref)], c.Name)
	}
}

// outcome judges a question, by every policy that can select one of the parties.
func (m *model) outcome(q audit.Question) audit.Outcome {
	from, okFrom := m.party(q.From)
	to, okTo := m.party(q.To)
	if !okFrom || !okTo {
		return audit.Absent
	}
	if m.allows(policy.Egress, from, to, q.Port) && m.allows(policy.Ingress, to, from, q.Port) {
		return audit.Allowed
	}
	return audit.Denied
}

func (m *model) allows(d policy.Direction, subject, other naive.Party, port audit.Port) bool {
	if subject.Endpoint == nil {
		return true
	}
	of := m.policies[subject.Endpoint.Ref.Namespace]
	return naive.Allows(slices.Collect(maps.Values(of)), d, subject, other, port.Protocol, port.Number)
}

// party is who some words name: an endpoint, or an address of one or of the world.
func (m *model) party(words string) (naive.Party, bool) {
	addr, err := netip.ParseAddr(words)
	if err == nil {
		words = m.users[addr]
	}
	if at, ok := m.endpoints[words]; ok {
		return naive.Party{Endpoint: &at.row, Addr: at.row.IPv4, Labels: at.labels}, true
	}
	return naive.Party{Addr: addr}, err == nil
}

// lines is the whole state in words, by kind and name.
func (m *model) lines() map[string]string {
	out := map[string]string{}
	for name, labels := range m.namespaces {
		out["namespace "+name] = fmt.Sprint(labels)
	}
	for name, at := range m.endpoints {
		out["endpoint "+name] = endpointLine(&at.row, at.labels, at.created)
	}
	for _, all := range m.policies {
		for ref, p := range all {
			out["policy "+ref] = policyLine(p)
		}
	}
	for of, all := range m.names {
		for name, addrs := range all {
			var text []string
			for a, e := range addrs {
				text = append(text, nameLine(a, e.ns, e.revision))
			}
			slices.Sort(text)
			out["name "+of+" "+name] = strings.Join(text, ", ")
		}
	}
	return out
}

// linesOf is a View in the words of lines.
func linesOf(v fsm.View) map[string]string {
	out := map[string]string{}
	for n := range v.Namespaces() {
		out["namespace "+n.Name] = fmt.Sprint(n.Labels)
	}
	for e := range v.Endpoints() {
		labels := policy.Labels(nil)
		if id, ok := v.Identity(e.Identity); ok {
			labels = id.Labels
		}
		out["endpoint "+e.Ref.String()] = endpointLine(e, labels, e.Created)
	}
	for p := range v.Policies() {
		out["policy "+p.Policy.Ref.String()] = policyLine(p)
	}
	for n := range v.Names() {
		var text []string
		for _, a := range n.Addresses {
			text = append(text, nameLine(a.Addr, a.ExpiresNS, a.Revision))
		}
		slices.Sort(text)
		out["name "+n.Endpoint.String()+" "+n.Name] = strings.Join(text, ", ")
	}
	return out
}

func endpointLine(e *fsm.Endpoint, labels policy.Labels, created log.Revision) string {
	return fmt.Sprintf("incarnation %d on %s at %s since %d, %v, %s", e.Incarnation, e.Node, e.IPv4, created, e.Labels, labels)
}

func policyLine(p *fsm.Policy) string {
	var text bytes.Buffer
	for _, s := range p.Set.Specs {
		fmt.Fprintf(&text, "%v; ", s)
	}
	return fmt.Sprintf("set at %d: %s", p.Revision, text.String())
}

func nameLine(a netip.Addr, expiresNS int64, revision log.Revision) string {
	return fmt.Sprintf("%s until %d of %d", a, expiresNS, revision)
}

// compare shows what two states have different; nothing if they are equal.
func compare(naive, got map[string]string) string {
	if maps.Equal(naive, got) {
		return ""
	}
	return cmp.Diff(naive, got)
}
