package projections

import (
	"slices"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/policy"
)

// NameSet is selectors of DNS names, as their canonical texts, sorted, with a line
// feed between each two. A selector holds none.
type NameSet string

// EveryName is the set of what every name is in.
const EveryName NameSet = "*"

// Selectors are the texts of the set: policy.FQDNSelector.String gives them.
func (s NameSet) Selectors() []string {
	if s == "" {
		return nil
	}
	return strings.Split(string(s), "\n")
}

// String is the set as people read it.
func (s NameSet) String() string { return "names " + strings.Join(s.Selectors(), ", ") }

func nameSet(selectors []policy.FQDNSelector) NameSet {
	texts := make([]string, len(selectors))
	for i, s := range selectors {
		texts[i] = s.String()
	}
	return NameSet(strings.Join(sortedUnique(texts), "\n"))
}

// QuestionKey is the key of what may be asked for where a policy row with
// abi.PolicyDNS admits.
type QuestionKey struct{ Row uint64 }

// LearnedKey is the key of the names by which a table's rules open addresses, to
// those who asked for them.
type LearnedKey struct{ Table, Class uint64 }

// Both tables are for the DNS proxy; no BPF map has them.
type (
	questionRow = Row[QuestionKey, NameSet]
	learnedRow  = Row[LearnedKey, NameSet]
)

var (
	questionCodec = codec[QuestionKey, NameSet]{
		"questions",
		func(b []byte, k QuestionKey) []byte { return le.AppendUint64(b, k.Row) }, appendNameSet,
		func(a, b QuestionKey) bool { return before64(a.Row, b.Row) },
	}
	learnedCodec = codec[LearnedKey, NameSet]{
		"learned",
		func(b []byte, k LearnedKey) []byte { return le.AppendUint64(le.AppendUint64(b, k.Table), k.Class) }, appendNameSet,
		func(a, b LearnedKey) bool {
			if a.Table != b.Table {
				return before64(a.Table, b.Table)
			}
			return before64(a.Class, b.Class)
		},
	}
)

func appendNameSet(b []byte, s NameSet) []byte { return append(b, s...) }

// namesOf is the names that rule r opens addresses by; empty if by none.
func namesOf(r *policy.Rule) NameSet {
	if r.Section.Denies() || r.Section.Direction() != policy.Egress {
		return ""
	}
	var selectors []policy.FQDNSelector
	for i := range r.Peers {
		if f := r.Peers[i].FQDN; f != (policy.FQDNSelector{}) {
			selectors = append(selectors, f)
		}
	}
	return nameSet(selectors)
}

// Opens is the classes of a policy table's rules that open the addresses of a name, to
// who has learned them: ascending.
func (t *Tables) Opens(table uint64, name string) []uint64 {
	var out []uint64
	for row := range t.Learned.All() {
		if row.Key.Table == table && row.Value.Matches(name) {
			out = append(out, row.Key.Class)
		}
	}
	return out
}

// Matches tells whether some selector of the set selects a name.
func (s NameSet) Matches(name string) bool {
	return slices.ContainsFunc(s.Selectors(), func(text string) bool {
		matchName, matchPattern := text, ""
		if strings.Contains(text, "*") {
			matchName, matchPattern = "", text
		}
		selector, err := policy.ParseFQDN(matchName, matchPattern)
		return err == nil && selector.Matches(name)
	})
}

// learnedSets is the sets of names by which rules of t open addresses, each once,
// in order.
func (t *table) learnedSets() []NameSet {
	var sets []NameSet
	for _, r := range t.rules {
		if r.learned != "" && !r.any && len(r.nodes) > 0 {
			sets = append(sets, r.learned)
		}
	}
	slices.Sort(sets)
	return slices.Compact(sets)
}

// learnedClass is the class of the addresses that an endpoint knows by names of a
// set: the same for all tables that have a rule with the set.
func (x *ids) learnedClass(s NameSet) uint64 {
	var c content
	h := x.hash("learned", c.str(string(s)))
	return x.claim("learned", abi.ClassOf(abi.ClassAny, le.Uint64(h[:])), h)
}

// learnedRows is the policy rows for the class of a set of names.
func (t *table) learnedRows(s NameSet) []decision {
	var claims []claim
	for i, r := range t.rules {
		if r.learned == s {
			claims = r.claimNodes(claims, i)
		}
	}
	c := &class{learned: s}
	return resolve(claims, func(n node) *policy.DNSRules { return t.dnsAt(c, n) })
}

// learnedCause is the rules that open addresses by the set.
func (t *table) learnedCause(s NameSet) Cause {
	var rules []int
	for i, r := range t.rules {
		if r.learned == s {
			rules = append(rules, i)
		}
	}
	return t.cause(rules)
}
