package fsm

import (
	"slices"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// ChangeKind says of which table a row changed.
type ChangeKind uint8

// Kinds of changes.
const (
	ChangeNamespace ChangeKind = iota + 1
	ChangeNode
	ChangeIdentity
	ChangeEndpoint
	ChangePolicy
	ChangeName
)

// Change names a row that an event made, changed or removed. What it was and is
// now, the two Views tell.
type Change struct {
	Revision log.Revision
	Kind     ChangeKind

	policyKind policy.Kind
	identity   uint32
	namespace  string
	name       string
	dns        string
}

// Endpoint is the row's name if it is an endpoint, and the endpoint that asked if
// it is a name.
func (c Change) Endpoint() EndpointRef { return EndpointRef{c.namespace, c.name} }

// DNSName is the row's name, beside its Endpoint, if it is one that was asked for.
func (c Change) DNSName() string { return c.dns }

// Policy is the row's name if it is a policy.
func (c Change) Policy() policy.Ref {
	return policy.Ref{Kind: c.policyKind, Namespace: c.namespace, Name: c.name}
}

// Name is the row's name if it is a namespace or a node.
func (c Change) Name() string { return c.name }

// Identity is the row's number if it is an identity.
func (c Change) Identity() uint32 { return c.identity }

// journalChanges is how many changes a State remembers at least: more than any
// reader that keeps up falls behind by, and 1 MiB at most.
const journalChanges = 8192

// journal remembers the newest changes. It follows from nothing that a replica
// shares: it is in no digest and in no snapshot.
//
//	older  [ old ........ ]  changes  [ ...... new ]
//	         ^ all with Revision > after          ^ Views end here
//
// Only the State appends. What a View can see of the slices is never written again.
type journal struct {
	// lineage is the State's own: revisions of another one are not comparable.
	lineage *lineage
	// now is the revision that changes get; 0 before the first event, so that
	// loading a snapshot is no change.
	now   log.Revision
	after log.Revision
	// changes has up to journalChanges; then they become older, and the older ones are
	// forgotten.
	older, changes []Change
	noted          uint64 // changes, forgotten ones too
	// A View can see of the slice.
	olderSeen, seen bool
}

type lineage struct{ _ byte }

func newJournal() journal { return journal{lineage: new(lineage)} }

// begin is called before an event may change rows.
func (j *journal) begin(now log.Revision) {
	if j.now == 0 {
		j.after = now - 1
	}
	j.now = now
}

func (j *journal) note(c Change) {
	if j.now == 0 {
		return
	}
	c.Revision = j.now
	j.noted++
	if len(j.changes) == journalChanges {
		forgotten := j.older
		if n := len(forgotten); n > 0 {
			j.after = forgotten[n-1].Revision
		}
		if j.olderSeen || forgotten == nil {
			forgotten = make([]Change, 0, journalChanges)
		}
		j.older, j.changes = j.changes, forgotten[:0]
		j.olderSeen, j.seen = j.seen, false
	}
	j.changes = append(j.changes, c)
}

// look is called before a View is taken.
func (j *journal) look() { j.olderSeen, j.seen = true, true }

// ChangesSince lists the rows that events after old's revision changed, derived
// ones included: a namespace's new labels change its endpoints and identities. A
// row may be listed more than once, and one may be as it was in the end. Not
// listed: a change of nothing but Identity.Refs. The list is in the order of
// revisions; do not write to it.
//
// false: old is of another State (before a restart, or a snapshot from another
// node), is newer, or is too old. Then compare the Views as a whole.
func (v View) ChangesSince(old View) ([]Change, bool) {
	to, from := v.tables(), old.tables()
	if to.lineage == nil || to.lineage != from.lineage || from.revision > to.revision {
		return nil, false
	}
	if from.revision == to.revision {
		return nil, true
	}
	if from.revision < to.after {
		return nil, false
	}
	changes := newer(to.changes, from.revision)
	if len(changes) < len(to.changes) {
		return changes, true
	}
	return slices.Concat(newer(to.older, from.revision), changes), true
}

// newer is the changes after a revision.
func newer(changes []Change, than log.Revision) []Change {
	first := len(changes)
	for first > 0 && changes[first-1].Revision > than {
		first--
	}
	return changes[first:]
}

// Cost is how many rows events have changed since the View's State was made, derived
// ones included: the time of a replay is in proportion to it rather than to the number
// of events, of which one may change every endpoint of a namespace. It says nothing of
// the log: a State that was read from a snapshot, or resumed, begins at 0.
func (v View) Cost() uint64 { return v.tables().noted }
