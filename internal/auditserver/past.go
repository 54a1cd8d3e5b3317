package auditserver

import (
	"context"

	"github.com/varve-net/varve/audit"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// records is a past.Past as audits read it.
type records struct{ *past.Past }

var _ audit.Past = records{}

func (r records) First() log.Revision {
	first := r.Log.First()
	if first <= 1 {
		return 0
	}
	if r.Checkpoints != nil {
		for _, at := range r.Checkpoints.Checkpoints() {
			if at+1 >= first {
				return at
			}
		}
	}
	// Nothing before can be told; what asks for it is answered with the reason.
	return first - 1
}

func (r records) Head() log.Revision {
	head, _ := r.Log.Head()
	return head
}

func (r records) Near(at log.Revision) log.Revision {
	near := r.First()
	if r.Checkpoints != nil {
		for _, checkpoint := range r.Checkpoints.Checkpoints() {
			if checkpoint <= at {
				near = max(near, checkpoint)
			}
		}
	}
	return near
}

func (r records) View(ctx context.Context, at log.Revision) (fsm.View, error) {
	return r.Past.View(ctx, at)
}

func (r records) Tables(ctx context.Context, at log.Revision, node string) (*projections.Tables, error) {
	return r.Past.Tables(ctx, at, node)
}

func (r records) Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error {
	return r.Log.Read(ctx, first, last, fn)
}
