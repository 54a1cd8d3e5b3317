package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

// Selector selects label sets. It is immutable, and a pure function of the
// labels: the selector without requirement selects every set, so Parse gives
// each peer selector the requirements (a namespace, the cluster) that keep it to
// what its user meant, and Compile refuses a peer selector that has none.
type Selector struct {
	reqs []requirement // sorted, no two alike
	text string
}

type requirement struct {
	source string
	key    string
	op     eventpb.Requirement_Operator
	values []string // sorted, no two alike
}

// CompileSelector checks a selector and compiles it. The error is an ErrInvalid
// and names the requirement. A nil selector is refused.
func CompileSelector(pb *eventpb.Selector) (Selector, error) {
	if pb == nil {
		return Selector{}, fmt.Errorf("%w: no selector", ErrInvalid)
	}
	if n := len(pb.Requirements); n > maxRequirements {
		return Selector{}, fmt.Errorf("%w: %d requirements, the most is %d", ErrInvalid, n, maxRequirements)
	}
	reqs := make([]requirement, 0, len(pb.Requirements))
	for i, r := range pb.Requirements {
		c, err := compileRequirement(r)
		if err != nil {
			return Selector{}, fmt.Errorf("requirements[%d]: %w", i, err)
		}
		reqs = append(reqs, c)
	}
	slices.SortFunc(reqs, compareRequirement)
	reqs = slices.CompactFunc(reqs, func(a, b requirement) bool { return compareRequirement(a, b) == 0 })
	s := Selector{reqs: slices.Clip(reqs)}
	s.text = s.render()
	return s, nil
}

func compileRequirement(r *eventpb.Requirement) (requirement, error) {
	if r == nil {
		return requirement{}, fmt.Errorf("%w: empty", ErrInvalid)
	}
	source, key, ok := strings.Cut(r.Key, ":")
	if !ok {
		return requirement{}, fmt.Errorf("%w: key %q has no source; write it like k8s:app", ErrInvalid, r.Key)
	}
	if problem := checkSource(source); problem != "" {
		return requirement{}, fmt.Errorf("%w: key %q: %s", ErrInvalid, r.Key, problem)
	}
	if problem := checkSelectorKey(key); problem != "" {
		return requirement{}, fmt.Errorf("%w: key %q: %s", ErrInvalid, r.Key, problem)
	}
	switch r.Operator {
	case eventpb.Requirement_IN, eventpb.Requirement_NOT_IN:
		if len(r.Values) == 0 {
			return requirement{}, fmt.Errorf("%w: key %q: %s needs a value", ErrInvalid, r.Key, r.Operator)
		}
	case eventpb.Requirement_EXISTS, eventpb.Requirement_DOES_NOT_EXIST:
		if len(r.Values) != 0 {
			return requirement{}, fmt.Errorf("%w: key %q: %s takes no value", ErrInvalid, r.Key, r.Operator)
		}
	default:
		return requirement{}, fmt.Errorf("%w: key %q: unknown operator %d", ErrInvalid, r.Key, r.Operator)
	}
	if n := len(r.Values); n > maxValues {
		return requirement{}, fmt.Errorf("%w: key %q: %d values, the most is %d", ErrInvalid, r.Key, n, maxValues)
	}
	for _, v := range r.Values {
		if problem := checkLabelValue(v); problem != "" {
			return requirement{}, fmt.Errorf("%w: key %q: value %q: %s", ErrInvalid, r.Key, v, problem)
		}
	}
	values := slices.Clone(r.Values)
	slices.Sort(values)
	return requirement{source, key, r.Operator, slices.Clip(slices.Compact(values))}, nil
}

func compareRequirement(a, b requirement) int {
	return cmp.Or(
		cmp.Compare(a.source, b.source),
		cmp.Compare(a.key, b.key),
		cmp.Compare(a.op, b.op),
		slices.Compare(a.values, b.values),
	)
}

// Matches tells whether every requirement holds for ls. NotIn and DoesNotExist
// hold for a set that lacks the key. It allocates nothing.
func (s Selector) Matches(ls Labels) bool {
	for i := range s.reqs {
		if !s.reqs[i].matches(ls) {
			return false
		}
	}
	return true
}

func (r *requirement) matches(ls Labels) bool {
	switch r.op {
	case eventpb.Requirement_EXISTS:
		_, ok := ls.Get(r.source, r.key)
		return ok
	case eventpb.Requirement_DOES_NOT_EXIST:
		_, ok := ls.Get(r.source, r.key)
		return !ok
	case eventpb.Requirement_IN:
		return r.hasValue(ls)
	case eventpb.Requirement_NOT_IN:
		return !r.hasValue(ls)
	}
	return false
}

func (r *requirement) hasValue(ls Labels) bool {
	if r.source != SourceAny {
		v, ok := ls.Get(r.source, r.key)
		return ok && contains(r.values, v)
	}
	for i := range ls {
		if ls[i].Key == r.key && contains(r.values, ls[i].Value) {
			return true
		}
	}
	return false
}

func contains(sorted []string, v string) bool {
	if len(sorted) <= 8 {
		return slices.Contains(sorted, v)
	}
	_, ok := slices.BinarySearch(sorted, v)
	return ok
}

// Within yields, for each requirement that a label of one source has one of some
// values, that label. A set that has none of the values does not match, so an
// index of sets by label finds all that can. The values are sorted; do not write
// to them.
func (s Selector) Within(yield func(source, key string, values []string) bool) {
	for i := range s.reqs {
		r := &s.reqs[i]
		if r.op == eventpb.Requirement_IN && r.source != SourceAny && !yield(r.source, r.key, r.values) {
			return
		}
	}
}

// IsEmpty tells whether s has no requirement and so matches every label set.
func (s Selector) IsEmpty() bool { return len(s.reqs) == 0 }

// String is the canonical form: two selectors with the same requirements, in
// any order and with their values in any order, have the same String, and others
// have not. "k8s:app in (db,web),!k8s:canary". The empty selector is "{}".
func (s Selector) String() string {
	if s.text == "" {
		return "{}"
	}
	return s.text
}

// render relies on compileRequirement: neither keys nor values hold any of the
// characters that join them here.
func (s Selector) render() string {
	var b strings.Builder
	for i, r := range s.reqs {
		if i > 0 {
			b.WriteByte(',')
		}
		key := r.source + ":" + r.key
		switch r.op {
		case eventpb.Requirement_EXISTS:
			b.WriteString(key)
		case eventpb.Requirement_DOES_NOT_EXIST:
			b.WriteString("!" + key)
		case eventpb.Requirement_IN:
			b.WriteString(key + " in (" + strings.Join(r.values, ",") + ")")
		case eventpb.Requirement_NOT_IN:
			b.WriteString(key + " notin (" + strings.Join(r.values, ",") + ")")
		}
	}
	return b.String()
}
