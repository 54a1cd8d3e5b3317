package projections

import (
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// table is the rules of one direction of some subjects.
type table struct {
	id    uint64 // 0: no rule
	rules []*rule
	scope *scope
	// classLens covers the nodes of all rules that name peers by items, whether or
	// not a class has rows of them now, so that it changes with the table only: rows
	// that come later are found without a change of the endpoint's row.
	classLens uint32
	baseLens  uint32 // of rules that name peers by base classes
	anyLens   uint32
	asksDNS   bool // some rule does
	byName    bool // some rule opens addresses by names
	// byItem has the indexes of the rules that use an item, once somebody asked.
	byItem map[string][]int
}

// newTable names the rules of a set.
func (e env) newTable(rs *ruleSet, s *scope, ids *ids) *table {
	t := &table{rules: rs.rules, scope: s}
	if len(t.rules) == 0 {
		return t
	}
	var c content
	c.num(uint64(rs.direction)).flag(e.hostServesAPI).num(uint64(len(t.rules)))
	for _, r := range t.rules {
		r.describe(&c)
		t.asksDNS = t.asksDNS || r.asksDNS()
		t.byName = t.byName || r.learned != ""
		for _, n := range r.nodes {
			if r.bases != 0 {
				t.baseLens |= n.lens()
			}
			if len(r.items) > 0 || r.learned != "" {
				t.classLens |= n.lens()
			}
		}
		if len(r.named) > 0 {
			t.classLens |= node{protocol: 1, bits: 16}.lens()
		}
	}
	t.id = ids.id("table", &c)
	for _, d := range t.anyRows() {
		t.anyLens |= d.node.lens()
	}
	return t
}

// describe adds all that tells r from another rule. Whether it denies is told by
// its section.
func (r *rule) describe(c *content) {
	c.num(uint64(r.ref.Policy.Kind)).str(r.ref.Policy.Namespace).str(r.ref.Policy.Name)
	c.num(uint64(r.ref.Spec)).num(uint64(r.ref.Section)).num(uint64(r.ref.Index)).str(r.ref.Implicit)
	c.flag(r.any).flag(r.audit).num(uint64(r.bases))
	c.num(uint64(len(r.items)))
	for _, key := range r.items {
		c.str(key)
	}
	c.num(uint64(len(r.nodes)))
	for _, n := range r.nodes {
		c.num(uint64(n.protocol)<<24 | uint64(n.bits)<<16 | uint64(n.port))
	}
	c.num(uint64(len(r.named)))
	for _, key := range r.named {
		c.str(key)
	}
	c.str(string(r.learned))
	if r.from == nil {
		return
	}
	for i := range r.from.Ports {
		if p := &r.from.Ports[i]; p.DNS != nil {
			c.str(p.String())
		}
	}
}

// anyRows is the rows that hold for every peer.
func (t *table) anyRows() []decision {
	var claims []claim
	for i, r := range t.rules {
		if r.any {
			claims = r.claimNodes(claims, i)
		}
	}
	return resolve(claims, func(n node) *policy.DNSRules { return t.dnsAt(nil, n) })
}

// baseRows is the rows for peers of a base class, those of rules for every peer not
// included.
func (t *table) baseRows(base uint64) []decision {
	var claims []claim
	for i, r := range t.rules {
		if r.bases.has(base) {
			claims = r.claimNodes(claims, i)
		}
	}
	return resolve(claims, func(n node) *policy.DNSRules { return t.dnsAt(&class{id: base, base: base}, n) })
}

// classRows is the rows for peers of class c, those of its base class and of rules
// for every peer not included.
func (t *table) classRows(c *class) []decision {
	var claims []claim
	for _, i := range t.rulesOf(c) {
		r := t.rules[i]
		if r.names(c) {
			claims = r.claimNodes(claims, i)
		}
		for _, key := range r.named {
			for _, port := range c.ports(key) {
				n := node{protocol: t.scope.items[key].protocol, bits: 16, port: port}
				claims = append(claims, claim{node: n, deny: r.deny, audit: r.audit, rule: i})
			}
		}
	}
	return resolve(claims, func(n node) *policy.DNSRules { return t.dnsAt(c, n) })
}

// rulesOf is the rules that use an item of c's, in order.
func (t *table) rulesOf(c *class) []int {
	if t.byItem == nil {
		t.byItem = make(map[string][]int)
		for i, r := range t.rules {
			for _, key := range r.items {
				t.byItem[key] = append(t.byItem[key], i)
			}
			for _, key := range r.named {
				t.byItem[key] = append(t.byItem[key], i)
			}
		}
	}
	var out []int
	for _, token := range c.tokens {
		out = append(out, t.byItem[token.item]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// takes tells whether the rule, if it is not for every peer, is for those of c.
func (r *rule) takes(c *class) bool {
	return r.bases.has(c.base) || r.names(c) || c.learned != "" && c.learned == r.learned
}

// names tells whether one of the rule's items is for peers of c.
func (r *rule) names(c *class) bool { return slices.ContainsFunc(r.items, c.has) }

func (r *rule) claimNodes(claims []claim, index int) []claim {
	for _, n := range r.nodes {
		claims = append(claims, claim{node: n, deny: r.deny, audit: r.audit, rule: index})
	}
	return claims
}

// rows is all policy rows of t.
func (t *table) rows(ids *ids) []namedRow {
	out := t.keyed(abi.ClassAny, t.anyRows(), ids)
	for _, base := range bases {
		out = append(out, t.keyed(base, t.baseRows(base), ids)...)
	}
	for _, c := range t.scope.classes {
		out = append(out, t.keyed(c.id, t.classRows(c), ids)...)
	}
	for _, s := range t.learnedSets() {
		out = append(out, t.keyed(ids.learnedClass(s), t.learnedRows(s), ids)...)
	}
	return out
}

// namedRow is a policy row and, if it admits DNS questions, the names.
type namedRow struct {
	*PolicyRow
	names NameSet
}

// question is the row for the names.
func (r namedRow) question() *questionRow {
	return &questionRow{Key: QuestionKey{r.Value.Row}, Value: r.names, Cause: r.Cause}
}

func (t *table) keyed(class uint64, decisions []decision, ids *ids) []namedRow {
	out := make([]namedRow, 0, len(decisions))
	for _, d := range decisions {
		key := policyKey(t.id, class, d.node)
		row := namedRow{PolicyRow: &PolicyRow{
			Key:   key,
			Value: abi.PolicyValue{Row: ids.row(key, d), Verdict: d.verdict, Flags: d.flags()},
			Cause: t.cause(d.rules),
		}}
		if d.dns != nil {
			row.Value.Flags |= abi.PolicyDNS
			row.names = nameSet(d.dns.Names)
		}
		out = append(out, row)
	}
	return out
}

// cause is the rules at these indexes and the revisions of their policies.
func (t *table) cause(rules []int) Cause {
	var c Cause
	for _, i := range rules {
		c.Rules = append(c.Rules, t.rules[i].ref)
		if rev := t.rules[i].revision; rev != 0 {
			c.Events = append(c.Events, rev)
		}
	}
	c.Events = ascending(c.Events)
	return c
}

// ascending sorts revisions, drops repeats and zeros, in place.
func ascending(revs []log.Revision) []log.Revision {
	slices.Sort(revs)
	revs = slices.Compact(revs)
	if len(revs) > 0 && revs[0] == 0 {
		revs = revs[1:]
	}
	return revs
}
