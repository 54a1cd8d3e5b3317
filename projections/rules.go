package projections

import (
	"slices"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// allowLocalhost names the rule that lets the local host into every container.
const allowLocalhost = "allow-localhost"

// rule is a rule of a policy as one direction of a table holds it.
type rule struct {
	ref      RuleRef
	revision log.Revision // of the policy; 0 for an implicit rule
	deny     bool
	audit    bool // of a policy in audit mode: a deny drops nothing
	// Peers: any, or the base classes whose bit is set in bases, or those that
	// have the token of one of items.
	any   bool
	bases baseSet
	items []string // keys, sorted
	// Addresses that the subject learned by asking for one of these names.
	learned NameSet
	// Ports: nodes, and in egress those that a peer's named port has. A named
	// port is an item as well, since the class of the peer must tell its number.
	nodes []node
	named []string     // keys of items, sorted
	from  *policy.Rule // nil: an implicit rule
}

// ruleSet is the rules of one direction of a subject, in the order of policies,
// specs and rules, and the selectors that they use.
type ruleSet struct {
	direction policy.Direction
	rules     []*rule
	enforced  bool // some policy isolates the direction
	audited   bool // some policy in audit mode would
	items     map[string]item
	revisions []log.Revision // of the policies that select the subject, ascending
}

// selection is a spec of a policy whose subject selector selects.
type selection struct {
	policy *fsm.Policy
	spec   int
}

// selectionsOf is the specs of a policy that select labels, after those of out.
func selectionsOf(out []selection, p *fsm.Policy, labels policy.Labels) []selection {
	for i := range p.Policy.Specs {
		if p.Policy.Specs[i].Subject.Matches(labels) {
			out = append(out, selection{p, i})
		}
	}
	return out
}

// selectRules is the rules that apply to a subject. Ports are the subject's own:
// ingress rules resolve named ports with them, egress rules ignore them.
func (e env) selectRules(d policy.Direction, labels policy.Labels, ports []fsm.NamedPort, opts Options) *ruleSet {
	var selected []selection
	for _, p := range e.policies {
		selected = selectionsOf(selected, p, labels)
	}
	return e.rulesOf(d, selected, ports, opts)
}

// rulesOf is selectRules for the specs that select the subject, in order.
func (e env) rulesOf(d policy.Direction, selected []selection, ports []fsm.NamedPort, opts Options) *ruleSet {
	s := &ruleSet{direction: d, items: make(map[string]item)}
	for _, x := range selected {
		p, spec := x.policy, &x.policy.Policy.Specs[x.spec]
		s.revisions = append(s.revisions, p.Revision)
		s.enforced = s.enforced || spec.DefaultDeny[d] && !spec.Audit
		s.audited = s.audited || spec.DefaultDeny[d] && spec.Audit
		for j := range spec.Rules {
			if r := &spec.Rules[j]; r.Section.Direction() == d {
				ref := RuleRef{Policy: p.Policy.Ref, Spec: x.spec, Section: r.Section, Index: r.Index, Log: spec.Log}
				out := e.rule(s, r, ref, p.Revision, ports)
				out.audit = spec.Audit
				s.rules = append(s.rules, out)
			}
		}
	}
	slices.Sort(s.revisions)
	s.revisions = slices.Compact(s.revisions)
	if d == policy.Ingress && (s.enforced || s.audited) && !opts.LocalhostByPolicy {
		s.rules = append(s.rules, &rule{
			ref:   RuleRef{Implicit: allowLocalhost},
			bases: e.entityBases(policy.EntityHost),
			nodes: []node{{}},
		})
	}
	return s
}

func (e env) rule(s *ruleSet, r *policy.Rule, ref RuleRef, revision log.Revision, ports []fsm.NamedPort) *rule {
	out := &rule{ref: ref, revision: revision, deny: r.Section.Denies(), from: r}
	for i := range r.Peers {
		p := &r.Peers[i]
		out.any = out.any || p.Entity == policy.EntityAll
		out.bases |= e.entityBases(p.Entity)
	}
	out.learned = namesOf(r)
	if out.any = out.any || r.AnyPeer; out.any {
		out.bases = 0
	}
	switch {
	case r.AllPorts:
		out.nodes = []node{{}}
	case s.direction == policy.Ingress:
		out.nodes = numericNodes(resolvePorts(r.Ports, ports))
	default:
		out.nodes = numericNodes(r.Ports)
		for i := range r.Ports {
			if r.Ports[i].Name != "" {
				out.addNamed(s, r, &r.Ports[i])
			}
		}
		out.named = sortedUnique(out.named)
	}
	if len(out.nodes) == 0 || out.any {
		return out
	}
	for i := range r.Peers {
		// A group has no member until it is resolved.
		if p := &r.Peers[i]; p.Selector != nil || p.CIDR.IsValid() {
			out.items = append(out.items, s.add(item{peer: p}))
		}
	}
	out.items = sortedUnique(out.items)
	return out
}

// addNamed adds an egress rule's named port for each of its peers. Only pods have
// named ports, so of entities only those matter that hold all pods.
func (r *rule) addNamed(s *ruleSet, from *policy.Rule, port *policy.Port) {
	if r.any || r.bases.has(basePod) {
		r.named = append(r.named, s.add(item{name: port.Name, protocol: port.Protocol}))
		return
	}
	for i := range from.Peers {
		if p := &from.Peers[i]; p.Selector != nil {
			r.named = append(r.named, s.add(item{peer: p, name: port.Name, protocol: port.Protocol}))
		}
	}
}

func sortedUnique(keys []string) []string {
	slices.Sort(keys)
	return slices.Compact(keys)
}

// add notes an item of the scope and gives its key.
func (s *ruleSet) add(it item) string {
	key := it.key()
	s.items[key] = it
	return key
}

// numericNodes is the nodes of all ports that have numbers, without repeats.
func numericNodes(ports []policy.Port) []node {
	var out []node
	for _, p := range ports {
		if p.Name == "" {
			out = append(out, rangeNodes(p.Protocol, p.First, p.Last)...)
		}
	}
	slices.SortFunc(out, compareNodes)
	return slices.Compact(out)
}

// resolvePorts puts a pod's numbers in the place of names; names that the pod
// lacks go.
func resolvePorts(ports []policy.Port, named []fsm.NamedPort) []policy.Port {
	out := make([]policy.Port, 0, len(ports))
	for _, p := range ports {
		if p.Name == "" {
			out = append(out, p)
			continue
		}
		for _, n := range named {
			if n.Name == p.Name && n.Protocol == p.Protocol {
				out = append(out, policy.Port{Protocol: p.Protocol, First: n.Port, Last: n.Port})
			}
		}
	}
	return out
}
