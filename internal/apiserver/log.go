package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
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
	first, last := log.Revision(req.Msg.First), log.Revision(req.Msg.Last)
	head, _ := s.Log.Head()
	if first == 0 {
		first = s.Log.First()
	}
	if last == 0 || last > head {
		last = head
	}
	if first > last {
		return nil
	}
	keep, err := newFilter(req.Msg.Filter)
	if err != nil {
		return err
	}
	return streamError(s.Log.Read(ctx, first, last, keep.send(stream)))
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
	return appendError(err)
}

// filter decides which records a reader gets.
type filter struct {
	prefixes, kinds []string
}

func newFilter(f *varvev1.Filter) (filter, error) {
	for i, k := range f.GetKinds() {
		if _, err := log.ParseKind(k); err != nil {
			return filter{}, invalid("filter.kinds[%d]: %v", i, err)
		}
	}
	return filter{prefixes: f.GetStreamPrefixes(), kinds: f.GetKinds()}, nil
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

// Verify replays everything that is kept, from zero if it is all there, beside the
// live state, and compares.
func (s logService) Verify(ctx context.Context, _ *connect.Request[varvev1.VerifyRequest]) (*connect.Response[varvev1.VerifyResponse], error) {
	began := time.Now()
	view := s.Log.View()
	first, last := s.Log.First(), view.Revision()
	resp := &varvev1.VerifyResponse{First: uint64(first), Last: uint64(last)}
	chain := view.Chain()
	resp.Chain = chain[:]
	digest := view.Digest()
	resp.StateDigest = digest[:]
	if last == 0 {
		return connect.NewResponse(resp), nil
	}

	replayed := fsm.New(s.Cluster)
	bad := func(rev log.Revision, problem string) error {
		resp.BadRevision, resp.Problem = uint64(rev), problem
		return errStop
	}
	next := first
	var prev log.Hash
	err := s.Log.Read(ctx, first, last, func(r log.Record) error {
		if r.Revision != next {
			return bad(next, fmt.Sprintf("missing; revision %d follows", r.Revision))
		}
		if next > first || first == 1 {
			if want := log.Next(prev, log.Leaf(r.Event)); want != r.Chain {
				return bad(r.Revision, fmt.Sprintf("chain is %s, the event gives %s", r.Chain, want))
			}
		}
		prev, next = r.Chain, next+1
		if first != 1 {
			return nil
		}
		got, _, err := replayed.Apply(slices.Clone(r.Event))
		switch {
		case err != nil:
			return bad(r.Revision, "replay: "+err.Error())
		case got.Revision != r.Revision || got.Chain != r.Chain || got.Outcome != r.Outcome || got.TimeNS != r.TimeNS:
			return bad(r.Revision, fmt.Sprintf("replay gives revision %d, outcome %d, time %d; recorded are %d, %d, %d", got.Revision, got.Outcome, got.TimeNS, r.Revision, r.Outcome, r.TimeNS))
		}
		return nil
	})
	switch {
	case err == errStop:
		return connect.NewResponse(resp), nil
	case err != nil && ctx.Err() == nil:
		resp.BadRevision, resp.Problem = uint64(next), err.Error()
		return connect.NewResponse(resp), nil
	case err != nil:
		return nil, appendError(err)
	}
	if prev != chain {
		_ = bad(last, fmt.Sprintf("chain of the records is %s, of the state %s", prev, chain))
	}
	if first == 1 {
		d := replayed.View().Digest()
		resp.ReplayDigest = d[:]
		if d != digest && resp.Problem == "" {
			_ = bad(last, fmt.Sprintf("replay reaches state digest %s, the live state has %s", d, digest))
		}
	}
	resp.ReplayNanoseconds = uint64(time.Since(began))
	return connect.NewResponse(resp), nil
}
