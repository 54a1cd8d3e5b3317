package verdict

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// Name is what policy says of a DNS name, beside what holds for whatever address
// it may have.
type Name struct {
	// Selected are the subject's rules that select the name.
	Selected []Rule
	// Known is what the subject knows of the name, by address, and Passes tells of each
	// whether a connection to it passes, by whatever rule.
	Known  []Fact
	Passes []bool
	// Judged is the address that the answer is of, one of those known; the zero Addr: it
	// is of an address of the world that no rule names, since none is known.
	Judged netip.Addr
}

// maxName is the longest DNS name, in characters (RFC 1035, 2.3.4).
const maxName = 253

func dnsName(s string) (Party, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	}) || strings.Contains(name, "..") || name[0] == '.' {
		return Party{}, fmt.Errorf("%q: %w; give NAMESPACE/NAME of an endpoint, an address, reserved:IDENTITY or a DNS name", s, ErrParty)
	}
	return Party{Name: name + "."}, nil
}

// askName answers for the addresses that the subject knows by the name: for the first
// that it may reach, else the first of those that have not expired. If there is none it
// answers for an address of the world that no rule names.
func askName(view fsm.View, tables TablesOf, q Question) (*Answer, error) {
	name := &Name{Selected: selecting(view, q)}
	var answer *Answer
	if e := q.From.Endpoint; e != nil {
		of := func(f Fact) bool { return f.Name != q.To.Name }
		name.Known = Join(FactsOfName(view, e, q.To.Name), slices.DeleteFunc(slices.Clone(q.More), of))
	}
	name.Passes = make([]bool, len(name.Known))
	for i, f := range name.Known {
		asked := q
		asked.To = addressed(view, f.Addr)
		a, err := Ask(view, tables, asked)
		if errors.Is(err, ErrFamily) {
			continue
		}
		if err != nil {
			return nil, err
		}
		name.Passes[i] = a.Allowed()
		if f.ExpiresNS > cmp.Or(q.TimeNS, view.TimeNS()) && (answer == nil || !answer.Allowed() && a.Allowed()) {
			answer, name.Judged = a, f.Addr
		}
	}
	if answer == nil {
		var err error
		if answer, err = askWorld(view, tables, q); err != nil {
			return nil, err
		}
	}
	answer.Question, answer.Name = q, name
	return answer, nil
}

// askWorld answers for an address of the world that no rule names. Which addresses a
// name has is no fact of policy.
func askWorld(view fsm.View, tables TablesOf, q Question) (*Answer, error) {
	world := Party{Identity: abi.IdentityWorldIPv4}
	if e := q.From.Endpoint; q.From.Addr.Is6() || e != nil && !q.From.Addr.IsValid() && !e.IPv4.IsValid() {
		world.Identity = abi.IdentityWorldIPv6
	}
	q.To = world
	return Ask(view, tables, q)
}

// selecting is the egress rules of a question's subject that select its name and take
// its port, in the order of policies.
func selecting(view fsm.View, q Question) []Rule {
	if q.From.Endpoint == nil {
		return nil
	}
	id, ok := view.Identity(q.From.Endpoint.Identity)
	if !ok {
		return nil
	}
	var out []Rule
	for p := range view.Policies() {
		for i := range p.Policy.Specs {
			spec := &p.Policy.Specs[i]
			if !spec.Subject.Matches(id.Labels) {
				continue
			}
			for j := range spec.Rules {
				if r := &spec.Rules[j]; selects(r, q) {
					ref := projections.RuleRef{Policy: p.Policy.Ref, Spec: i, Section: r.Section, Index: r.Index}
					out = append(out, Rule{ref, p.Revision})
				}
			}
		}
	}
	return out
}

func selects(r *policy.Rule, q Question) bool {
	name := func(p policy.Peer) bool { return p.FQDN.Matches(q.To.Name) }
	port := func(p policy.Port) bool {
		return p.Name == "" && p.Protocol == q.Protocol && p.First <= q.Port && q.Port <= p.Last
	}
	return r.Section.Direction() == policy.Egress && slices.ContainsFunc(r.Peers, name) &&
		(r.AllPorts || slices.ContainsFunc(r.Ports, port))
}
