package apiserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

const (
	// restorePart is how much of policies and namespaces one event stages.
	restorePart = 256 << 10
	// maxSnapshotBytes bounds what a client may upload.
	maxSnapshotBytes = 1 << 30
	// abandonTimeout bounds the attempt to take back what was staged.
	abandonTimeout = 10 * time.Second
)

var (
	errMayNotRestore = errors.New("you may not restore a snapshot: run as root, or join the group that the agent's --restore-group names; --dry-run is open to you")
	errRestoring     = errors.New("another snapshot is being restored; try again when that is done")
)

// Restore implements SnapshotService.
func (s snapshotService) Restore(ctx context.Context, stream *connect.ClientStream[varvev1.RestoreSnapshotRequest]) (*connect.Response[varvev1.RestoreSnapshotResponse], error) {
	source, dryRun, err := s.receive(ctx, stream)
	if err != nil {
		return nil, err
	}
	want := source.State.View()
	if err := s.ofThisLog(ctx, want); err != nil {
		return nil, err
	}
	// One at a time; the rehearsals of two would disturb each other, too.
	if !s.restoring.TryLock() {
		return nil, connect.NewError(connect.CodeAborted, errRestoring)
	}
	defer s.restoring.Unlock()
	have := s.Log.View()
	resp := &varvev1.RestoreSnapshotResponse{
		SnapshotRevision: uint64(want.Revision()), Streams: differences(have, want), Revision: uint64(have.Revision()),
	}
	if len(resp.Streams) == 0 {
		return connect.NewResponse(resp), nil
	}
	events, err := s.rehearse(ActorFrom(ctx), have, want)
	if err != nil || dryRun {
		return connect.NewResponse(resp), err
	}
	revision, err := s.restore(ctx, events)
	if err != nil {
		return nil, err
	}
	resp.Restore = events[0].Stream[len("restore/"):]
	resp.Revision = uint64(revision)
	for _, r := range resp.Streams {
		r.Revision = resp.Revision
	}
	if err := s.inForce(ctx, revision); err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// rehearse makes the events of a restore, and applies them to what would be the state:
// what the log would reject, or this node's maps have no room for, is refused before
// anything is recorded.
func (s snapshotService) rehearse(actor Actor, have, want fsm.View) ([]*eventpb.Event, error) {
	id := make([]byte, 16)
	rand.Read(id) // never fails
	actor.Role = eventpb.Role_ROLE_RESTORER
	events := want.Restoring(fmt.Sprintf("%x", id), restorePart)
	state := fsm.Resume(have)
	for i, e := range events {
		var err error
		if events[i], err = s.eventOf(actor, e); err != nil {
			return nil, err
		}
		b, err := log.Marshal(events[i])
		if err != nil {
			return nil, refused(fmt.Errorf("%s: %w", contents(e), err))
		}
		_, r, err := state.Apply(b)
		if err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
		if r.Outcome != log.OutcomeApplied {
			return nil, refused(errors.New(r.Reason))
		}
	}
	after := state.View()
	if got, want := after.DeclaredDigest(), want.DeclaredDigest(); got != want {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("a restore would lead to digest %s, the file has %s", got, want))
	}
	return events, s.preflightState(after)
}

func refused(err error) error {
	return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("the restore is refused, nothing was changed: %w", err))
}

// contents names what a part holds.
func contents(e *eventpb.Event) string {
	staged := e.GetSnapshotStaged()
	if p := staged.GetPolicies(); len(p) == 1 {
		return "policy " + p[0].GetRef().GetName()
	}
	return fmt.Sprintf("part %d", staged.GetPart())
}

// restore appends the events: the parts one after the other, then the one that puts
// them in force. After an error nothing is in force; what was staged is taken back.
func (s snapshotService) restore(ctx context.Context, events []*eventpb.Event) (log.Revision, error) {
	for i, e := range events {
		last := i == len(events)-1
		if last {
			// Whoever asked may have gone; whether it was applied is to be known.
			ctx = context.WithoutCancel(ctx)
		}
		results, err := s.Log.Append(ctx, e)
		if err == nil && results[0].Outcome == log.OutcomeApplied {
			if last {
				return results[0].Revision, nil
			}
			continue
		}
		if err == nil {
			err = refused(fmt.Errorf("rejected at revision %d: %s", results[0].Revision, results[0].Reason))
		} else {
			err = appendError(fmt.Errorf("%s of %d: %w", contents(e), len(events)-1, err))
		}
		if i > 0 {
			s.abandon(ctx, e, err)
		}
		return 0, err
	}
	return 0, nil
}

// abandon takes back what was staged before an event that failed.
func (s snapshotService) abandon(ctx context.Context, failed *eventpb.Event, cause error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	name := failed.Stream[len("restore/"):]
	e := &eventpb.Event{
		Actor: failed.Actor, Origin: failed.Origin, Stream: failed.Stream,
		Payload: &eventpb.Event_SnapshotAbandoned{SnapshotAbandoned: &eventpb.SnapshotAbandoned{Restore: name, Reason: brief(message(cause))}},
	}
	if _, err := s.Log.Append(ctx, e); err != nil {
		s.Logger.Warn("a restore that failed is not abandoned; it is forgotten 10 minutes after its last part", "restore", name, "error", err)
	}
}

// maxAbandonReason bounds a reason that is recorded, in bytes.
const maxAbandonReason = 512

func brief(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxAbandonReason)], "")
}

// differences is what a restore does, those that it sets first.
func differences(have, want fsm.View) []*varvev1.RestoredStream {
	var out []*varvev1.RestoredStream
	add := func(action, stream string) {
		out = append(out, &varvev1.RestoredStream{Action: action, Stream: stream})
	}
	for n := range want.Namespaces() {
		if old, ok := have.Namespace(n.Name); !ok || !maps.Equal(old.Labels, n.Labels) {
			add("set", "namespace/"+n.Name)
		}
	}
	for p := range want.Policies() {
		if old, ok := have.Policy(p.Policy.Ref); !ok || !proto.Equal(old.Set, p.Set) {
			add("set", p.Policy.Ref.Stream())
		}
	}
	for p := range have.Policies() {
		if _, ok := want.Policy(p.Policy.Ref); !ok {
			add("deleted", p.Policy.Ref.Stream())
		}
	}
	for n := range have.Namespaces() {
		if _, ok := want.Namespace(n.Name); !ok {
			add("deleted", "namespace/"+n.Name)
		}
	}
	return out
}

// mayRestore refuses who may call but not restore.
func mayRestore(ctx context.Context, dryRun bool) error {
	if dryRun || ActorFrom(ctx).MayRestore {
		return nil
	}
	return connect.NewError(connect.CodePermissionDenied, errMayNotRestore)
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
		if err := mayRestore(ctx, dryRun); err != nil {
			return nil, false, err
		}
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
		return nil, false, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the file is refused, nothing was changed: %s", unnamed(err, f.Name())))
	case err != nil:
		return nil, false, pastError(ctx, err)
	}
	return source, dryRun, nil
}

// unnamed is an error about a file without the name that it has here: whoever sent it
// knows it under another.
func unnamed(err error, name string) string {
	return strings.NewReplacer("exported file "+name, "the file", "exported log "+name, "the file", name, "the file").Replace(err.Error())
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
	case v.Revision()+1 == s.Log.First():
		if before := s.Log.History().Before(); before != v.Chain() {
			problem = fmt.Sprintf("its chain value at revision %d is %s, this log's is %s", v.Revision(), v.Chain(), before)
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
