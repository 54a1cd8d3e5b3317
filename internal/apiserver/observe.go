package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/policy"
)

type flowService struct{ *Server }

// Observe implements FlowService.
func (s flowService) Observe(ctx context.Context, req *connect.Request[varvev1.ObserveRequest], stream *connect.ServerStream[varvev1.ObserveResponse]) error {
	if s.Flows == nil {
		return s.noFlows()
	}
	keep, err := newFlowFilter(req.Msg.Filter)
	if err != nil {
		return err
	}
	now := s.Flows.Now()
	from, err := flowTime("since", req.Msg.Since, now, s.Flows.Stats().FromNS)
	if err != nil {
		return err
	}
	to, err := flowTime("until", req.Msg.Until, now, math.MaxInt64)
	if err != nil {
		return err
	}
	if from > to {
		return invalid("since: is after until")
	}
	if req.Msg.Follow && req.Msg.Until != "" {
		return invalid("until: cannot be given with follow, which has no end")
	}
	if req.Msg.Follow && s.Archive {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("follow: this is an archive, to which nothing is added; ask an agent, without --log"))
	}
	if err := stream.Send(nil); err != nil {
		return err
	}
	out := observed{node: s.Node, keep: keep, last: req.Msg.Last, stream: stream}
	if req.Msg.Follow {
		return streamError(s.Flows.Follow(ctx, from, out.flow, out.gap, out.flush))
	}
	if err = s.Flows.Read(ctx, from, min(to, now.UnixNano()), out.flow, out.gap); err == nil {
		err = out.flush()
	}
	return streamError(err)
}

// noFlows says why there is no flow record, and what has one.
func (s *Server) noFlows() error {
	why := "this agent records no flows: --flow-store-max-bytes is 0"
	if s.Archive {
		why = "there is no flow record here: an export holds the log alone; give --log the state directory of an agent, or --log-flows a copy of the folder flows in it"
	}
	return connect.NewError(connect.CodeFailedPrecondition, errors.New(why))
}

// flowTime is the time that a field names.
func flowTime(field, text string, now time.Time, empty int64) (int64, error) {
	if text == "" {
		return empty, nil
	}
	t, err := past.Time(text, now)
	if err != nil {
		return 0, invalid("%s: %v", field, err)
	}
	return t.UnixNano(), nil
}

// observed sends what a filter keeps, or of it the last so many once flushed.
type observed struct {
	node   string
	keep   flowFilter
	last   uint64
	kept   []*varvev1.ObserveResponse // of the last; the oldest at next
	next   int
	stream *connect.ServerStream[varvev1.ObserveResponse]
}

func (o *observed) flow(f *flows.Flow) error {
	if !o.keep.match(f) {
		return nil
	}
	r := &varvev1.ObserveResponse{Response: &varvev1.ObserveResponse_Flow{Flow: FlowProto(o.node, f)}}
	switch {
	case o.last == 0:
		return o.stream.Send(r)
	case uint64(len(o.kept)) < o.last:
		o.kept = append(o.kept, r)
	default:
		o.kept[o.next] = r
		o.next = (o.next + 1) % len(o.kept)
	}
	return nil
}

// gap tells what is missing, but not among the last so many flows.
func (o *observed) gap(g flows.Gap) error {
	if o.last > 0 {
		return nil
	}
	return o.stream.Send(&varvev1.ObserveResponse{Response: &varvev1.ObserveResponse_Gap{Gap: GapProto(g)}})
}

func (o *observed) flush() error {
	for i := range o.kept {
		if err := o.stream.Send(o.kept[(o.next+i)%len(o.kept)]); err != nil {
			return err
		}
	}
	o.last, o.kept = 0, nil
	return nil
}

// FlowProto is a flow of a node's record as the API tells it.
func FlowProto(node string, f *flows.Flow) *varvev1.Flow {
	out := &varvev1.Flow{
		FirstUnixNs: f.FirstNS, LastUnixNs: f.LastNS, Count: f.Count, Verdict: f.Verdict.String(), Direction: directionName(f.Direction),
		Protocol: policy.ProtocolName(f.Protocol), Port: uint32(f.Port), Row: hex(f.Row), Rules: f.Rules,
		FirstRevision: uint64(f.FirstRevision), LastRevision: uint64(f.LastRevision), Node: node,
		Source:      &varvev1.FlowParty{Pod: f.SrcName, Identity: f.SrcIdentity},
		Destination: &varvev1.FlowParty{Pod: f.DstName, Identity: f.DstIdentity},
	}
	if f.Protocol == 0 {
		out.Protocol = "no IP"
	}
	if f.Src.IsValid() {
		out.Source.Address = f.Src.String()
	}
	if f.Dst.IsValid() {
		out.Destination.Address = f.Dst.String()
	}
	if f.Verdict != flows.Forwarded {
		out.DropReason = f.Reason.String()
	}
	return out
}

// GapProto is a gap of the record as the API tells it.
func GapProto(g flows.Gap) *varvev1.FlowGap {
	return &varvev1.FlowGap{FromUnixNs: g.FromNS, ToUnixNs: g.ToNS, Lost: g.Lost, Overflowed: g.Overflowed, Damaged: g.Damaged}
}

// flowStatus is what status tells of the flow record.
func (s *Server) flowStatus() *varvev1.FlowStoreStatus {
	if s.Flows == nil {
		return nil
	}
	st := s.Flows.Stats()
	out := &varvev1.FlowStoreStatus{
		FromUnixNs: st.FromNS, ToUnixNs: st.ToNS, Bytes: uint64(st.Bytes), MaxBytes: uint64(s.Flows.MaxBytes), Segments: uint64(st.Segments),
		Lost: st.Lost, Overflowed: st.Overflowed,
	}
	if st.Err != nil {
		out.Error = st.Err.Error()
	}
	return out
}

func (s agentService) checkFlows(context.Context) (string, error) {
	st := s.Flows.Stats()
	if st.Err != nil {
		return "", fmt.Errorf("flows are not recorded: %w", st.Err)
	}
	if st.FromNS == 0 {
		return "nothing recorded yet", nil
	}
	return fmt.Sprintf("recorded since %s", time.Unix(0, st.FromNS).UTC().Format(time.RFC3339)), nil
}
