package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/varve-net/varve/log/eventpb"
)

// IP protocol numbers that a port may have.
const (
	ProtoICMP   uint8 = 1
	ProtoTCP    uint8 = 6
	ProtoUDP    uint8 = 17
	ProtoICMPv6 uint8 = 58
	ProtoSCTP   uint8 = 132
)

// Compile checks a policy in the log's form, as if its bytes came from an enemy,
// and makes the immutable form of it. It shares no memory with set. The error is
// an ErrInvalid, or an ErrUnsupported if set holds a field of a later version; it
// joins every problem, each with its path. Nothing makes it panic.
func Compile(set *eventpb.PolicySet) (*Policy, error) {
	if set == nil {
		return nil, fmt.Errorf("policy: %w: missing", ErrInvalid)
	}
	if field := unknownField(set.ProtoReflect()); field != "" {
		return nil, fmt.Errorf("policy: %s: field of a later version: %w", field, ErrUnsupported)
	}
	ref, err := RefFromPB(set.Ref)
	if err != nil {
		return nil, err
	}
	c := compiler{ref: ref}
	p := &Policy{Ref: ref}
	if n := len(set.Manifest); n > maxManifest || !utf8.ValidString(set.Manifest) {
		c.fail("manifest", "must be at most %d bytes of UTF-8, is %d", maxManifest, n)
	}
	switch n := len(set.Specs); {
	case n == 0:
		c.fail("specs", "a policy needs at least one")
	case n > maxSpecs:
		c.fail("specs", "%d of them, the most is %d", n, maxSpecs)
	case n > 1 && ref.Kind == KindNetworkPolicy:
		c.fail("specs", "a NetworkPolicy has one")
	default:
		for i, s := range set.Specs {
			p.Specs = append(p.Specs, c.spec(fmt.Sprintf("specs[%d]", i), s))
		}
	}
	if len(c.errs) > 0 {
		return nil, fmt.Errorf("policy %s: %w", ref, errors.Join(c.errs...))
	}
	return p, nil
}

// unknownField names the first message within m that holds a field this version
// does not know, or returns "".
func unknownField(m protoreflect.Message) string {
	if len(m.GetUnknown()) > 0 {
		return string(m.Descriptor().Name())
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Kind() != protoreflect.MessageKind || !m.Has(f) {
			continue
		}
		if !f.IsList() {
			if s := unknownField(m.Get(f).Message()); s != "" {
				return s
			}
			continue
		}
		list := m.Get(f).List()
		for j := range list.Len() {
			if s := unknownField(list.Get(j).Message()); s != "" {
				return s
			}
		}
	}
	return ""
}

type compiler struct {
	ref  Ref
	errs []error
}

func (c *compiler) fail(path, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: %w: %s", path, ErrInvalid, fmt.Sprintf(format, args...)))
}

func (c *compiler) spec(path string, pb *eventpb.PolicySpec) Spec {
	if pb == nil {
		c.fail(path, "missing")
		return Spec{}
	}
	if len(pb.Description) > maxManifest || !utf8.ValidString(pb.Description) {
		c.fail(path+".description", "must be at most %d bytes of UTF-8", maxManifest)
	}
	var s Spec
	s.Subject = c.subject(path+".subject", pb.Subject)
	s.DefaultDeny[Ingress] = pb.DefaultDenyIngress
	s.DefaultDeny[Egress] = pb.DefaultDenyEgress
	for _, sec := range []struct {
		section Section
		rules   []*eventpb.Rule
	}{
		{SectionIngress, pb.Ingress},
		{SectionEgress, pb.Egress},
		{SectionIngressDeny, pb.IngressDeny},
		{SectionEgressDeny, pb.EgressDeny},
	} {
		if n := len(sec.rules); n > maxRules {
			c.fail(path+"."+sec.section.String(), "%d rules, the most is %d", n, maxRules)
			continue
		}
		for i, r := range sec.rules {
			rule := c.rule(fmt.Sprintf("%s.%s[%d]", path, sec.section, i), r)
			rule.Section, rule.Index = sec.section, i
			s.Rules = append(s.Rules, rule)
		}
	}
	ingress := len(pb.Ingress)+len(pb.IngressDeny) > 0
	egress := len(pb.Egress)+len(pb.EgressDeny) > 0
	if c.ref.Kind == KindNetworkPolicy {
		if len(pb.IngressDeny)+len(pb.EgressDeny) > 0 {
			c.fail(path, "a NetworkPolicy has no deny rules")
		}
		if ingress && !pb.DefaultDenyIngress || egress && !pb.DefaultDenyEgress {
			c.fail(path, "a NetworkPolicy with rules of a direction isolates it")
		}
		return s
	}
	if !ingress && !egress {
		c.fail(path, "needs at least one rule in ingress, ingressDeny, egress or egressDeny")
	}
	if pb.DefaultDenyIngress && !ingress || pb.DefaultDenyEgress && !egress {
		c.fail(path, "default deny of a direction without a rule")
	}
	return s
}

// subject keeps a policy of a namespace to that namespace.
func (c *compiler) subject(path string, pb *eventpb.Selector) Selector {
	s, err := CompileSelector(pb)
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("%s: %w", path, err))
		return Selector{}
	}
	if KindNamespaced(c.ref.Kind) && !slices.ContainsFunc(s.reqs, func(r requirement) bool {
		return r.source == SourceK8s && r.key == KeyNamespace && r.op == eventpb.Requirement_IN &&
			len(r.values) == 1 && r.values[0] == c.ref.Namespace
	}) {
		c.fail(path, "must require %s:%s in (%s)", SourceK8s, KeyNamespace, c.ref.Namespace)
	}
	return s
}

func (c *compiler) rule(path string, pb *eventpb.Rule) Rule {
	if pb == nil {
		c.fail(path, "missing")
		return Rule{}
	}
	r := Rule{AnyPeer: pb.AnyPeer, AllPorts: len(pb.Ports) == 0 && !pb.NoPort}
	if pb.AnyPeer && len(pb.Peers) > 0 {
		c.fail(path, "any_peer and peers exclude each other")
	}
	if pb.NoPort && len(pb.Ports) > 0 {
		c.fail(path, "no_port and ports exclude each other")
	}
	if n := len(pb.Peers); n > maxPeers {
		c.fail(path+".peers", "%d of them, the most is %d", n, maxPeers)
		return r
	}
	if n := len(pb.Ports); n > maxPorts {
		c.fail(path+".ports", "%d of them, the most is %d", n, maxPorts)
		return r
	}
	for i, p := range pb.Peers {
		peer, err := compilePeer(p)
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("%s.peers[%d]: %w", path, i, err))
			continue
		}
		r.Peers = append(r.Peers, peer)
	}
	for i, p := range pb.Ports {
		port, err := compilePort(p)
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("%s.ports[%d]: %w", path, i, err))
			continue
		}
		r.Ports = append(r.Ports, port)
	}
	return r
}

func compilePeer(pb *eventpb.Peer) (Peer, error) {
	if pb == nil {
		return Peer{}, fmt.Errorf("%w: missing", ErrInvalid)
	}
	switch p := pb.Peer.(type) {
	case *eventpb.Peer_Endpoints:
		if p == nil {
			break
		}
		s, err := CompileSelector(p.Endpoints)
		if err != nil {
			return Peer{}, fmt.Errorf("endpoints: %w", err)
		}
		if s.IsEmpty() {
			return Peer{}, fmt.Errorf("endpoints: %w: a selector of peers needs a requirement; everyone is the entity all", ErrInvalid)
		}
		return Peer{Selector: &s}, nil
	case *eventpb.Peer_Cidr:
		if p == nil {
			break
		}
		return compileCIDR(p.Cidr)
	case *eventpb.Peer_Entity:
		if p == nil {
			break
		}
		e := Entity(p.Entity)
		if !e.Valid() {
			return Peer{}, fmt.Errorf("%w: unknown entity %q", ErrInvalid, p.Entity)
		}
		return Peer{Entity: e}, nil
	}
	return Peer{}, fmt.Errorf("%w: neither endpoints, cidr nor entity", ErrInvalid)
}

func compileCIDR(pb *eventpb.Cidr) (Peer, error) {
	if pb == nil {
		return Peer{}, fmt.Errorf("cidr: %w: missing", ErrInvalid)
	}
	if n := len(pb.Except); n > maxExcept {
		return Peer{}, fmt.Errorf("cidr.except: %w: %d of them, the most is %d", ErrInvalid, n, maxExcept)
	}
	prefix, problem := parseCanonicalCIDR(pb.Prefix)
	if problem != "" {
		return Peer{}, fmt.Errorf("cidr.prefix %q: %w: %s", pb.Prefix, ErrInvalid, problem)
	}
	p := Peer{CIDR: prefix}
	for _, s := range pb.Except {
		except, problem := parseCanonicalCIDR(s)
		if problem == "" && !within(except, prefix) {
			problem = "not inside " + prefix.String()
		}
		if problem != "" {
			return Peer{}, fmt.Errorf("cidr.except %q: %w: %s", s, ErrInvalid, problem)
		}
		p.Except = append(p.Except, except)
	}
	slices.SortFunc(p.Except, comparePrefix)
	p.Except = slices.Clip(outermost(p.Except))
	return p, nil
}

// parseCIDR reads "address/bits" and clears the host bits. It refuses a bare
// address and IPv4 written as IPv6.
func parseCIDR(s string) (_ netip.Prefix, problem string) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if _, err := netip.ParseAddr(s); err == nil {
			return netip.Prefix{}, "an address without a prefix length"
		}
		return netip.Prefix{}, "not of the form address/bits"
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, "an IPv4 range written as IPv6"
	}
	return p.Masked(), ""
}

func parseCanonicalCIDR(s string) (netip.Prefix, string) {
	p, problem := parseCIDR(s)
	if problem == "" && p.String() != s {
		problem = "not in canonical form, which is " + p.String()
	}
	return p, problem
}

// within tells whether every address of inner is in outer.
func within(inner, outer netip.Prefix) bool {
	return inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
}

// outermost drops, from sorted prefixes, those within another.
func outermost(sorted []netip.Prefix) []netip.Prefix {
	n := 0
	for _, p := range sorted {
		if n > 0 && within(p, sorted[n-1]) {
			continue
		}
		sorted[n] = p
		n++
	}
	return sorted[:n]
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func compilePort(pb *eventpb.Port) (Port, error) {
	if pb == nil {
		return Port{}, fmt.Errorf("%w: missing", ErrInvalid)
	}
	icmp := pb.Protocol == uint32(ProtoICMP) || pb.Protocol == uint32(ProtoICMPv6)
	if !icmp && pb.Protocol != uint32(ProtoTCP) && pb.Protocol != uint32(ProtoUDP) && pb.Protocol != uint32(ProtoSCTP) {
		return Port{}, fmt.Errorf("protocol: %w: %d is not 1, 6, 17, 58 or 132", ErrInvalid, pb.Protocol)
	}
	if pb.Name != "" {
		if icmp {
			return Port{}, fmt.Errorf("name: %w: ICMP has no named ports", ErrInvalid)
		}
		if !checkPortName(pb.Name) || strings.ToLower(pb.Name) != pb.Name {
			return Port{}, fmt.Errorf("name: %w: %q is not a lower-case port name", ErrInvalid, pb.Name)
		}
		if pb.First != 0 || pb.Last != 0 {
			return Port{}, fmt.Errorf("name: %w: a named port has no number", ErrInvalid)
		}
		return Port{Protocol: uint8(pb.Protocol), Name: pb.Name}, nil
	}
	if pb.First > pb.Last || pb.Last > 65535 {
		return Port{}, fmt.Errorf("first, last: %w: %d to %d is no range of ports", ErrInvalid, pb.First, pb.Last)
	}
	if icmp && pb.Last > 255 && (pb.First != 0 || pb.Last != 65535) {
		return Port{}, fmt.Errorf("first, last: %w: an ICMP type is 0 to 255", ErrInvalid)
	}
	return Port{Protocol: uint8(pb.Protocol), First: uint16(pb.First), Last: uint16(pb.Last)}, nil
}

// Key is canonical: two peers of the same selector, range and exceptions, or
// entity, in whatever order they were written, have the same Key; others have not.
func (p Peer) Key() string {
	switch {
	case p.Selector != nil:
		return "endpoints:" + p.Selector.String()
	case p.CIDR.IsValid():
		var b strings.Builder
		b.WriteString("cidr:" + p.CIDR.String())
		for i, e := range p.Except {
			if i == 0 {
				b.WriteString(" except ")
			} else {
				b.WriteByte(',')
			}
			b.WriteString(e.String())
		}
		return b.String()
	}
	return "entity:" + string(p.Entity)
}

// String is the port as people write it: "80/TCP", "8000-8080/UDP", "http/TCP",
// "any/SCTP", "8/ICMP".
func (p Port) String() string {
	proto := ProtocolName(p.Protocol)
	switch {
	case p.Name != "":
		return p.Name + "/" + proto
	case p.First == 0 && p.Last == 65535:
		return "any/" + proto
	case p.First == p.Last:
		return fmt.Sprintf("%d/%s", p.First, proto)
	}
	return fmt.Sprintf("%d-%d/%s", p.First, p.Last, proto)
}

// ProtocolName is the name of an IP protocol as policies write it, or its number.
func ProtocolName(p uint8) string {
	switch p {
	case ProtoICMP:
		return "ICMP"
	case ProtoTCP:
		return "TCP"
	case ProtoUDP:
		return "UDP"
	case ProtoICMPv6:
		return "ICMPV6"
	case ProtoSCTP:
		return "SCTP"
	}
	return fmt.Sprint(p)
}
