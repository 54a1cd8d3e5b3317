// Package drawn draws random policies, for tests that compare one reading of them with
// another. What it draws is small and collides often: few labels, ranges that hold
// each other, ports at the borders of prefixes.
package drawn

import (
	"fmt"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// What is drawn from.
var (
	Prefixes = []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0.2/32", "192.0.2.0/24", "192.0.2.0/25",
		"192.0.2.128/25", "192.0.2.129/32", "192.0.3.1/32",
		"::/0", "::/80", "2001:db8::/32", "2001:db8::/33", "2001:db8::1/128", "fd00::/64",
	}
	Addrs = []string{
		"10.0.0.1", "10.0.0.2", "10.9.9.9", "192.0.2.1", "192.0.2.127", "192.0.2.128", "192.0.2.129",
		"192.0.3.1", "8.8.8.8", "2001:db8::1", "2001:db8:8000::1", "::1:0:0:1", "fd00::99", "2606::1",
	}
	Ports     = []uint16{0, 1, 8, 53, 79, 80, 81, 127, 128, 255, 8080, 32767, 32768, 65534, 65535}
	Protocols = []uint32{1, 6, 17, 58, 132}
	Names     = []string{"http", "dns"}
)

func selector(t *rapid.T, label string, least int) *eventpb.Selector {
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

func name(t *rapid.T) *eventpb.FqdnSelector {
	s, err := policy.ParseFQDN("", rapid.SampledFrom([]string{"*", "a.io", "*.a.io", "**.b.io"}).Draw(t, "pattern"))
	if err != nil {
		t.Fatal(err)
	}
	return s.PB()
}

// peer draws names too, which are peers of egress rules that allow, and groups, which
// nothing denies.
func peer(t *rapid.T, section policy.Section) *eventpb.Peer {
	kind := rapid.IntRange(0, 4).Draw(t, "peer kind")
	switch {
	case kind == 4 && section == policy.SectionEgress:
		return &eventpb.Peer{Peer: &eventpb.Peer_Fqdn{Fqdn: name(t)}}
	case kind == 3 && !section.Denies():
		return &eventpb.Peer{Peer: &eventpb.Peer_AwsGroup{AwsGroup: &eventpb.AwsGroup{SecurityGroupIds: []string{"sg-1"}}}}
	}
	switch kind {
	case 0:
		return &eventpb.Peer{Peer: &eventpb.Peer_Endpoints{Endpoints: selector(t, "peer", 1)}}
	case 1:
		e := rapid.SampledFrom(policy.Entities()).Draw(t, "entity")
		return &eventpb.Peer{Peer: &eventpb.Peer_Entity{Entity: string(e)}}
	}
	c := &eventpb.Cidr{Prefix: rapid.SampledFrom(Prefixes).Draw(t, "cidr")}
	outer := netip.MustParsePrefix(c.Prefix)
	for _, s := range Prefixes {
		p := netip.MustParsePrefix(s)
		if p.Bits() >= outer.Bits() && outer.Contains(p.Addr()) && rapid.IntRange(0, 3).Draw(t, "except "+s) == 0 {
			c.Except = append(c.Except, s)
		}
	}
	return &eventpb.Peer{Peer: &eventpb.Peer_Cidr{Cidr: c}}
}

func port(t *rapid.T, section policy.Section) *eventpb.Port {
	p := &eventpb.Port{Protocol: rapid.SampledFrom(Protocols).Draw(t, "protocol")}
	icmp := p.Protocol == 1 || p.Protocol == 58
	switch kind := rapid.IntRange(0, 3).Draw(t, "port kind"); {
	case kind == 0:
		p.Last = 65535
	case kind == 1 && !icmp:
		p.Name = rapid.SampledFrom(Names).Draw(t, "name")
	default:
		p.First = uint32(rapid.SampledFrom(Ports).Draw(t, "first"))
		p.Last = max(p.First, uint32(rapid.SampledFrom(Ports).Draw(t, "last")))
		if icmp {
			p.First, p.Last = p.First%256, 255
		}
	}
	if single := p.Name != "" || p.First == p.Last && p.First > 0; section == policy.SectionEgress && !icmp && single && rapid.Bool().Draw(t, "asks") {
		p.Dns = &eventpb.DnsRules{}
		for range rapid.IntRange(0, 2).Draw(t, "names") {
			p.Dns.Names = append(p.Dns.Names, name(t))
		}
	}
	return p
}

func rules(t *rapid.T, section policy.Section) []*eventpb.Rule {
	var rules []*eventpb.Rule
	for range rapid.IntRange(0, 2).Draw(t, section.String()) {
		r := &eventpb.Rule{AnyPeer: rapid.IntRange(0, 3).Draw(t, "any peer") == 0}
		if !r.AnyPeer {
			for range rapid.IntRange(0, 3).Draw(t, "peers") {
				r.Peers = append(r.Peers, peer(t, section))
			}
		}
		for range rapid.IntRange(0, 3).Draw(t, "ports") {
			r.Ports = append(r.Ports, port(t, section))
		}
		r.NoPort = len(r.Ports) == 0 && rapid.IntRange(0, 5).Draw(t, "no port") == 0
		rules = append(rules, r)
	}
	return rules
}

// Policies draws up to four policies of the whole cluster, in the log's form.
func Policies(t *rapid.T) []*eventpb.PolicySet {
	var out []*eventpb.PolicySet
	for i := range rapid.IntRange(0, 4).Draw(t, "policies") {
		set := &eventpb.PolicySet{Ref: &eventpb.PolicyRef{
			Kind: eventpb.PolicyKind_CILIUM_CLUSTERWIDE_NETWORK_POLICY, Name: fmt.Sprintf("p%d", i),
		}}
		for range rapid.IntRange(1, 2).Draw(t, "specs") {
			s := &eventpb.PolicySpec{
				Subject: selector(t, "subject", 0),
				Ingress: rules(t, policy.SectionIngress), IngressDeny: rules(t, policy.SectionIngressDeny),
				Egress: rules(t, policy.SectionEgress), EgressDeny: rules(t, policy.SectionEgressDeny),
				Audit: rapid.IntRange(0, 2).Draw(t, "audit") == 0, LogValue: rapid.SampledFrom([]string{"", "tag"}).Draw(t, "log"),
			}
			if len(s.Ingress)+len(s.IngressDeny)+len(s.Egress)+len(s.EgressDeny) == 0 {
				s.Ingress = []*eventpb.Rule{{AnyPeer: true}}
			}
			s.DefaultDenyIngress = len(s.Ingress)+len(s.IngressDeny) > 0 && rapid.Bool().Draw(t, "deny ingress")
			s.DefaultDenyEgress = len(s.Egress)+len(s.EgressDeny) > 0 && rapid.Bool().Draw(t, "deny egress")
			set.Specs = append(set.Specs, s)
		}
		out = append(out, set)
	}
	return out
}

// Labels draws the labels of a workload.
func Labels(t *rapid.T) map[string]string {
	out := make(map[string]string)
	for _, k := range []string{"app", "role"} {
		if v := rapid.SampledFrom([]string{"", "a", "b", "absent"}).Draw(t, k); v != "absent" {
			out[k] = v
		}
	}
	return out
}

// NamedPort is a name for a port of one protocol.
type NamedPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// NamedPorts draws the named ports of a workload, sorted by name and protocol.
func NamedPorts(t *rapid.T) []NamedPort {
	var out []NamedPort
	for _, name := range slices.Sorted(slices.Values(Names)) {
		for _, protocol := range []uint8{policy.ProtoTCP, policy.ProtoUDP} {
			if rapid.Bool().Draw(t, "has "+name) {
				out = append(out, NamedPort{name, protocol, rapid.SampledFrom(Ports[2:8]).Draw(t, name)})
			}
		}
	}
	return out
}
