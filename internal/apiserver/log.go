package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/history"
	"github.com/varve-net/varve/policy"
)

type logService struct{ *Server }

func (s logService) Append(ctx context.Context, req *connect.Request[varvev1.AppendRequest]) (*connect.Response[varvev1.AppendResponse], error) {
	events, err := s.group(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	results, err := s.Log.Append(ctx, events...)
	if err != nil {
		return nil, appendError(err)
	}
	resp := &varvev1.AppendResponse{}
	resp.Results, resp.Head = resultsProto(results)
	return connect.NewResponse(resp), nil
}

// group makes the events that a client asks to append as one.
func (s logService) group(ctx context.Context, req *varvev1.AppendRequest) ([]*eventpb.Event, error) {
	if len(req.Events) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("events: empty; give at least one"))
	}
	events := make([]*eventpb.Event, len(req.Events))
	for i, e := range req.Events {
		// What a client says of these is not taken, and must not be half taken.
		e = &eventpb.Event{Payload: e.GetPayload(), RequestId: e.GetRequestId(), ExpectedRevision: e.ExpectedRevision}
		if err := s.fillPolicy(e.GetPolicySet()); err != nil {
			return nil, fieldError(i, err)
		}
		var err error
		if events[i], err = s.event(ctx, e); err != nil {
			return nil, fieldError(i, err)
		}
	}
	return events, nil
}

func resultsProto(results []log.Result) (out []*varvev1.AppendResult, head uint64) {
	out = make([]*varvev1.AppendResult, len(results))
	for i, r := range results {
		out[i] = &varvev1.AppendResult{Outcome: varvev1.Outcome(r.Outcome), Revision: uint64(r.Revision), Reason: r.Reason}
		head = max(head, uint64(r.Head))
	}
	return out, head
}

// fillPolicy lets a client append a policy by its manifest alone; what is
// enforced is then derived from it here.
func (s logService) fillPolicy(set *eventpb.PolicySet) error {
	if set == nil || len(set.Specs) > 0 || set.Manifest == "" {
		return nil
	}
	sets, _, err := policy.Parse("manifest", []byte(set.Manifest), policy.Options{Cluster: s.Cluster})
	if err != nil {
		return policyError(err)
	}
	if len(sets) != 1 {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("policy_set.manifest: %d documents; append one event for each", len(sets)))
	}
	if set.Ref != nil && !proto.Equal(set.Ref, sets[0].Ref) {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("policy_set.ref: differs from the manifest's kind, namespace and name; leave it out"))
	}
	proto.Reset(set)
	proto.Merge(set, sets[0])
	return nil
}

// fieldError names the event of a group that an error is about.
func fieldError(i int, err error) error {
	code := connect.CodeOf(err)
	out := connect.NewError(code, fmt.Errorf("events[%d]: %s", i, message(err)))
	if ce := asConnect(err); ce != nil {
		for _, d := range ce.Details() {
			out.AddDetail(d)
		}
	}
	return out
}

func (s logService) Read(ctx context.Context, req *connect.Request[varvev1.ReadRequest], stream *connect.ServerStream[varvev1.Record]) error {
	keep, err := newFilter(req.Msg.Filter)
	if err != nil {
		return err
	}
	first, last, err := s.span(ctx, req.Msg)
	if err != nil || first > last {
		return err
	}
	return streamError(s.Log.History().ReadWhole(ctx, first, last, keep.send(stream)))
}

// span is the revisions that a request is for; the first is after the last if there
// are none.
func (s logService) span(ctx context.Context, req *varvev1.ReadRequest) (first, last log.Revision, err error) {
	first, last = log.Revision(req.First), log.Revision(req.Last)
	head, _ := s.Log.Head()
	if first == 0 {
		first = s.Log.First()
	}
	if last == 0 || last > head {
		last = head
	}
	if req.Since != "" {
		m, err := s.Past.Resolve(ctx, req.Since)
		if err != nil {
			return 0, 0, pastError(ctx, fmt.Errorf("since: %w", err))
		}
		first = max(first, m.Revision+1)
	}
	if req.Until != "" {
		m, err := s.Past.Resolve(ctx, req.Until)
		if err != nil {
			return 0, 0, pastError(ctx, fmt.Errorf("until: %w", err))
		}
		last = min(last, m.Revision)
	}
	if req.Tail > 0 {
		first = max(s.Log.First(), last-min(last, log.Revision(req.Tail))+1)
	}
	return first, last, nil
}

func (s logService) Subscribe(ctx context.Context, req *connect.Request[varvev1.SubscribeRequest], stream *connect.ServerStream[varvev1.Record]) error {
	keep, err := newFilter(req.Msg.Filter)
	if err != nil {
		return err
	}
	after := log.Revision(req.Msg.After)
	if req.Msg.Tail != nil {
		head, _ := s.Log.Head()
		after = head - min(head, log.Revision(*req.Msg.Tail))
		after = max(after, max(s.Log.First(), 1)-1)
	}
	// The header tells the client that the subscription stands.
	if err := stream.Send(nil); err != nil {
		return err
	}
	return streamError(s.Log.Subscribe(ctx, after, keep.send(stream)))
}

// streamError passes on what the client's side of the stream said, and
// classifies the rest.
func streamError(err error) error {
	if err == nil || asConnect(err) != nil {
		return err
	}
	if errors.Is(err, log.ErrCorrupt) {
		return connect.NewError(connect.CodeDataLoss, err)
	}
	return appendError(err)
}

// filter decides which records a reader gets.
type filter struct {
	prefixes, kinds, actors []string
}

func newFilter(f *varvev1.Filter) (filter, error) {
	for i, k := range f.GetKinds() {
		if _, err := log.ParseKind(k); err != nil {
			return filter{}, invalid("filter.kinds[%d]: %v", i, err)
		}
	}
	return filter{prefixes: f.GetStreamPrefixes(), kinds: f.GetKinds(), actors: f.GetActors()}, nil
}

func (f filter) send(stream *connect.ServerStream[varvev1.Record]) func(log.Record) error {
	return func(r log.Record) error {
		rec, err := recordProto(r)
		if err != nil {
			return connect.NewError(connect.CodeDataLoss, fmt.Errorf("revision %d: %w", r.Revision, err))
		}
		if !f.match(rec) {
			return nil
		}
		return stream.Send(rec)
	}
}

func (f filter) match(r *varvev1.Record) bool {
	if len(f.kinds) > 0 && !slices.Contains(f.kinds, r.Kind) {
		return false
	}
	if len(f.actors) > 0 && !slices.ContainsFunc(f.actors, func(a string) bool { return strings.Contains(r.Event.GetActor().GetName(), a) }) {
		return false
	}
	return len(f.prefixes) == 0 || slices.ContainsFunc(f.prefixes, func(p string) bool { return strings.HasPrefix(r.Event.GetStream(), p) })
}

func recordProto(r log.Record) (*varvev1.Record, error) {
	e, err := log.Unmarshal(r.Event)
	if err != nil {
		return nil, err
	}
	kind, err := log.KindOf(e)
	if err != nil {
		return nil, err
	}
	leaf := log.Leaf(r.Event)
	return &varvev1.Record{
		Revision: uint64(r.Revision), TimeUnixNs: r.TimeNS, Outcome: varvev1.Outcome(r.Outcome), Reason: r.Reason,
		Event: e, Chain: r.Chain[:], Leaf: leaf[:], Kind: kind.String(),
	}, nil
}

// Verify checks what is on disk and compares it with the live state.
func (s logService) Verify(ctx context.Context, _ *connect.Request[varvev1.VerifyRequest]) (*connect.Response[varvev1.VerifyResponse], error) {
	began := time.Now()
	view := s.Log.View()
	last, chain, digest := view.Revision(), view.Chain(), view.Digest()
	if s.Archive { // which may lack what leads to a state
		last, chain = s.Log.Head()
	}
	v, err := s.Past.Verify(ctx, s.Log.History(), last)
	resp := &varvev1.VerifyResponse{
		First: uint64(v.First), Last: uint64(v.Last), Chain: chain[:], StateDigest: digest[:],
		Checkpoints: uint64(v.Checkpoints), ReplayedFrom: uint64(v.From), ReplayNanoseconds: uint64(time.Since(began)),
	}
	if !v.Digest.IsZero() {
		resp.ReplayDigest = v.Digest[:]
	}
	var corrupt *log.CorruptError
	switch {
	case ctx.Err() != nil:
		return nil, appendError(ctx.Err())
	case errors.As(err, &corrupt):
		resp.BadRevision, resp.Problem = uint64(corrupt.Revision), corrupt.What
	case errors.Is(err, history.ErrLeftOut):
		// A filtered export: its chain holds, and no state follows from it.
	case err != nil:
		return nil, pastError(ctx, err)
	case v.Chain != chain:
		resp.BadRevision, resp.Problem = uint64(v.Last), fmt.Sprintf("chain of the records is %s, of the state %s", v.Chain, chain)
	case v.Digest != digest && v.Last > 0:
		resp.BadRevision, resp.Problem = uint64(v.Last), fmt.Sprintf("replay reaches state digest %s, the live state has %s", v.Digest, digest)
	}
	if segments, err := s.Log.History().Segments(); err == nil {
		for _, seg := range segments {
			resp.Bytes += uint64(seg.Bytes)
		}
	}
	return connect.NewResponse(resp), nil
}
