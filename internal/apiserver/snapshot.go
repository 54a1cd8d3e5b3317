package apiserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// Bounds of the groups in which a restore is appended.
const (
	restoreEvents = 1000
	restoreBytes  = 2 << 20
	// maxSnapshotBytes bounds what a client may upload.
	maxSnapshotBytes = 1 << 30
)

type snapshotService struct{ *Server }

// Save implements SnapshotService.
func (s snapshotService) Save(ctx context.Context, req *connect.Request[varvev1.SaveSnapshotRequest], stream *connect.ServerStream[varvev1.ExportChunk]) error {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return err
	}
	out := &chunks{send: func(b []byte) error { return stream.Send(&varvev1.ExportChunk{Data: b}) }}
	if err := writeState(out, c.view, s.Info().Version, s.Node); err != nil {
		return pastError(ctx, fmt.Errorf("snapshot of revision %d: %w", c.view.Revision(), err))
	}
	return out.flush()
}

// Restore implements SnapshotService.
func (s snapshotService) Restore(ctx context.Context, stream *connect.ClientStream[varvev1.RestoreSnapshotRequest]) (*connect.Response[varvev1.RestoreSnapshotResponse], error) {
	source, dryRun, err := s.receive(ctx, stream)
	if err != nil {
		return nil, err
	}
	if err := s.ofThisLog(ctx, source.State.View()); err != nil {
		return nil, err
	}
	want, have := source.State.View(), s.Log.View()
	resp := &varvev1.RestoreSnapshotResponse{SnapshotRevision: uint64(want.Revision()), Revision: uint64(have.Revision())}
	events := restoring(have, want)
	for i, e := range events {
		if events[i], err = s.event(ctx, e); err != nil {
			return nil, err
		}
		resp.Streams = append(resp.Streams, &varvev1.RestoredStream{Stream: e.Stream, Action: restoreAction(e)})
	}
	if dryRun {
		return connect.NewResponse(resp), nil
	}
	var failed []error
	for done := 0; done < len(events); {
		n := groupOf(events[done:])
		results, err := s.Log.Append(ctx, events[done:done+n]...)
		if err != nil {
			return nil, appendError(fmt.Errorf("after %d of %d changes: %w", done, len(events), err))
		}
		for i, r := range results {
			resp.Streams[done+i].Revision = uint64(r.Revision)
			resp.Revision = max(resp.Revision, uint64(r.Head))
			failed = append(failed, outcomeError(events[done+i].Stream, r))
		}
		done += n
	}
	if err := errors.Join(failed...); err != nil {
		return nil, connect.NewError(connect.CodeAborted, fmt.Errorf("not all was restored; do it again: %w", err))
	}
	if err := s.inForce(ctx, log.Revision(resp.Revision)); err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// receive takes the file and checks it.
func (s snapshotService) receive(ctx context.Context, stream *connect.ClientStream[varvev1.RestoreSnapshotRequest]) (*past.Source, bool, error) {
	f, err := os.CreateTemp("", "varve-restore-*")
	if err != nil {
		return nil, false, connect.NewError(connect.CodeInternal, err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer f.Close()
	dryRun, size := false, 0
	for stream.Receive() {
		m := stream.Msg()
		dryRun = dryRun || m.DryRun
		if size += len(m.Data); size > maxSnapshotBytes {
			return nil, false, invalid("data: more than %d bytes", maxSnapshotBytes)
		}
		if _, err := f.Write(m.Data); err != nil {
			return nil, false, connect.NewError(connect.CodeResourceExhausted, err)
		}
	}
	if err := stream.Err(); err != nil {
		return nil, false, err
	}
	source, err := past.ReadSource(ctx, f.Name())
	switch {
	case errors.Is(err, log.ErrUpgradeNeeded), errors.Is(err, log.ErrCorrupt):
		return nil, false, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the file is refused, nothing was changed: %s", strings.ReplaceAll(err.Error(), f.Name(), "it")))
	case err != nil:
		return nil, false, pastError(ctx, err)
	}
	return source, dryRun, nil
}

// ofThisLog refuses the state of another cluster, or of another log of the same
// name: the chain tells.
func (s snapshotService) ofThisLog(ctx context.Context, v fsm.View) error {
	problem := ""
	head, _ := s.Log.Head()
	switch {
	case v.Cluster() != s.Cluster:
		problem = fmt.Sprintf("it is of cluster %q, this is %q", v.Cluster(), s.Cluster)
	case v.Revision() > head:
		problem = fmt.Sprintf("it is of revision %d, this log ends at %d", v.Revision(), head)
	case v.Revision() == 0:
		return nil
	case v.Revision() >= s.Log.First():
		r, err := s.Past.Record(ctx, v.Revision())
		if err != nil {
			return pastError(ctx, err)
		}
		if r.Chain != v.Chain() {
			problem = fmt.Sprintf("its chain value at revision %d is %s, this log's is %s", v.Revision(), v.Chain(), r.Chain)
		}
	default:
		problem = fmt.Sprintf("it is of revision %d, and this log keeps its records from %d on, so that it cannot be told whose it is", v.Revision(), s.Log.First())
	}
	if problem == "" {
		return nil
	}
	return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(
		"the file is refused, nothing was changed: it is not of this log: %s; `varve snapshot restore --state-dir` makes a new node of it", problem))
}

// restoring is the events that lead from one state's policies and namespaces to
// another's: what is set before what is deleted, each only if nobody changed it
// meanwhile.
func restoring(have, want fsm.View) []*eventpb.Event {
	var events []*eventpb.Event
	add := func(e *eventpb.Event) {
		if stream, err := log.StreamOf(e); err == nil {
			e.Stream = stream
		}
		at := uint64(have.StreamRevision(e.Stream))
		e.ExpectedRevision = &at
		events = append(events, e)
	}
	for n := range want.Namespaces() {
		set := &eventpb.NamespaceSet{Name: n.Name, Labels: n.Labels}
		if old, ok := have.Namespace(n.Name); !ok || !proto.Equal(set, &eventpb.NamespaceSet{Name: old.Name, Labels: old.Labels}) {
			add(&eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: set}})
		}
	}
	for p := range want.Policies() {
		if old, ok := have.Policy(p.Policy.Ref); !ok || !proto.Equal(old.Set, p.Set) {
			add(&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: p.Set}})
		}
	}
	for p := range have.Policies() {
		if _, ok := want.Policy(p.Policy.Ref); !ok {
			add(&eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: p.Policy.Ref.PB()}}})
		}
	}
	for n := range have.Namespaces() {
		if _, ok := want.Namespace(n.Name); !ok {
			add(&eventpb.Event{Payload: &eventpb.Event_NamespaceDeleted{NamespaceDeleted: &eventpb.NamespaceDeleted{Name: n.Name}}})
		}
	}
	return events
}

func restoreAction(e *eventpb.Event) string {
	if e.GetPolicySet() != nil || e.GetNamespaceSet() != nil {
		return "set"
	}
	return "deleted"
}

// groupOf is how many of the events go into the next group.
func groupOf(events []*eventpb.Event) int {
	size := 0
	for i, e := range events {
		if size += e.SizeVT(); i > 0 && (i == restoreEvents || size > restoreBytes) {
			return i
		}
	}
	return len(events)
}
