package policy

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/log/eventpb"
)

func goodSet() *eventpb.PolicySet {
	selector := func(key string) *eventpb.Selector {
		return &eventpb.Selector{Requirements: []*eventpb.Requirement{
			{Key: key, Operator: eventpb.Requirement_IN, Values: []string{"alpha"}},
		}}
	}
	return &eventpb.PolicySet{
		Ref: &eventpb.PolicyRef{Kind: KindCiliumNetworkPolicy, Namespace: "alpha", Name: "p"},
		Specs: []*eventpb.PolicySpec{{
			Subject:            selector("k8s:" + KeyNamespace),
			DefaultDenyIngress: true,
			Ingress: []*eventpb.Rule{{
				Peers: []*eventpb.Peer{
					endpointsPeer(selector("k8s:team")),
					{Peer: &eventpb.Peer_Cidr{Cidr: &eventpb.Cidr{Prefix: "10.0.0.0/8", Except: []string{"10.2.0.0/16", "10.1.0.0/16", "10.1.2.0/24"}}}},
					{Peer: &eventpb.Peer_Entity{Entity: "host"}},
				},
				Ports: []*eventpb.Port{{Protocol: 6, First: 80, Last: 90}, {Protocol: 17, Name: "dns"}, {Protocol: 58, First: 128, Last: 128}},
			}},
			Egress: []*eventpb.Rule{{
				Peers: []*eventpb.Peer{{Peer: &eventpb.Peer_Fqdn{Fqdn: &eventpb.FqdnSelector{MatchName: "a.io."}}}},
				Ports: []*eventpb.Port{{Protocol: 17, First: 53, Last: 53, Dns: &eventpb.DnsRules{Names: []*eventpb.FqdnSelector{
					{MatchPattern: "*.b.io."}, {MatchName: "a.io."}, {MatchPattern: "*.b.io."},
				}}}},
			}},
			IngressDeny: []*eventpb.Rule{{AnyPeer: true, NoPort: true}},
			LogValue:    strings.Repeat("é", maxLog),
		}},
	}
}

func TestCompile(t *testing.T) {
	p, err := Compile(goodSet())
	if err != nil {
		t.Fatal(err)
	}
	want := "k8s:team in (alpha) | cidr:10.0.0.0/8 except 10.1.0.0/16,10.2.0.0/16 | entity:host at 80-90/TCP dns/UDP 128/ICMPV6"
	if got := dumpRule(p.Specs[0].Rules[0]); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := dumpRule(p.Specs[0].Rules[1]), "fqdn:a.io. at 53/UDP dns(*.b.io.,a.io.)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	deny := p.Specs[0].Rules[2]
	if deny.Section != SectionIngressDeny || deny.Index != 0 || !deny.AnyPeer || deny.AllPorts || len(deny.Ports) != 0 {
		t.Errorf("%+v", deny)
	}
}

func TestCompileRefuses(t *testing.T) {
	rule := func(s *eventpb.PolicySet) *eventpb.Rule { return s.Specs[0].Ingress[0] }
	toName := func(s *eventpb.PolicySet) *eventpb.FqdnSelector { return s.Specs[0].Egress[0].Peers[0].GetFqdn() }
	for name, spoil := range map[string]func(*eventpb.PolicySet){
		"no reference":         func(s *eventpb.PolicySet) { s.Ref = nil },
		"unknown kind":         func(s *eventpb.PolicySet) { s.Ref.Kind = 9 },
		"no name":              func(s *eventpb.PolicySet) { s.Ref.Name = "" },
		"bad name":             func(s *eventpb.PolicySet) { s.Ref.Name = "a/b" },
		"no namespace":         func(s *eventpb.PolicySet) { s.Ref.Namespace = "" },
		"another's namespace":  func(s *eventpb.PolicySet) { s.Ref.Namespace = "beta" },
		"cluster-wide with ns": func(s *eventpb.PolicySet) { s.Ref.Kind = KindCiliumClusterwideNetworkPolicy },
		"no spec":              func(s *eventpb.PolicySet) { s.Specs = nil },
		"nil spec":             func(s *eventpb.PolicySet) { s.Specs[0] = nil },
		"too many specs":       func(s *eventpb.PolicySet) { s.Specs = make([]*eventpb.PolicySpec, maxSpecs+1) },
		"no subject":           func(s *eventpb.PolicySet) { s.Specs[0].Subject = nil },
		"unscoped subject":     func(s *eventpb.PolicySet) { s.Specs[0].Subject = &eventpb.Selector{} },
		"NotIn scope": func(s *eventpb.PolicySet) {
			s.Specs[0].Subject.Requirements[0].Operator = eventpb.Requirement_NOT_IN
		},
		"deny in a NetworkPolicy":  func(s *eventpb.PolicySet) { s.Ref.Kind = KindNetworkPolicy },
		"two specs NetworkPolicy":  func(s *eventpb.PolicySet) { s.Ref.Kind = KindNetworkPolicy; s.Specs = append(s.Specs, s.Specs[0]) },
		"no rule":                  func(s *eventpb.PolicySet) { s.Specs[0] = &eventpb.PolicySpec{Subject: s.Specs[0].Subject} },
		"isolation without a rule": func(s *eventpb.PolicySet) { s.Specs[0].Egress, s.Specs[0].DefaultDenyEgress = nil, true },
		"nil rule":                 func(s *eventpb.PolicySet) { s.Specs[0].Ingress[0] = nil },
		"too many rules":           func(s *eventpb.PolicySet) { s.Specs[0].Egress = make([]*eventpb.Rule, maxRules+1) },
		"any and peers":            func(s *eventpb.PolicySet) { rule(s).AnyPeer = true },
		"none and ports":           func(s *eventpb.PolicySet) { rule(s).NoPort = true },
		"nil peer":                 func(s *eventpb.PolicySet) { rule(s).Peers[0] = nil },
		"empty peer":               func(s *eventpb.PolicySet) { rule(s).Peers[0] = &eventpb.Peer{} },
		"typed nil peer": func(s *eventpb.PolicySet) {
			rule(s).Peers[0] = &eventpb.Peer{Peer: (*eventpb.Peer_Cidr)(nil)}
		},
		"nil cidr":                  func(s *eventpb.PolicySet) { rule(s).Peers[0] = &eventpb.Peer{Peer: &eventpb.Peer_Cidr{}} },
		"nil endpoints":             func(s *eventpb.PolicySet) { rule(s).Peers[0] = &eventpb.Peer{Peer: &eventpb.Peer_Endpoints{}} },
		"peers of no selection":     func(s *eventpb.PolicySet) { rule(s).Peers[0] = endpointsPeer(&eventpb.Selector{}) },
		"too many peers":            func(s *eventpb.PolicySet) { rule(s).Peers = make([]*eventpb.Peer, maxPeers+1) },
		"unknown entity":            func(s *eventpb.PolicySet) { rule(s).Peers[2] = &eventpb.Peer{Peer: &eventpb.Peer_Entity{}} },
		"host bits":                 func(s *eventpb.PolicySet) { rule(s).Peers[1].GetCidr().Prefix = "10.0.0.1/8" },
		"bare address":              func(s *eventpb.PolicySet) { rule(s).Peers[1].GetCidr().Prefix = "10.0.0.1" },
		"except outside":            func(s *eventpb.PolicySet) { rule(s).Peers[1].GetCidr().Except[0] = "11.0.0.0/16" },
		"nil port":                  func(s *eventpb.PolicySet) { rule(s).Ports[0] = nil },
		"too many ports":            func(s *eventpb.PolicySet) { rule(s).Ports = make([]*eventpb.Port, maxPorts+1) },
		"unknown protocol":          func(s *eventpb.PolicySet) { rule(s).Ports[0].Protocol = 6 + 256 },
		"range backwards":           func(s *eventpb.PolicySet) { rule(s).Ports[0].First = 91 },
		"range too far":             func(s *eventpb.PolicySet) { rule(s).Ports[0].Last = 65536 },
		"upper-case name":           func(s *eventpb.PolicySet) { rule(s).Ports[1].Name = "DNS" },
		"name and number":           func(s *eventpb.PolicySet) { rule(s).Ports[1].Last = 1 },
		"ICMP type too large":       func(s *eventpb.PolicySet) { rule(s).Ports[2].Last = 256 },
		"ICMP name":                 func(s *eventpb.PolicySet) { rule(s).Ports[2] = &eventpb.Port{Protocol: 58, Name: "echo"} },
		"name of no canonical form": func(s *eventpb.PolicySet) { toName(s).MatchName = "a.io" },
		"name and pattern":          func(s *eventpb.PolicySet) { toName(s).MatchPattern = "*" },
		"no name to a peer":         func(s *eventpb.PolicySet) { s.Specs[0].Egress[0].Peers[0] = &eventpb.Peer{Peer: &eventpb.Peer_Fqdn{}} },
		"name on ingress":           func(s *eventpb.PolicySet) { rule(s).Peers = s.Specs[0].Egress[0].Peers },
		"name in a deny":            func(s *eventpb.PolicySet) { s.Specs[0].EgressDeny = s.Specs[0].Egress },
		"group in a deny": func(s *eventpb.PolicySet) {
			s.Specs[0].IngressDeny[0] = &eventpb.Rule{Peers: []*eventpb.Peer{{Peer: &eventpb.Peer_AwsGroup{AwsGroup: &eventpb.AwsGroup{}}}}}
		},
		"nil group": func(s *eventpb.PolicySet) { rule(s).Peers[0] = &eventpb.Peer{Peer: &eventpb.Peer_AwsGroup{}} },
		"group with a label twice": func(s *eventpb.PolicySet) {
			rule(s).Peers[0] = &eventpb.Peer{Peer: &eventpb.Peer_AwsGroup{AwsGroup: &eventpb.AwsGroup{Labels: []*eventpb.GroupLabel{{Key: "a"}, {Key: "a"}}}}}
		},
		"group with a nil label": func(s *eventpb.PolicySet) {
			rule(s).Peers[0] = &eventpb.Peer{Peer: &eventpb.Peer_AwsGroup{AwsGroup: &eventpb.AwsGroup{Labels: []*eventpb.GroupLabel{nil}}}}
		},
		"DNS rules on ingress": func(s *eventpb.PolicySet) { rule(s).Ports = s.Specs[0].Egress[0].Ports },
		"DNS rules of a range": func(s *eventpb.PolicySet) { s.Specs[0].Egress[0].Ports[0].Last = 54 },
		"DNS rules of ICMP":    func(s *eventpb.PolicySet) { s.Specs[0].Egress[0].Ports[0].Protocol = 1 },
		"DNS rules of port 0":  func(s *eventpb.PolicySet) { p := s.Specs[0].Egress[0].Ports[0]; p.First, p.Last = 0, 0 },
		"DNS rules with a nil": func(s *eventpb.PolicySet) { s.Specs[0].Egress[0].Ports[0].Dns.Names[0] = nil },
		"too many names": func(s *eventpb.PolicySet) {
			s.Specs[0].Egress[0].Ports[0].Dns.Names = make([]*eventpb.FqdnSelector, maxNames+1)
		},
		"log too long":            func(s *eventpb.PolicySet) { s.Specs[0].LogValue = strings.Repeat("é", maxLog+1) },
		"log that does not print": func(s *eventpb.PolicySet) { s.Specs[0].LogValue = "\x07" },
		"manifest too large":      func(s *eventpb.PolicySet) { s.Manifest = strings.Repeat("x", maxManifest+1) },
		"manifest not UTF-8":      func(s *eventpb.PolicySet) { s.Manifest = "\xff" },
		"description not UTF-8":   func(s *eventpb.PolicySet) { s.Specs[0].Description = "\xff" },
	} {
		t.Run(name, func(t *testing.T) {
			set := goodSet()
			spoil(set)
			if p, err := Compile(set); p != nil || !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
	if _, err := Compile(nil); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// A field that a later version added may narrow the rule it stands in.
func TestCompileRefusesFieldsOfLaterVersions(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	for name, m := range map[string]func(*eventpb.PolicySet) proto.Message{
		"set":         func(s *eventpb.PolicySet) proto.Message { return s },
		"rule":        func(s *eventpb.PolicySet) proto.Message { return s.Specs[0].Ingress[0] },
		"cidr":        func(s *eventpb.PolicySet) proto.Message { return s.Specs[0].Ingress[0].Peers[1].GetCidr() },
		"port":        func(s *eventpb.PolicySet) proto.Message { return s.Specs[0].Ingress[0].Ports[1] },
		"requirement": func(s *eventpb.PolicySet) proto.Message { return s.Specs[0].Subject.Requirements[0] },
	} {
		set := goodSet()
		m(set).ProtoReflect().SetUnknown(unknown)
		data, err := proto.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		var back eventpb.PolicySet
		if err := back.UnmarshalVT(data); err != nil {
			t.Fatal(err)
		}
		if p, err := Compile(&back); p != nil || !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}
