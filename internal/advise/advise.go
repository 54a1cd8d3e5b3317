// Package advise says what of a policy is legal but surely not meant, given the
// state that it is to stand in: what policy.Parse cannot tell from the text alone.
package advise

import (
	"fmt"
	"slices"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// Warning is about one policy of those that were given.
type Warning struct {
	Ref     policy.Ref
	Path    string // "spec.ingress[0].fromEndpoints"
	Problem string
	Remedy  string
}

// Warnings looks at policies that are to be set in the state of a View, in their
// order. It warns only of what is certain there: an endpoint that comes later may
// make a selector useful, but none is there now. What does not compile is left to
// whoever refuses it.
func Warnings(view fsm.View, sets []*eventpb.PolicySet) []Warning {
	a := adviser{labels: labelsOf(view)}
	var given []*policy.Policy
	replaced := map[policy.Ref]bool{}
	for _, set := range sets {
		if p, err := policy.Compile(set); err == nil {
			given = append(given, p)
			replaced[p.Ref] = true
		}
	}
	for _, p := range given {
		a.addDenies(p)
	}
	for p := range view.Policies() {
		if !replaced[p.Policy.Ref] {
			a.addDenies(p.Policy)
		}
	}
	for _, p := range given {
		a.policy(p)
	}
	return a.out
}

// labelsOf is what selectors are asked about: the labels of every endpoint, and of
// the reserved identities, which are always there.
func labelsOf(view fsm.View) (l known) {
	seen := map[uint32]bool{}
	for e := range view.Endpoints() {
		if id, ok := view.Identity(e.Identity); ok && !seen[id.ID] {
			seen[id.ID] = true
			l.endpoints = append(l.endpoints, id.Labels)
		}
	}
	for id := uint32(1); policy.ReservedLabels(id) != nil; id++ {
		l.reserved = append(l.reserved, policy.ReservedLabels(id))
	}
	return l
}

type known struct{ endpoints, reserved []policy.Labels }

type adviser struct {
	labels known
	denies []deny
	out    []Warning
}

// deny is a rule that denies, and whose subject it holds for.
type deny struct {
	ref     policy.Ref
	subject string // the selector's text: equal texts select alike
	rule    *policy.Rule
	spec    int
}

func (a *adviser) addDenies(p *policy.Policy) {
	for i := range p.Specs {
		spec := &p.Specs[i]
		for j := range spec.Rules {
			// What a spec in audit mode denies passes.
			if r := &spec.Rules[j]; r.Section.Denies() && !spec.Audit {
				a.denies = append(a.denies, deny{p.Ref, spec.Subject.String(), r, i})
			}
		}
	}
}

func (a *adviser) policy(p *policy.Policy) {
	for i := range p.Specs {
		spec := &p.Specs[i]
		at := "spec"
		if len(p.Specs) > 1 {
			at = fmt.Sprintf("specs[%d]", i)
		}
		if !slices.ContainsFunc(a.labels.endpoints, spec.Subject.Matches) {
			a.warn(p.Ref, at+"."+subjectField(p.Ref.Kind), "selects no endpoint that is there now",
				"compare it with `varve endpoint list`, or add the endpoint")
		}
		for j := range spec.Rules {
			r := &spec.Rules[j]
			path := fmt.Sprintf("%s.%s[%d]", at, r.Section, r.Index)
			a.peers(p.Ref, path, r)
			if r.Section.Denies() {
				continue
			}
			for _, d := range a.denies {
				if d.subject == spec.Subject.String() && d.rule.Section.Direction() == r.Section.Direction() && covers(d.rule, r) {
					a.warn(p.Ref, path, fmt.Sprintf("allows nothing: %s %s[%d] denies all of it, and a deny always wins", d.ref, d.rule.Section, d.rule.Index),
						"remove one of the two")
					break
				}
			}
		}
	}
}

// peers warns of selectors that match nobody.
func (a *adviser) peers(ref policy.Ref, path string, r *policy.Rule) {
	for i := range r.Peers {
		s := r.Peers[i].Selector
		if s == nil || slices.ContainsFunc(a.labels.endpoints, s.Matches) || slices.ContainsFunc(a.labels.reserved, s.Matches) {
			continue
		}
		a.warn(ref, path, fmt.Sprintf("its selector %s matches no endpoint that is there now", s),
			"compare it with `varve identity list`; without a namespace it speaks of the policy's own")
	}
}

func (a *adviser) warn(ref policy.Ref, path, problem, remedy string) {
	a.out = append(a.out, Warning{ref, path, problem, remedy})
}

func subjectField(k policy.Kind) string {
	if k == eventpb.PolicyKind_NETWORK_POLICY {
		return "podSelector"
	}
	return "endpointSelector"
}

// covers tells whether a deny takes every peer and port of an allow for certain.
// Peers are compared by what they select, as text: a false answer says nothing.
func covers(d, allow *policy.Rule) bool {
	return coversPeers(d, allow) && coversPorts(d, allow)
}

func coversPeers(d, allow *policy.Rule) bool {
	if everyone(d) {
		return true
	}
	if everyone(allow) || len(allow.Peers) == 0 {
		return false
	}
	for i := range allow.Peers {
		key := allow.Peers[i].Key()
		if !slices.ContainsFunc(d.Peers, func(p policy.Peer) bool { return p.Key() == key }) {
			return false
		}
	}
	return true
}

func everyone(r *policy.Rule) bool {
	return r.AnyPeer || slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return p.Entity == policy.EntityAll })
}

func coversPorts(d, allow *policy.Rule) bool {
	if d.AllPorts {
		return true
	}
	if allow.AllPorts || len(allow.Ports) == 0 {
		return false
	}
	for _, p := range allow.Ports {
		if !slices.ContainsFunc(d.Ports, func(q policy.Port) bool {
			return q.Protocol == p.Protocol && q.Name == p.Name && (p.Name != "" || q.First <= p.First && p.Last <= q.Last)
		}) {
			return false
		}
	}
	return true
}
