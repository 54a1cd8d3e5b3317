package projections

import (
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
)

// Need is how many rows the maps of a node must hold at once.
type Need struct {
	Endpoints, Addresses, Ranges, Classes, Policy int
}

// Preflight is what a node will need if policies are set, before anybody sets them:
// while the change goes on that is the rows of the tables in force, which are those
// of the View, and the new ones beside them. It costs what the subjects of the
// policies do, and that of Build only where new address ranges could matter, which
// divide the peers of everybody: fits tells whether the maps hold a need.
func Preflight(current *Tables, v fsm.View, opts Options, set []*policy.Policy, fits func(Need) bool) (Need, error) {
	return preflight(current, factsOf(v), opts, set, fits)
}

func preflight(current *Tables, f facts, opts Options, set []*policy.Policy, fits func(Need) bool) (Need, error) {
	touched := slices.Clone(set)
	for _, p := range set {
		at, known := slices.BinarySearchFunc(f.policies, p.Ref, func(have *fsm.Policy, ref policy.Ref) int { return have.Policy.Ref.Compare(ref) })
		next := &fsm.Policy{Policy: p, Revision: f.revision + 1}
		if known {
			touched = append(touched, f.policies[at].Policy)
			f.policies = slices.Replace(slices.Clone(f.policies), at, at+1, next)
		} else {
			f.policies = slices.Insert(slices.Clone(f.policies), at, next)
		}
	}
	f.subject = func(e *fsm.Endpoint, id *fsm.Identity) bool {
		return slices.ContainsFunc(touched, func(p *policy.Policy) bool { return selectsAny(p, id.Labels) })
	}
	f.rangesOnly = true // addresses of endpoints and nodes are in the tables in force
	t, err := build(f, current.Node, opts)
	if err != nil {
		return Need{}, err
	}
	need, ranges := current.beside(t)
	// A new range may be a class of its own wherever a range around it is named: at
	// most a row in each scope, and those of a class in each table.
	bound := need
	bound.Classes += ranges * 2 * current.Endpoints.Len()
	bound.Policy += ranges * current.Policy.Len()
	if ranges == 0 || fits(bound) {
		return need, nil
	}
	f.subject, f.rangesOnly = nil, false
	if t, err = build(f, current.Node, opts); err != nil {
		return Need{}, err
	}
	need, _ = current.beside(t)
	return need, nil
}

func selectsAny(p *policy.Policy, labels policy.Labels) bool {
	return slices.ContainsFunc(p.Specs, func(s policy.Spec) bool { return s.Subject.Matches(labels) })
}

// Need is what the maps must hold for t alone.
func (t *Tables) Need() Need {
	need, _ := t.beside(new(Tables))
	return need
}

// PreflightState is Preflight of another state altogether, before it is one.
func PreflightState(current *Tables, v fsm.View, opts Options) (Need, error) {
	t, err := build(factsOf(v), current.Node, opts)
	if err != nil {
		return Need{}, err
	}
	need, _ := current.beside(t)
	return need, nil
}

// beside is the rows of t and those of others that it lacks, and how many of these
// are ranges of addresses.
func (t *Tables) beside(other *Tables) (need Need, ranges int) {
	need = Need{
		Endpoints: t.Endpoints.Len(),
		Classes:   t.Classes.Len() + lacking(&t.Classes, &other.Classes),
		Policy:    t.Policy.Len() + lacking(&t.Policy, &other.Policy),
	}
	for row := range t.IPCache.All() {
		need.count(row.Key)
	}
	for row := range other.IPCache.All() {
		if _, ok := t.IPCache.Get(row.Key); !ok {
			need.count(row.Key)
			ranges++
		}
	}
	return need, ranges
}

func (n *Need) count(p Prefix) {
	if p.PrefixLen == 8*uint32(len(abi.Addr{})) {
		n.Addresses++
	} else {
		n.Ranges++
	}
}

// lacking is how many keys of other t has not.
func lacking[K, V comparable](t, other *Table[K, V]) int {
	n := 0
	for row := range other.All() {
		if _, ok := t.Get(row.Key); !ok {
			n++
		}
	}
	return n
}
