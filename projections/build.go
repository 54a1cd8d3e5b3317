package projections

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// Build computes from scratch all that the maps of a node should hold. It is a
// pure function: the same View, node and options give the same tables.
// ErrUnknownNode if the node is not a member, ErrCollision if two contents have
// one id.
//
// The steps, each a function of the ones before it and of nothing else:
//
//	endpoints, policies -> ruleSet per subject -> table, scope
//	endpoints, identities, prefixes of scopes -> universe
//	item x universe -> matches
//	scope x matches -> classes
//	table x classes -> policy rows
func Build(v fsm.View, node string, opts Options) (*Tables, error) {
	return build(factsOf(v), node, opts)
}

// BuildEndpoint is Build for the node of one endpoint, of which it makes no more
// than that endpoint's verdicts need: its row, the classes and policy rows of its
// two directions, and an ipcache with the prefixes that its rules name. What it has
// of the first three is as in Build. ErrUnknownEndpoint if the View has none.
func BuildEndpoint(v fsm.View, ref fsm.EndpointRef, opts Options) (*Tables, error) {
	e, ok := v.Endpoint(ref)
	if !ok {
		return nil, fmt.Errorf("endpoint %s: %w", ref, ErrUnknownEndpoint)
	}
	f := factsOf(v)
	f.subject = func(other *fsm.Endpoint, _ *fsm.Identity) bool { return other == e }
	return build(f, e.Node, opts)
}

func factsOf(v fsm.View) facts {
	return facts{
		cluster:   v.Cluster(),
		revision:  v.Revision(),
		nodes:     slices.Collect(v.Nodes()),
		endpoints: slices.Collect(v.Endpoints()),
		policies:  slices.Collect(v.Policies()),
		identity:  v.Identity,
	}
}

// facts is what Build takes from a View, in the View's order.
type facts struct {
	cluster   string
	revision  log.Revision
	nodes     []*fsm.Node
	endpoints []*fsm.Endpoint
	policies  []*fsm.Policy
	identity  func(uint32) (*fsm.Identity, bool)
	// subject tells which of the node's endpoints get their tables; nil: all.
	subject func(*fsm.Endpoint, *fsm.Identity) bool
	// rangesOnly leaves endpoints and nodes out of the ipcache.
	rangesOnly bool
}

func build(f facts, node string, opts Options) (*Tables, error) {
	i := slices.IndexFunc(f.nodes, func(n *fsm.Node) bool { return n.Name == node && !n.Left })
	if i < 0 {
		return nil, fmt.Errorf("node %s: %w", node, ErrUnknownNode)
	}
	b := &builder{
		env:      env{policies: f.policies, hostServesAPI: f.nodes[i].KubeAPIServer, auditMode: f.nodes[i].AuditMode},
		opts:     opts,
		ids:      newIDs(f.cluster),
		node:     node,
		wanted:   f.subject,
		subjects: make(map[string]*subject),
		tables:   make(map[uint64]*table),
		scopes:   make(map[uint64]*scope),
		names:    make(map[uint64]string),

		namesakes: make(map[uint64]uint32),
	}
	for _, e := range f.endpoints {
		id, ok := f.identity(e.Identity)
		if !ok {
			return nil, fmt.Errorf("endpoint %s/%s, identity %d: %w", e.Ref.Namespace, e.Ref.Name, e.Identity, ErrUnknownIdentity)
		}
		b.addEndpoint(e, id)
	}
	b.nameBases()
	b.divideScopes()
	out := &Tables{Node: node, Revision: f.revision, Names: b.names}
	var err error
	if out.Endpoints, err = NewEndpoints(b.endpointRows()); err != nil {
		return nil, err
	}
	if f.rangesOnly {
		b.endpoints, f.nodes = nil, nil
	}
	if out.IPCache, err = NewIPCache(b.ipcacheRows(f.nodes)); err != nil {
		return nil, err
	}
	classes, reasons := b.classRows()
	if out.Classes, err = NewClasses(classes); err != nil {
		return nil, err
	}
	if out.Reasons, err = newTable(&reasonCodec, reasons); err != nil {
		return nil, err
	}
	policies, questions, learned := b.policyRows()
	if out.Policy, err = NewPolicy(policies); err != nil {
		return nil, err
	}
	if out.Questions, err = NewQuestions(questions); err != nil {
		return nil, err
	}
	if out.Learned, err = NewLearned(learned); err != nil {
		return nil, err
	}
	return out, b.ids.err
}

// builder carries what the steps of Build hand on.
type builder struct {
	env  env
	opts Options
	ids  *ids
	node string
	// wanted tells which endpoints of the node are subjects; nil: all.
	wanted func(*fsm.Endpoint, *fsm.Identity) bool

	endpoints []endpoint // of the cluster, by namespace and name
	subjects  map[string]*subject
	tables    map[uint64]*table // of local subjects
	scopes    map[uint64]*scope
	universes [2]*universe // by direction
	cidrs     map[netip.Prefix]Cause
	names     map[uint64]string
	namesakes map[uint64]uint32 // of a table, the identity that it is named after
}

// endpoint is an endpoint with what was found for it.
type endpoint struct {
	*fsm.Endpoint
	identity *fsm.Identity
	peer     uint64
	subjects [2]*subject // by direction; nil if the endpoint is remote
}

// subject is one direction of some endpoints that no rule tells apart.
type subject struct {
	table     *table
	enforced  bool // what no row decides is denied
	audited   bool // it would be, by a policy in audit mode
	revisions []log.Revision
}

func (b *builder) addEndpoint(e *fsm.Endpoint, id *fsm.Identity) {
	ep := endpoint{Endpoint: e, identity: id, peer: b.ids.endpointPeer(id.ID, e.NamedPorts)}
	if e.Node == b.node && (b.wanted == nil || b.wanted(e, id)) {
		ep.subjects[policy.Egress] = b.subject(policy.Egress, id, nil)
		ep.subjects[policy.Ingress] = b.subject(policy.Ingress, id, e.NamedPorts)
	}
	b.endpoints = append(b.endpoints, ep)
}

func (b *builder) subject(d policy.Direction, id *fsm.Identity, ports []fsm.NamedPort) *subject {
	key := fmt.Sprint(d, id.ID, ports)
	if s, ok := b.subjects[key]; ok {
		return s
	}
	rs := b.env.selectRules(d, id.Labels, ports, b.opts)
	sc := b.env.newScope(rs, b.ids)
	if known, ok := b.scopes[sc.id]; ok {
		sc = known
	}
	t := b.env.newTable(rs, sc, b.ids)
	if known, ok := b.tables[t.id]; ok {
		t = known
	} else if t.id != 0 {
		b.scopes[sc.id] = sc
		b.tables[t.id] = t
	}
	if first, ok := b.namesakes[t.id]; t.id != 0 && (!ok || id.ID < first) {
		b.namesakes[t.id] = id.ID
		b.names[t.id] = tableName(d, id)
	}
	s := &subject{table: t, enforced: rs.enforced, audited: rs.audited, revisions: rs.revisions}
	b.subjects[key] = s
	return s
}

func tableName(d policy.Direction, id *fsm.Identity) string {
	return d.String() + " of " + id.Labels.String()
}

// nameBases names the classes that are told by a peer's number alone.
func (b *builder) nameBases() {
	b.names[abi.ClassAny] = "everyone"
	for _, base := range bases {
		b.names[base] = b.env.reservedLabels(base).String()
	}
	b.names[basePod] = "pods"
}

// divideScopes finds the classes of every scope.
func (b *builder) divideScopes() {
	b.cidrs = b.usedPrefixes()
	cidrs := slices.SortedFunc(maps.Keys(b.cidrs), comparePrefixes)
	variants := b.variants()
	for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
		u := b.env.newUniverse(d, variants, cidrs, b.ids)
		b.universes[d] = u
		matches := make(map[string][]match)
		for _, id := range slices.Sorted(maps.Keys(b.scopes)) {
			s := b.scopes[id]
			if s.direction != d || s.id == 0 {
				continue
			}
			for _, key := range s.keys {
				if _, ok := matches[key]; !ok {
					matches[key] = u.matches(s.items[key])
				}
			}
			s.divide(u, matches, b.ids)
		}
	}
}

// usedPrefixes is every prefix that a rule of a local subject names, exceptions
// included, with those rules.
func (b *builder) usedPrefixes() map[netip.Prefix]Cause {
	out := make(map[netip.Prefix]Cause)
	for _, id := range slices.Sorted(maps.Keys(b.tables)) {
		t := b.tables[id]
		for i, r := range t.rules {
			for _, key := range r.items {
				p := t.scope.items[key].peer
				if !p.CIDR.IsValid() {
					continue
				}
				for _, prefix := range append([]netip.Prefix{p.CIDR}, p.Except...) {
					out[prefix] = join(out[prefix], t.cause([]int{i}))
				}
			}
		}
	}
	return out
}

// variants is every identity in use with each of its sets of named ports.
func (b *builder) variants() []variant {
	out := make([]variant, 0, len(b.endpoints))
	for _, e := range b.endpoints {
		out = append(out, variant{e.identity, e.peer, e.NamedPorts})
	}
	slices.SortStableFunc(out, func(a, b variant) int {
		return cmp.Or(cmp.Compare(a.identity.ID, b.identity.ID), cmp.Compare(a.number, b.number))
	})
	return slices.CompactFunc(out, func(a, b variant) bool { return a.number == b.number })
}

// policyRows is the rows of all tables, and the names that belong to them.
func (b *builder) policyRows() (rows []*PolicyRow, questions []*questionRow, learned []*learnedRow) {
	for _, id := range slices.Sorted(maps.Keys(b.tables)) {
		t := b.tables[id]
		for _, r := range t.rows(b.ids) {
			rows = append(rows, r.PolicyRow)
			if r.Value.Flags&abi.PolicyDNS != 0 {
				questions = append(questions, r.question())
			}
		}
		for _, s := range t.learnedSets() {
			class := b.ids.learnedClass(s)
			b.names[class] = s.String()
			learned = append(learned, &learnedRow{Key: LearnedKey{t.id, class}, Value: s, Cause: t.learnedCause(s)})
		}
	}
	return rows, questions, learned
}

// classRows is the peers' rows of all scopes, and the reasons of their classes.
func (b *builder) classRows() (rows []*classRow, reasons []*reasonRow) {
	causes := b.itemCauses()
	for _, id := range slices.Sorted(maps.Keys(b.scopes)) {
		s := b.scopes[id]
		for _, c := range s.classes {
			var cause Cause
			for _, t := range c.tokens {
				cause = join(cause, causes[s][t.item])
			}
			reasons = append(reasons, &reasonRow{Key: ClassIn{s.id, c.id}, Cause: cause})
			b.names[c.id] = joinTokens(c.tokens) + " (" + b.names[c.base] + ")"
		}
		for _, m := range s.members {
			p := b.universes[s.direction].peers[m.peer]
			rows = append(rows, &classRow{
				Key:   abi.ClassKey{Scope: s.id, Peer: p.number},
				Value: abi.ClassValue{Class: m.class.id},
				Cause: Cause{Events: p.events},
			})
		}
	}
	return rows, reasons
}

// itemCauses is, for each item of each scope, the rules that use it.
func (b *builder) itemCauses() map[*scope]map[string]Cause {
	out := make(map[*scope]map[string]Cause)
	for _, id := range slices.Sorted(maps.Keys(b.tables)) {
		t := b.tables[id]
		of := out[t.scope]
		if of == nil {
			of = make(map[string]Cause)
			out[t.scope] = of
		}
		for i, r := range t.rules {
			cause := t.cause([]int{i})
			for _, key := range r.items {
				of[key] = join(of[key], cause)
			}
			for _, key := range r.named {
				of[key] = join(of[key], cause)
			}
		}
	}
	return out
}

// join is both causes as one.
func join(a, b Cause) Cause {
	out := Cause{
		Events: ascending(slices.Concat(a.Events, b.Events)),
		Rules:  slices.Concat(a.Rules, b.Rules),
	}
	slices.SortFunc(out.Rules, compareRuleRefs)
	out.Rules = slices.Compact(out.Rules)
	return out
}

func compareRuleRefs(a, b RuleRef) int {
	return cmp.Or(
		a.Policy.Compare(b.Policy),
		cmp.Compare(a.Spec, b.Spec),
		cmp.Compare(a.Section, b.Section),
		cmp.Compare(a.Index, b.Index),
		cmp.Compare(a.Implicit, b.Implicit),
	)
}
