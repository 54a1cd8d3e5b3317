package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/audit"
	"github.com/varve-net/varve/policy"
)

// Replay implements AuditService.
func (a auditService) Replay(ctx context.Context, req *connect.Request[varvev1.AuditReplayRequest]) (*connect.Response[varvev1.AuditReplayResponse], error) {
	if a.s.Flows == nil {
		return nil, a.s.noFlows()
	}
	what, err := a.supposition(req.Msg)
	if err != nil {
		return nil, err
	}
	now := a.s.Flows.Now()
	from, err := flowTime("since", req.Msg.Since, now, a.s.Flows.Stats().FromNS)
	if err != nil {
		return nil, err
	}
	to, err := flowTime("until", req.Msg.Until, now, now.UnixNano())
	if err != nil {
		return nil, err
	}
	if from > to {
		return nil, invalid("since: is after until")
	}
	if err := a.existed(ctx, what, from); err != nil {
		return nil, err
	}
	r, err := a.Auditor().ReplayFlows(ctx, a.s.Flows, a.s.Node, from, to, what)
	switch {
	case errors.Is(err, audit.ErrTooMany):
		return nil, connect.NewError(connect.CodeOutOfRange, fmt.Errorf("since: %w", err))
	case errors.Is(err, policy.ErrInvalid):
		return nil, policyError(err)
	case err != nil:
		return nil, pastError(ctx, err)
	}
	return connect.NewResponse(replayProto(a.s.Node, r)), nil
}

// supposition is what a request asks to suppose.
func (a auditService) supposition(req *varvev1.AuditReplayRequest) (audit.Supposition, error) {
	var what audit.Supposition
	if req.Manifest != "" {
		sets, _, err := policy.Parse(req.Source, []byte(req.Manifest), policy.Options{Cluster: a.s.Cluster})
		if err != nil {
			return what, policyError(err)
		}
		what.Set = sets
	}
	for i, pb := range req.Delete {
		ref, err := policy.RefFromPB(pb)
		if err != nil {
			return what, invalid("delete[%d]: %v", i, err)
		}
		what.Delete = append(what.Delete, ref)
	}
	if len(what.Set)+len(what.Delete) == 0 {
		return what, invalid("manifest, delete: nothing to suppose; give policies to set or to delete")
	}
	return what, nil
}

// existed refuses to suppose that a policy was not there which was not there at all:
// neither now nor at the beginning of the time.
func (a auditService) existed(ctx context.Context, what audit.Supposition, fromNS int64) error {
	for i, ref := range what.Delete {
		if _, ok := a.s.Log.View().Policy(ref); ok {
			continue
		}
		c, err := a.s.scene(ctx, time.Unix(0, fromNS).UTC().Format(time.RFC3339Nano))
		if err == nil {
			if _, ok := c.view.Policy(ref); ok {
				continue
			}
		}
		return notFound("delete[%d]: %s exists neither now nor at the beginning of that time; `varve policy list` shows what does", i, ref)
	}
	return nil
}

func replayProto(node string, r *audit.Replay) *varvev1.AuditReplayResponse {
	out := &varvev1.AuditReplayResponse{
		FromUnixNs: r.FromNS, ToUnixNs: r.ToNS, Flows: r.Flows, Events: r.Events, Skipped: r.Skipped, Unexplained: r.Unexplained, TooOld: r.TooOld, Node: node,
	}
	for _, g := range r.Groups {
		out.DifferingFlows += g.Flows
		out.DifferingEvents += g.Events
		out.Groups = append(out.Groups, &varvev1.AuditReplayGroup{
			From: g.From, To: g.To, Port: audit.Port{Protocol: g.Protocol, Number: g.Port}.String(), Was: g.Was.String(), Is: g.Is.String(), Because: g.Reason,
			Flows: g.Flows, Events: g.Events, FirstUnixNs: g.FirstNS, LastUnixNs: g.LastNS, Samples: g.Samples,
		})
	}
	for _, g := range r.Gaps {
		out.Gaps = append(out.Gaps, GapProto(g))
	}
	return out
}
