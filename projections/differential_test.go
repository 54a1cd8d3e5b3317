package projections

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

var (
	drawnPrefixes = []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0.2/32", "192.0.2.0/24", "192.0.2.0/25",
		"192.0.2.128/25", "192.0.2.129/32", "192.0.3.1/32",
		"::/0", "::/80", "2001:db8::/32", "2001:db8::/33", "2001:db8::1/128", "fd00::/64",
	}
	drawnAddrs = []string{
		"10.0.0.1", "10.0.0.2", "10.9.9.9", "192.0.2.1", "192.0.2.127", "192.0.2.128", "192.0.2.129",
		"192.0.3.1", "8.8.8.8", "2001:db8::1", "2001:db8:8000::1", "::1:0:0:1", "fd00::99", "2606::1",
	}
	drawnPorts     = []uint16{0, 1, 8, 53, 79, 80, 81, 127, 128, 255, 8080, 32767, 32768, 65534, 65535}
	drawnProtocols = []uint32{1, 6, 17, 58, 132}
	drawnNames     = []string{"http", "dns"}
)

func drawSelector(t *rapid.T, label string, least int) *eventpb.Selector {
	keys := []string{"k8s:app", "k8s:role", "any:app", "reserved:host", "reserved:world-ipv4", "reserved:remote-node"}
	s := &eventpb.Selector{}
	for i := range rapid.IntRange(least, 2).Draw(t, label) {
		r := &eventpb.Requirement{
			Key:      rapid.SampledFrom(keys).Draw(t, fmt.Sprintf("%s key %d", label, i)),
			Operator: eventpb.Requirement_Operator(rapid.IntRange(1, 4).Draw(t, label+" operator")),
		}
		if r.Operator <= eventpb.Requirement_NOT_IN {
			r.Values = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", ""}), 1, 2, rapid.ID[string]).Draw(t, label+" values")
		}
		s.Requirements = append(s.Requirements, r)
	}
	return s
}

func drawPeer(t *rapid.T) *eventpb.Peer {
	switch rapid.IntRange(0, 2).Draw(t, "peer kind") {
	case 0:
		return &eventpb.Peer{Peer: &eventpb.Peer_Endpoints{Endpoints: drawSelector(t, "peer", 1)}}
	case 1:
		e := rapid.SampledFrom(policy.Entities()).Draw(t, "entity")
		return &eventpb.Peer{Peer: &eventpb.Peer_Entity{Entity: string(e)}}
	}
	c := &eventpb.Cidr{Prefix: rapid.SampledFrom(drawnPrefixes).Draw(t, "cidr")}
	outer := netip.MustParsePrefix(c.Prefix)
	for _, s := range drawnPrefixes {
		p := netip.MustParsePrefix(s)
		if p.Bits() >= outer.Bits() && outer.Contains(p.Addr()) && rapid.IntRange(0, 3).Draw(t, "except "+s) == 0 {
			c.Except = append(c.Except, s)
		}
	}
	return &eventpb.Peer{Peer: &eventpb.Peer_Cidr{Cidr: c}}
}

func drawPort(t *rapid.T) *eventpb.Port {
	p := &eventpb.Port{Protocol: rapid.SampledFrom(drawnProtocols).Draw(t, "protocol")}
	icmp := p.Protocol == 1 || p.Protocol == 58
	switch kind := rapid.IntRange(0, 3).Draw(t, "port kind"); {
	case kind == 0:
		p.Last = 65535
	case kind == 1 && !icmp:
		p.Name = rapid.SampledFrom(drawnNames).Draw(t, "name")
	default:
		p.First = uint32(rapid.SampledFrom(drawnPorts).Draw(t, "first"))
		p.Last = max(p.First, uint32(rapid.SampledFrom(drawnPorts).Draw(t, "last")))
		if icmp {
			p.First, p.Last = p.First%256, 255
		}
	}
	return p
}

func drawRules(t *rapid.T, label string) []*eventpb.Rule {
	var rules []*eventpb.Rule
	for range rapid.IntRange(0, 2).Draw(t, label) {
		r := &eventpb.Rule{AnyPeer: rapid.IntRange(0, 3).Draw(t, "any peer") == 0}
		if !r.AnyPeer {
			for range rapid.IntRange(0, 3).Draw(t, "peers") {
				r.Peers = append(r.Peers, drawPeer(t))
			}
		}
		for range rapid.IntRange(0, 3).Draw(t, "ports") {
			r.Ports = append(r.Ports, drawPort(t))
		}
		r.NoPort = len(r.Ports) == 0 && rapid.IntRange(0, 5).Draw(t, "no port") == 0
		rules = append(rules, r)
	}
	return rules
}

func drawPolicies(t *rapid.T) []*fsm.Policy {
	var out []*fsm.Policy
	for i := range rapid.IntRange(0, 4).Draw(t, "policies") {
		set := &eventpb.PolicySet{Ref: &eventpb.PolicyRef{
			Kind: eventpb.PolicyKind_CILIUM_CLUSTERWIDE_NETWORK_POLICY, Name: fmt.Sprintf("p%d", i),
		}}
		for range rapid.IntRange(1, 2).Draw(t, "specs") {
			s := &eventpb.PolicySpec{
				Subject: drawSelector(t, "subject", 0),
				Ingress: drawRules(t, "ingress"), IngressDeny: drawRules(t, "ingressDeny"),
				Egress: drawRules(t, "egress"), EgressDeny: drawRules(t, "egressDeny"),
			}
			if len(s.Ingress)+len(s.IngressDeny)+len(s.Egress)+len(s.EgressDeny) == 0 {
				s.Ingress = []*eventpb.Rule{{AnyPeer: true}}
			}
			s.DefaultDenyIngress = len(s.Ingress)+len(s.IngressDeny) > 0 && rapid.Bool().Draw(t, "deny ingress")
			s.DefaultDenyEgress = len(s.Egress)+len(s.EgressDeny) > 0 && rapid.Bool().Draw(t, "deny egress")
			set.Specs = append(set.Specs, s)
		}
		p, err := policy.Compile(set)
		if err != nil {
			t.Fatalf("drawn policy: %v", err)
		}
		out = append(out, &fsm.Policy{Policy: p, Set: set, Revision: log.Revision(100 + i)})
	}
	return out
}

type world struct {
	facts   facts
	parties []party // endpoints first
}

func drawWorld(t *rapid.T) world {
	w := world{facts: facts{cluster: "default", revision: 7, policies: drawPolicies(t)}}
	identities := make(map[uint32]*fsm.Identity)
	byLabels := make(map[string]*fsm.Identity)
	for i := range rapid.IntRange(1, 5).Draw(t, "endpoints") {
		labels := make(map[string]string)
		for _, k := range []string{"app", "role"} {
			if v := rapid.SampledFrom([]string{"", "a", "b", "absent"}).Draw(t, k); v != "absent" {
				labels[k] = v
			}
		}
		e := &fsm.Endpoint{
			Ref: fsm.EndpointRef{Namespace: "default", Name: fmt.Sprintf("e%d", i)}, ID: uint32(i + 1),
			Node: rapid.SampledFrom([]string{"one", "one", "two"}).Draw(t, "node"), Labels: labels,
			IPv4: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+2)),
		}
		for _, name := range drawnNames {
			for _, proto := range []uint8{6, 17} {
				if rapid.Bool().Draw(t, "has "+name) {
					port := rapid.SampledFrom(drawnPorts[2:8]).Draw(t, name)
					e.NamedPorts = append(e.NamedPorts, fsm.NamedPort{Name: name, Protocol: proto, Port: port})
				}
			}
		}
		ls := policy.EndpointLabels("default", "default", nil, labels, "")
		id, ok := byLabels[ls.String()]
		if !ok {
			id = &fsm.Identity{ID: uint32(256 + len(byLabels)), Labels: ls, Revision: log.Revision(i + 1)}
			byLabels[ls.String()], identities[id.ID] = id, id
		}
		e.Identity = id.ID
		w.facts.endpoints = append(w.facts.endpoints, e)
		w.parties = append(w.parties, party{endpoint: e, labels: ls})
	}
	w.facts.identity = func(id uint32) (*fsm.Identity, bool) { i, ok := identities[id]; return i, ok }
	w.facts.nodes = []*fsm.Node{
		{Name: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		{Name: "two", Addresses: []netip.Addr{netip.MustParseAddr("192.0.3.1")}},
	}
	for id := abi.IdentityHost; id <= abi.IdentityIngress; id++ {
		if id != abi.IdentityWorld {
			w.parties = append(w.parties, party{reserved: id, labels: policy.ReservedLabels(id)})
		}
	}
	for _, s := range drawnAddrs {
		a := netip.MustParseAddr(s)
		p := party{addr: a, labels: policy.CIDRLabels(a.Is6())}
		switch {
		case s == "10.0.0.1":
			p = party{reserved: abi.IdentityHost, labels: policy.ReservedLabels(abi.IdentityHost)}
		case s == "192.0.3.1":
			p = party{reserved: abi.IdentityRemoteNode, labels: policy.ReservedLabels(abi.IdentityRemoteNode)}
		case slices.ContainsFunc(w.facts.endpoints, func(e *fsm.Endpoint) bool { return e.IPv4 == a || e.IPv6 == a }):
			continue
		}
		w.parties = append(w.parties, p)
	}
	return w
}

// number is the peer as the tables know it.
func (p party) number(tables *Tables) uint64 {
	switch {
	case p.endpoint != nil:
		return tables.PeerOf(p.endpoint.IPv6)
	case p.addr.IsValid():
		return tables.PeerOf(p.addr)
	}
	return uint64(p.reserved)
}

func TestTablesAgreeWithNaiveEvaluator(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		tables, err := build(w.facts, "one", Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, subject := range w.parties {
			if subject.endpoint == nil || subject.endpoint.Node != "one" {
				continue
			}
			for _, other := range w.parties {
				peer := other.number(tables)
				for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
					for _, protocol := range drawnProtocols {
						for _, port := range drawnPorts {
							q := Question{
								Endpoint: subject.endpoint.ID, Direction: abi.Direction(d),
								Peer: peer, Protocol: uint8(protocol), Port: port,
							}
							got, err := tables.Verdict(q)
							if err != nil {
								t.Fatal(err)
							}
							want := naive(w.facts.policies, d, subject, other, uint8(protocol), port)
							if (got.Verdict == abi.VerdictAllow) != want {
								t.Fatalf("%s of %s, other %+v, port %d/%d: tables allow %v, naive %v\nrow %+v\npolicies %s",
									d, subject.endpoint.Ref.Name, other, port, protocol, !want, want, got.Row, describe(w.facts.policies))
							}
							if !got.Default && len(got.Row.Cause.Rules) == 0 {
								t.Fatalf("row %+v has no rule", got.Row)
							}
						}
					}
				}
			}
		}
	})
}

func describe(policies []*fsm.Policy) string {
	var b strings.Builder
	for _, p := range policies {
		for _, s := range p.Policy.Specs {
			fmt.Fprintf(&b, "\n%s on %s, default deny %v", p.Policy.Ref, s.Subject, s.DefaultDeny)
			for _, r := range s.Rules {
				fmt.Fprintf(&b, "\n  %s any=%v all=%v ports=%v peers=", r.Section, r.AnyPeer, r.AllPorts, r.Ports)
				for _, peer := range r.Peers {
					fmt.Fprintf(&b, "[%s]", peer.Key())
				}
			}
		}
	}
	return b.String()
}

// What is built for one endpoint alone gives it the verdicts, rows and classes that
// the whole node's tables do.
func TestBuildEndpointIsPartOfBuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		whole, err := build(w.facts, "one", Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range w.facts.endpoints {
			if e.Node != "one" {
				continue
			}
			f := w.facts
			f.only = e
			part, err := build(f, "one", Options{})
			if err != nil {
				t.Fatal(err)
			}
			want, _ := whole.Endpoints.Get(EndpointKey{e.ID})
			if got, ok := part.Endpoints.Get(EndpointKey{e.ID}); !ok || part.Endpoints.Len() != 1 || got.Value != want.Value {
				t.Fatalf("%d endpoint rows, want %+v", part.Endpoints.Len(), want)
			}
			for _, other := range w.parties {
				for _, d := range []abi.Direction{abi.Egress, abi.Ingress} {
					for _, protocol := range drawnProtocols {
						for _, port := range drawnPorts {
							ask := func(tables *Tables) Answer {
								a, err := tables.Verdict(Question{e.ID, d, other.number(tables), uint8(protocol), port})
								if err != nil {
									t.Fatal(err)
								}
								return a
							}
							got, want := ask(part), ask(whole)
							if got.Verdict != want.Verdict || got.Default != want.Default || got.Class != want.Class ||
								got.Row != nil && (got.Row.Value != want.Row.Value || !sameCause(got.Row.Cause, want.Row.Cause)) {
								t.Fatalf("endpoint %s, other %+v: got %+v, want %+v", e.Ref.Name, other, got, want)
							}
						}
					}
				}
			}
		}
	})
}
