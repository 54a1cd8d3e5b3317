// Package projections derives from a View the exact content that a node's BPF
// maps should have. Every function is pure; every row carries its cause.
//
// Ids of 64 bits (tables, scopes, classes, CIDR peers, rows) are hashes of what
// they stand for, seeded with the cluster's name, so that a row is the same on
// every replica and after every restart. What is local to a boot (interface
// indexes) is left zero here and bound by package dataplane.
package projections

import (
	"fmt"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// RuleRef points at the rule of a policy that made a row.
type RuleRef struct {
	Policy  policy.Ref
	Spec    int // index in `specs`, 0 for `spec`
	Section policy.Section
	Index   int    // in the section
	Log     string // of the spec: what its verdicts are tagged with
	// Implicit names a rule that no policy holds, e.g. "allow-localhost"; then
	// the other fields are zero.
	Implicit string
}

// String is the rule as people find it: "cnp/default/web ingress[0]", with
// specs[1] in between for a later one of several, or an implicit rule's name.
func (r RuleRef) String() string {
	if r.Implicit != "" {
		return r.Implicit
	}
	if r.Spec > 0 {
		return fmt.Sprintf("%s specs[%d].%s[%d]", r.Policy, r.Spec, r.Section, r.Index)
	}
	return fmt.Sprintf("%s %s[%d]", r.Policy, r.Section, r.Index)
}

// Cause says why a row exists: the events it follows from and the rules. It stays
// in user space.
type Cause struct {
	Events []log.Revision // ascending
	Rules  []RuleRef
}

// Row is one row of a table.
type Row[K comparable, V comparable] struct {
	Key   K
	Value V
	Cause Cause
}

// EndpointKey is the logical key of the endpoint map; dataplane puts the
// interface's index in its place.
type EndpointKey struct {
	ID uint32
}

// ClassIn is a class of a scope.
type ClassIn struct{ Scope, Class uint64 }

// ClassCause is why a row of Classes exists: the events of its peer's identity, and
// the rules that use what the peers of its class match, with their policies' events.
// All rows of a class in a scope share these: another policy that uses the same
// selectors then changes the reason of a class, and not the rows of all its peers.
func (t *Tables) ClassCause(row *Row[abi.ClassKey, abi.ClassValue]) Cause {
	reason, ok := t.Reasons.Get(ClassIn{row.Key.Scope, row.Value.Class})
	if !ok {
		return row.Cause
	}
	return Cause{Events: ascending(slices.Concat(reason.Cause.Events, row.Cause.Events)), Rules: reason.Cause.Rules}
}

// Prefix is the logical key of the ipcache; dataplane puts full-length prefixes
// into the exact map and the others into the trie.
type Prefix = abi.IPCacheLPMKey

// Tables is all that a node's maps should hold at one revision.
type Tables struct {
	Node     string
	Revision log.Revision

	Endpoints Table[EndpointKey, abi.EndpointValue]
	IPCache   Table[Prefix, abi.IPCacheValue]
	Classes   Table[abi.ClassKey, abi.ClassValue]
	Policy    Table[abi.PolicyKey, abi.PolicyValue]

	// Reasons are the rules behind the rows of Classes, which carry no more than
	// their peer's events: see ClassCause. No map has them, nor any digest.
	Reasons Table[ClassIn, struct{}]

	// What the DNS proxy has to know beside the maps.
	Questions Table[QuestionKey, NameSet]
	Learned   Table[LearnedKey, NameSet]

	// Names explain the hashed ids to people: a class as its selectors, a CIDR
	// peer as its prefix, a table as that of its subjects
	// with the lowest identity. Not part of any digest.
	Names map[uint64]string
}

// Options adjust how policy is read. The zero Options are Cilium's defaults.
type Options struct {
	// LocalhostByPolicy admits the local host to a container only where policy
	// does (allow-localhost=policy). By default it may always enter, unless a
	// deny rule says otherwise.
	LocalhostByPolicy bool
}
