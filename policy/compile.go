package policy

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/varve-net/varve/log/eventpb"
)

// Compile checks a policy in the log's form, as if its bytes came from an enemy,
// and makes the immutable form of it. It shares no memory with set. The error is
// an ErrInvalid, or an ErrUnsupported if set holds a field of a later version; it
// joins every problem, each with its path. Nothing makes it panic.
func Compile(set *eventpb.PolicySet) (*Policy, error) {
	if set != nil {
		if field := unknownField(set.ProtoReflect()); field != "" {
			return nil, fmt.Errorf("policy: %s: field of a later version: %w", field, ErrUnsupported)
		}
	}
	return CompileStored(set)
}

// CompileStored is Compile of a policy that package log has decoded: it holds no field
// of a later version, and to look for one takes as long as all else.
func CompileStored(set *eventpb.PolicySet) (*Policy, error) {
	if set == nil {
		return nil, fmt.Errorf("policy: %w: missing", ErrInvalid)
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
	if problem := checkLogValue(pb.LogValue); problem != "" {
		c.fail(path+".log_value", "%s", problem)
	}
	s.Audit, s.Log = pb.Audit, pb.LogValue
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
			s.Rules = append(s.Rules, c.rule(fmt.Sprintf("%s.%s[%d]", path, sec.section, i), sec.section, i, r))
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

func (c *compiler) rule(path string, section Section, position int, pb *eventpb.Rule) Rule {
	if pb == nil {
		c.fail(path, "missing")
		return Rule{}
	}
	r := Rule{Section: section, Index: position, AnyPeer: pb.AnyPeer, AllPorts: len(pb.Ports) == 0 && !pb.NoPort}
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
		if peer.FQDN != (FQDNSelector{}) && section != SectionEgress {
			c.fail(fmt.Sprintf("%s.peers[%d].fqdn", path, i), "names are peers of egress rules only")
		}
		if peer.Group != nil && section.Denies() {
			c.fail(fmt.Sprintf("%s.peers[%d].aws_group", path, i), "a rule cannot deny a group")
		}
		r.Peers = append(r.Peers, peer)
	}
	for i, p := range pb.Ports {
		port, err := compilePort(p)
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("%s.ports[%d]: %w", path, i, err))
			continue
		}
		if port.DNS != nil && section != SectionEgress {
			c.fail(fmt.Sprintf("%s.ports[%d].dns", path, i), "DNS rules are for egress only")
		}
		r.Ports = append(r.Ports, port)
	}
	return r
}
