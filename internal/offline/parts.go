package offline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/history"
	"github.com/varve-net/varve/projections"
)

// errArchive refuses what an archive cannot do.
var errArchive = connect.NewError(connect.CodeFailedPrecondition,
	errors.New("this is an archive, which can only be read; ask an agent, without --log"))

// archivedLog is an archive as a server's log.
type archivedLog struct {
	*past.Archive
	view func() fsm.View // of the newest revision
}

func (l archivedLog) Append(context.Context, ...*eventpb.Event) ([]log.Result, error) {
	return nil, errArchive
}

func (l archivedLog) Propose(context.Context, ...*eventpb.Event) (log.Pending, error) {
	return nil, errArchive
}

func (l archivedLog) Head() (log.Revision, log.Hash) { return l.Archive.History.Last() }

func (l archivedLog) Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error {
	return l.Archive.History.Read(ctx, first, last, fn)
}

func (l archivedLog) Subscribe(context.Context, log.Revision, func(log.Record) error) error {
	return errArchive
}

func (l archivedLog) View() fsm.View { return l.view() }

// ClockBehind is nothing that an archive can tell.
func (l archivedLog) ClockBehind() time.Duration { return 0 }

func (l archivedLog) History() *history.History { return l.Archive.History }

// projector makes the tables that the node had at the newest revision.
type projector struct {
	archive *past.Archive
	view    func() fsm.View
	node    string
}

func (p projector) Wait(context.Context, log.Revision) error { return nil }

func (p projector) Current() *projections.Tables {
	t, err := p.archive.Tables(context.Background(), p.view().Revision(), p.node)
	if err != nil {
		return nil
	}
	return t
}

func (p projector) Hold(_ context.Context, fn func(fsm.View, *projections.Tables) error) error {
	return fn(p.view(), p.Current())
}

func (p projector) Err() error {
	head, _ := p.archive.History.Last()
	if p.view().Revision() != head {
		return fmt.Errorf("the state of revision %d cannot be told from this archive", head)
	}
	return nil
}

type endpoints struct{}

func (endpoints) Add(context.Context, apiserver.Actor, *varvev1.AddEndpointRequest) (fsm.EndpointRef, bool, error) {
	return fsm.EndpointRef{}, false, errArchive
}

func (endpoints) SetLabels(context.Context, apiserver.Actor, fsm.EndpointRef, map[string]string, []string) error {
	return errArchive
}

func (endpoints) SetAuditMode(context.Context, apiserver.Actor, fsm.EndpointRef, bool) error {
	return errArchive
}

func (endpoints) Delete(context.Context, apiserver.Actor, fsm.EndpointRef) (bool, error) {
	return false, errArchive
}

func (endpoints) State(fsm.EndpointRef) string { return "" }

type kernel struct{}

func (kernel) KernelTables(context.Context) (*projections.Tables, error) { return nil, errArchive }

func (kernel) Verify(context.Context, *projections.Tables) ([]dataplane.Difference, error) {
	return nil, errArchive
}
func (kernel) Flows(context.Context, func(dataplane.Flow) error) error { return errArchive }
func (kernel) Counters() ([]dataplane.Counter, uint64, error)          { return nil, 0, errArchive }
func (kernel) Capacities() map[string]int                              { return nil }
func (kernel) Ifindex(uint32) int                                      { return 0 }
func (kernel) Names(context.Context) ([]dataplane.NameRow, error)      { return nil, errArchive }

type monitor struct{}

func (monitor) Subscribe(context.Context, func(dataplane.Event, uint64) error) error {
	return errArchive
}
