// Package audit answers what the past says: whether one party could reach another
// at any revision, which row, rule and events decided, when that last changed, what
// happened between two moments, and which recorded flows other policies would have
// judged otherwise. All of it follows from the log's records, whoever keeps them: an
// agent answers over its API what a directory or an export answers offline, with
// the same code.
package audit

import (
	"context"
	"errors"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// Errors of this package.
var (
	// ErrQuestion: the question cannot be understood, whatever the revision.
	ErrQuestion = errors.New("question")
	// ErrAbsent: a party does not exist at the revision that is asked about.
	ErrAbsent = errors.New("does not exist")
	// ErrNoRow: no row of the map has the key.
	ErrNoRow = errors.New("no such row")
)

// Past is the records of a log and the states that they led to.
type Past interface {
	// First is the oldest revision of which the state can be had: 0, that of the
	// empty log, as long as every record is kept.
	First() log.Revision
	// Head is the newest revision.
	Head() log.Revision
	// Near is the newest revision, not after one given, of which the state costs
	// little; First if there is none.
	Near(at log.Revision) log.Revision
	// View is the state at a revision from First to Head.
	View(ctx context.Context, at log.Revision) (fsm.View, error)
	// Tables is what a node's maps were to hold at a revision.
	Tables(ctx context.Context, at log.Revision, node string) (*projections.Tables, error)
	// Read calls fn for each record from first to last, both inclusive, in order;
	// first is above First. The record's Event is valid during the call only.
	Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error
}

// Auditor answers from a Past. It holds no state and may be used concurrently.
type Auditor struct {
	Past    Past
	Options projections.Options

	span log.Revision // of tests, in the place of firstSpan
}
