package log

import (
	"errors"
	"fmt"
)

// Errors that callers tell apart with errors.Is. What wraps them says more.
var (
	// ErrCompacted: a read asks for a revision older than the oldest that is kept.
	ErrCompacted = errors.New("revision is no longer kept")
	// ErrNotLeader: an append reached a node that may not propose. Retry, with
	// the same request ids, at the leader.
	ErrNotLeader = errors.New("not the leader")
	// ErrNoSpace: an append was refused because free disk space is below the
	// reserve. Nothing was proposed.
	ErrNoSpace = errors.New("free disk space is below the reserve")
	// ErrUpgradeNeeded: an event, batch or snapshot holds a kind, a field or a
	// format that this version does not know. Never skip it: stop, and upgrade.
	ErrUpgradeNeeded = errors.New("upgrade needed")
	// ErrCorrupt: stored bytes do not decode, or do not have the checksum or the
	// chain value they must have. It comes wrapped in a *CorruptError.
	ErrCorrupt = errors.New("corrupt")
	// ErrForbidden: the event's (role, kind, origin) has no right to be appended.
	ErrForbidden = errors.New("forbidden")
	// ErrInvalid: the event is not well formed, e.g. has no payload.
	ErrInvalid = errors.New("invalid event")
	// ErrTooLarge: an event is longer than MaxEventBytes, or a batch longer than
	// MaxBatchBytes.
	ErrTooLarge = errors.New("too large")
	// ErrClosed: the log, or this reader of it, was closed.
	ErrClosed = errors.New("log is closed")
)

// CorruptError says what is corrupt and where. errors.Is(err, ErrCorrupt) holds.
type CorruptError struct {
	// Revision is the first that is affected; 0 where none is known.
	Revision Revision
	What     string
}

func (e *CorruptError) Error() string {
	if e.Revision == 0 {
		return "corrupt: " + e.What
	}
	return fmt.Sprintf("corrupt: revision %d: %s", e.Revision, e.What)
}

// Unwrap returns ErrCorrupt.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }

func corruptf(format string, args ...any) error {
	return &CorruptError{What: fmt.Sprintf(format, args...)}
}
