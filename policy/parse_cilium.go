package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

var specSchema = schema{
	fields: []string{
		"endpointSelector", "ingress", "egress", "ingressDeny", "egressDeny",
		"enableDefaultDeny", "description", "labels", "log",
	},
	unsupported: map[string]refusal{
		"nodeSelector": {"endpoints have policies and nodes have none", "select endpoints with endpointSelector"},
	},
}

var (
	defaultDenySchema = schema{fields: []string{"ingress", "egress"}}
	logSchema         = schema{fields: []string{"value"}}
)

// side is what differs between the rules of the two directions.
type side struct {
	endpoints, cidr, cidrSet, entities, groups string
	fqdns                                      string // "": names are no peers
	allow, deny                                schema
	foreign                                    []string // kinds of peers that are not supported
}

var sides = [...]side{
	Ingress: newSide("from", "", map[string]refusal{
		"fromRequires": {"a requirement narrows every other rule", "repeat it in the selectors of fromEndpoints"},
		"fromNodes":    {"nodes have no labels to select by", "write fromEntities: [remote-node]"},
	}),
	Egress: newSide("to", "toFQDNs", map[string]refusal{
		"toRequires": {"a requirement narrows every other rule", "repeat it in the selectors of toEndpoints"},
		"toNodes":    {"nodes have no labels to select by", "write toEntities: [remote-node]"},
		"toServices": {"policy knows no services", "select the service's pods with toEndpoints, or its addresses with toCIDR"},
	}),
}

func newSide(prefix, fqdns string, refused map[string]refusal) side {
	s := side{
		endpoints: prefix + "Endpoints", cidr: prefix + "CIDR", cidrSet: prefix + "CIDRSet",
		entities: prefix + "Entities", groups: prefix + "Groups", fqdns: fqdns,
		foreign: []string{prefix + "Nodes"},
	}
	fields := []string{s.endpoints, s.cidr, s.cidrSet, s.entities, "toPorts", "icmps"}
	deny := maps.Clone(refused)
	deny[s.groups] = refusal{"a group that is not resolved would deny no one", "write its ranges out"}
	allow := maps.Clone(refused)
	allow["authentication"] = refusal{"connections are not authenticated", "remove it, which allows them without"}
	s.deny = schema{fields: fields, unsupported: deny}
	allowed := append(slices.Clone(fields), s.groups)
	if fqdns != "" {
		allowed = append(allowed, fqdns)
		deny[fqdns] = refusal{"a deny rule cannot name DNS names", "deny ranges with toCIDR"}
		s.foreign = append(s.foreign, "toServices")
	}
	s.allow = schema{fields: allowed, unsupported: allow}
	return s
}

// ciliumSpecs reads spec and specs; if both are there, spec comes first.
func (w *walker) ciliumSpecs(o object, ref Ref) []*eventpb.PolicySpec {
	var out []*eventpb.PolicySpec
	spec, p := o.get("spec")
	if spec != nil {
		out = append(out, w.ciliumSpec(spec, p, ref))
	}
	specs, ps := o.get("specs")
	if specs != nil {
		for i, s := range w.list(specs, ps, maxSpecs) {
			out = append(out, w.ciliumSpec(s, index(ps, i), ref))
		}
	}
	w.warnUnlearned(out, o)
	if spec == nil && (specs == nil || specs.kind == kindList && len(specs.items) == 0) {
		w.invalid(o.v.line, p, "missing", "give spec or specs")
	}
	return out
}

// warnUnlearned warns of names that a policy allows and lets nobody ask the proxy for:
// without an answer there is no address.
func (w *walker) warnUnlearned(specs []*eventpb.PolicySpec, o object) {
	named, asks := false, false
	for _, s := range specs {
		for _, r := range s.Egress {
			named = named || slices.ContainsFunc(r.Peers, func(p *eventpb.Peer) bool { return p.GetFqdn() != nil })
			asks = asks || slices.ContainsFunc(r.Ports, func(p *eventpb.Port) bool { return p.Dns != nil })
		}
	}
	if named && !asks {
		w.warn(o.v.line, o.path, "toFQDNs without rules.dns on port 53: unless another policy has it, no address is learned and nothing is allowed",
			"add an egress rule to the DNS server with rules.dns")
	}
}

func (w *walker) ciliumSpec(v *value, path string, ref Ref) *eventpb.PolicySpec {
	pb := &eventpb.PolicySpec{}
	o, ok := w.object(v, path, specSchema)
	if !ok {
		return pb
	}
	subjectInit := w.endpointSelector(o, ref, pb)
	if d, p := o.get("description"); d != nil {
		pb.Description, _ = w.str(d, p)
	}
	if l, p := o.get("labels"); l != nil {
		w.list(l, p, maxRequirements)
	}
	if l, p := o.get("log"); l != nil {
		pb.LogValue = w.logValue(l, p)
	}
	given := 0
	for _, s := range []struct {
		section Section
		rules   *[]*eventpb.Rule
	}{
		{SectionIngress, &pb.Ingress},
		{SectionEgress, &pb.Egress},
		{SectionIngressDeny, &pb.IngressDeny},
		{SectionEgressDeny, &pb.EgressDeny},
	} {
		list, p := o.get(s.section.String())
		if list == nil {
			continue
		}
		if list.kind != kindList || len(list.items) > 0 {
			given++
		}
		w.ports = nil
		for i, r := range w.list(list, p, maxRules) {
			*s.rules = append(*s.rules, w.ciliumRule(r, index(p, i), s.section, ref, subjectInit))
		}
		w.voidHTTP(w.ports)
	}
	if given == 0 {
		w.invalid(v.line, path, "needs at least one rule in ingress, ingressDeny, egress or egressDeny",
			"to deny everything, write ingress: [{}] or egress: [{}]")
	}
	pb.DefaultDenyIngress = len(pb.Ingress)+len(pb.IngressDeny) > 0
	pb.DefaultDenyEgress = len(pb.Egress)+len(pb.EgressDeny) > 0
	if d, p := o.get("enableDefaultDeny"); d != nil {
		w.defaultDeny(d, p, pb)
	}
	return pb
}

func (w *walker) logValue(v *value, path string) string {
	o, ok := w.object(v, path, logSchema)
	if !ok {
		return ""
	}
	text, p := o.get("value")
	if text == nil {
		return ""
	}
	s, ok := w.str(text, p)
	if problem := checkLogValue(s); ok && problem != "" {
		w.invalid(text.line, p, problem, "shorten it")
	}
	return s
}

// endpointSelector sets the subject. It tells whether that selects by
// reserved:init.
func (w *walker) endpointSelector(o object, ref Ref, pb *eventpb.PolicySpec) bool {
	node, np := o.get("nodeSelector")
	sel, p := o.get("endpointSelector")
	switch {
	case node != nil && sel != nil:
		w.invalid(node.line, np, "excludes endpointSelector", "write two specs")
	case node != nil && ref.Namespace != "":
		w.invalid(node.line, np, "a CiliumNetworkPolicy cannot select nodes", "use endpointSelector")
	case node == nil && sel == nil:
		w.invalid(o.v.line, p, "missing", "write endpointSelector: {} for every endpoint of the policy's scope")
	}
	if sel == nil {
		return false
	}
	ts, ok := w.selector(sel, p, ciliumKey)
	if !ok {
		return false
	}
	pb.Subject = w.ciliumSubject(ts, ref)
	return ts.names("init", SourceReserved)
}

// defaultDeny can lift the isolation of a direction, but cannot make one where no
// rule is.
func (w *walker) defaultDeny(v *value, path string, pb *eventpb.PolicySpec) {
	o, ok := w.object(v, path, defaultDenySchema)
	if !ok {
		return
	}
	for _, d := range []struct {
		name string
		deny *bool
	}{{"ingress", &pb.DefaultDenyIngress}, {"egress", &pb.DefaultDenyEgress}} {
		b, p := o.get(d.name)
		if b == nil {
			continue
		}
		on, ok := w.boolean(b, p)
		if ok && on && !*d.deny {
			w.warn(b.line, p, "without a rule of that direction this isolates nothing", "write "+d.name+": [{}] to deny all")
		}
		*d.deny = *d.deny && on
	}
}

// ciliumRule reads one rule.
//
//	no peer field, no ports   no one: the rule only isolates
//	no peer field, ports      everyone
//	peer fields               those that they select; no one if any list is empty
func (w *walker) ciliumRule(v *value, path string, section Section, ref Ref, subjectInit bool) *eventpb.Rule {
	pb := &eventpb.Rule{}
	s := &sides[section.Direction()]
	sch := s.allow
	if section.Denies() {
		sch = s.deny
	}
	o, ok := w.object(v, path, sch)
	if !ok {
		return pb
	}
	w.onePeerKind(o, s)
	given, empty := false, ""
	for _, read := range []struct {
		field string
		peer  func(v *value, path string) *eventpb.Peer
	}{
		{s.endpoints, func(v *value, path string) *eventpb.Peer {
			ts, ok := w.selector(v, path, ciliumKey)
			if !ok {
				return nil
			}
			return endpointsPeer(w.ciliumPeer(ts, ref, subjectInit))
		}},
		{s.cidr, w.cidrPeer},
		{s.cidrSet, w.cidrSetPeer},
		{s.entities, w.entityPeer},
		{s.groups, w.groupPeer},
		{s.fqdns, w.fqdnPeer},
	} {
		list, p := o.get(read.field)
		if list == nil || section.Denies() && slices.Contains([]string{s.groups, s.fqdns}, read.field) {
			continue
		}
		given = true
		if list.kind == kindList && len(list.items) == 0 {
			empty = p
			if read.field == s.groups || read.field == s.fqdns {
				w.unsupported(list.line, p, "an empty list is not supported: Cilium takes it for everyone", "remove it, or write out whom it selects")
			}
		}
		for i, item := range w.list(list, p, maxPeers) {
			if peer := read.peer(item, index(p, i)); peer != nil {
				pb.Peers = append(pb.Peers, peer)
			}
		}
	}
	if empty != "" && len(pb.Peers) > 0 {
		w.warn(v.line, empty, "an empty list selects no one, whoever the rule's other list names", "remove it, or write out whom it selects")
		pb.Peers = nil
	}
	ports := w.ciliumPorts(o, section, pb)
	pb.AnyPeer = !given && ports
	return pb
}

// onePeerKind refuses a rule that names peers in two ways, supported or not.
func (w *walker) onePeerKind(o object, s *side) {
	var used []string
	line := 0
	for _, name := range append([]string{s.endpoints, s.cidr, s.cidrSet, s.entities, s.groups, s.fqdns}, s.foreign...) {
		if v, _ := o.get(name); v != nil && len(v.items) > 0 {
			used = append(used, name)
			line = v.line
		}
	}
	if len(used) > 1 {
		w.invalid(line, o.path, strings.Join(used, " and ")+" in one rule", "write one rule for each")
	}
}

func endpointsPeer(s *eventpb.Selector) *eventpb.Peer {
	return &eventpb.Peer{Peer: &eventpb.Peer_Endpoints{Endpoints: s}}
}

func (w *walker) entityPeer(v *value, path string) *eventpb.Peer {
	s, ok := w.str(v, path)
	if !ok {
		return nil
	}
	if !Entity(s).Valid() {
		names := make([]string, 0, 16)
		for _, e := range Entities() {
			names = append(names, string(e))
		}
		w.invalid(v.line, path, fmt.Sprintf("unknown entity %q", s), "use one of "+strings.Join(names, ", "))
		return nil
	}
	return &eventpb.Peer{Peer: &eventpb.Peer_Entity{Entity: s}}
}

func (w *walker) cidrPeer(v *value, path string) *eventpb.Peer {
	return w.cidr(v, path, nil, "", false)
}

var cidrSetSchema = schema{
	fields: []string{"cidr", "except"},
	unsupported: map[string]refusal{
		"cidrGroupRef":      {"there are no CiliumCIDRGroups", "write the ranges out"},
		"cidrGroupSelector": {"there are no CiliumCIDRGroups", "write the ranges out"},
	},
}

func (w *walker) cidrSetPeer(v *value, path string) *eventpb.Peer {
	o, ok := w.object(v, path, cidrSetSchema)
	if !ok {
		return nil
	}
	cidr, p := o.get("cidr")
	if cidr == nil {
		ref, _ := o.get("cidrGroupRef")
		sel, _ := o.get("cidrGroupSelector")
		if ref == nil && sel == nil {
			w.invalid(v.line, p, "missing", "")
		}
		return nil
	}
	except, ep := o.get("except")
	return w.cidr(cidr, p, except, ep, false)
}

// cidr reads a range and its exceptions, which may be nil. strict refuses an
// exception as large as the range, as Kubernetes does.
func (w *walker) cidr(v *value, path string, except *value, exceptPath string, strict bool) *eventpb.Peer {
	outer, ok := w.prefix(v, path)
	if !ok {
		return nil
	}
	pb := &eventpb.Cidr{Prefix: outer.String()}
	if except != nil {
		for i, item := range w.list(except, exceptPath, maxExcept) {
			p := index(exceptPath, i)
			inner, ok := w.prefix(item, p)
			if !ok {
				continue
			}
			if !within(inner, outer) || strict && inner == outer {
				w.invalid(item.line, p, fmt.Sprintf("%s does not lie inside %s", inner, outer), "")
				continue
			}
			pb.Except = append(pb.Except, inner.String())
		}
	}
	slices.Sort(pb.Except)
	pb.Except = slices.Compact(pb.Except)
	return &eventpb.Peer{Peer: &eventpb.Peer_Cidr{Cidr: pb}}
}

func (w *walker) prefix(v *value, path string) (_ netip.Prefix, ok bool) {
	s, ok := w.str(v, path)
	if !ok {
		return netip.Prefix{}, false
	}
	p, problem := parseCIDR(s)
	if problem != "" {
		w.invalid(v.line, path, strconv.Quote(s)+" is "+problem, "write it like 192.0.2.0/24 or 2001:db8::/32")
		return netip.Prefix{}, false
	}
	if raw, err := netip.ParsePrefix(s); err == nil && raw != p {
		w.warn(v.line, path, s+" has host bits set and is taken as "+p.String(), "write it so")
	}
	return p, true
}
