// Package log defines varve's log: the event envelope, its codec and hash chain,
// and the interfaces through which the rest of the system appends and reads.
// It is pure: no clock, no disk, no network. Package log/raftlog replicates it,
// package log/history keeps it.
package log

import (
	"context"

	"github.com/varve-net/varve/log/eventpb"
)

// Revision numbers the events of a log: dense, from 1, assigned at Apply. 0 is
// the empty log.
type Revision uint64

// Hash is a SHA-256 value: a leaf, or the chain up to some revision.
type Hash [32]byte

// Outcome is what Apply made of an event.
type Outcome uint8

// Outcomes. Applied and Rejected take a revision; Conflict and Repeat do not.
const (
	OutcomeApplied  Outcome = 1 // the state holds it
	OutcomeRejected Outcome = 2 // recorded, without effect; Result.Reason says why
	OutcomeConflict Outcome = 3 // the stream was not at the expected revision
	OutcomeRepeat   Outcome = 4 // the request id was seen before; Result is the first one's
)

// Record is a committed event: the bytes as stored and what Apply assigned.
type Record struct {
	Revision Revision
	// TimeNS is the effective time, nanoseconds since the Unix epoch; it never
	// goes back from one revision to the next.
	TimeNS  int64
	Outcome Outcome // OutcomeApplied or OutcomeRejected
	Reason  string  // of a rejection
	// Event is the encoded eventpb.Event as appended. Never re-encode it: its
	// SHA-256 is the leaf.
	Event []byte
	// Chain is SHA-256(chain of Revision-1 || SHA-256(Event)).
	Chain Hash
}

// Result answers one append.
type Result struct {
	Outcome  Outcome
	Revision Revision // of the event; for a conflict the stream's actual revision
	// Head is the log's last revision once this append had been applied.
	Head   Revision
	Reason string
}

// Appender appends events. An append returns when the event is durable on a
// quorum and applied here. The implementation stamps Event.TimeUnixNs.
type Appender interface {
	// Append proposes events as one atomic group in their order: they get
	// consecutive positions in the log. Each gets its own Result. The error says
	// that the group may not have been committed at all (ErrNotLeader,
	// ErrNoSpace, a context's end ...); after a context's end it may yet commit,
	// and a retry with the same request ids is safe.
	Append(ctx context.Context, events ...*eventpb.Event) ([]Result, error)
}

// Proposer is an Appender that takes the next group before the one before is
// durable. Groups get their revisions in the order in which they were proposed.
type Proposer interface {
	// Propose is Append without the wait. Its error is one for which Append would
	// have proposed nothing.
	Propose(ctx context.Context, events ...*eventpb.Event) (Pending, error)
}

// Pending is a group that was proposed.
type Pending interface {
	// Wait returns what Append would have. It is called once.
	Wait(ctx context.Context) ([]Result, error)
	// Ready reports whether Wait will return at once.
	Ready() bool
}

// Reader reads committed records.
type Reader interface {
	// Head is the last committed and applied revision and its chain value.
	Head() (Revision, Hash)
	// First is the oldest revision still kept.
	First() Revision
	// Read calls fn for each record from first to last inclusive, in order, and
	// stops at the first error of fn, which it returns. ErrCompacted if first is
	// no longer kept. The record's Event is valid during the call only.
	Read(ctx context.Context, first, last Revision, fn func(Record) error) error
	// Subscribe calls fn for each record after the given revision, first those
	// that exist and then each as it is committed, in order, without gap or
	// repeat, until ctx ends or fn fails. fn is the back-pressure: nothing is
	// dropped, a slow fn only falls behind.
	Subscribe(ctx context.Context, after Revision, fn func(Record) error) error
}
