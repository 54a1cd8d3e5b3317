package apiserver

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/advise"
	"github.com/varve-net/varve/internal/findings"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

type policyService struct{ *Server }

func (s policyService) Apply(ctx context.Context, req *connect.Request[varvev1.ApplyPolicyRequest]) (*connect.Response[varvev1.ApplyPolicyResponse], error) {
	sets, warnings, err := policy.Parse(req.Msg.Source, []byte(req.Msg.Manifest), policy.Options{Cluster: s.Cluster})
	if err != nil {
		return nil, policyError(err)
	}
	if len(sets) == 0 {
		return nil, invalid("manifest: holds no policy")
	}
	if req.Msg.ExpectedRevision != nil && len(sets) != 1 {
		return nil, invalid("expected_revision: the manifest holds %d policies; it can only be given with one", len(sets))
	}
	view := s.Log.View()
	resp := &varvev1.ApplyPolicyResponse{Warnings: append(findings.Warnings(warnings), adviceOn(view, req.Msg.Source, sets)...)}
	var events []*eventpb.Event
	var setting []*eventpb.PolicySet
	var changed []*varvev1.AppliedPolicy
	seen := map[policy.Ref]bool{}
	for i, set := range sets {
		ref, err := policy.RefFromPB(set.Ref)
		if err != nil {
			return nil, policyError(err)
		}
		if seen[ref] {
			return nil, invalid("manifest: %s stands in it twice", ref)
		}
		seen[ref] = true
		a := &varvev1.AppliedPolicy{Ref: set.Ref, Action: varvev1.AppliedPolicy_CREATED}
		resp.Policies = append(resp.Policies, a)
		if old, ok := view.Policy(ref); ok {
			a.Action, a.Revision = varvev1.AppliedPolicy_CONFIGURED, uint64(old.Revision)
			if proto.Equal(old.Set, set) && req.Msg.ExpectedRevision == nil {
				a.Action = varvev1.AppliedPolicy_UNCHANGED
				continue
			}
		}
		e, err := s.event(ctx, &eventpb.Event{
			RequestId: subRequestID(req.Msg.RequestId, i), ExpectedRevision: req.Msg.ExpectedRevision,
			Payload: &eventpb.Event_PolicySet{PolicySet: set},
		})
		if err != nil {
			return nil, err
		}
		events, changed, setting = append(events, e), append(changed, a), append(setting, set)
	}
	if err := s.preflight(view, setting); err != nil {
		return nil, err
	}
	revision := view.Revision()
	if len(events) > 0 {
		results, err := s.Log.Append(ctx, events...)
		if err != nil {
			return nil, appendError(err)
		}
		for i, r := range results {
			if err := outcomeError(events[i].Stream, r); err != nil {
				return nil, err
			}
			changed[i].Revision = uint64(r.Revision)
			revision = max(revision, r.Revision)
		}
	}
	if err := s.inForce(ctx, revision); err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// subRequestID is the id of the i-th event of a request, so that a retry repeats
// each of them.
func subRequestID(id string, i int) string {
	if id == "" || i == 0 {
		return id
	}
	return fmt.Sprintf("%s/%d", id, i)
}

// adviceOn is what the state tells of policies that are to be set in it.
func adviceOn(view fsm.View, source string, sets []*eventpb.PolicySet) []*varvev1.PolicyWarning {
	return findings.Advice(source, advise.Warnings(view, sets))
}

func (s policyService) Validate(_ context.Context, req *connect.Request[varvev1.ValidatePolicyRequest]) (*connect.Response[varvev1.ValidatePolicyResponse], error) {
	sets, warnings, err := policy.Parse(req.Msg.Source, []byte(req.Msg.Manifest), policy.Options{Cluster: s.Cluster})
	resp := &varvev1.ValidatePolicyResponse{Errors: findings.Errors(err), Warnings: findings.Warnings(warnings)}
	if err != nil && len(resp.Errors) == 0 {
		return nil, policyError(err)
	}
	for _, set := range sets {
		resp.Valid = append(resp.Valid, set.Ref)
	}
	if err == nil {
		view := s.Log.View()
		resp.Revision = uint64(view.Revision())
		resp.Warnings = append(resp.Warnings, adviceOn(view, req.Msg.Source, sets)...)
	}
	return connect.NewResponse(resp), nil
}

func (s policyService) List(ctx context.Context, req *connect.Request[varvev1.ListPoliciesRequest]) (*connect.Response[varvev1.ListPoliciesResponse], error) {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	resp := &varvev1.ListPoliciesResponse{Revision: uint64(c.view.Revision()), At: c.at}
	for p := range c.view.Policies() {
		if req.Msg.Namespace == "" || p.Policy.Ref.Namespace == req.Msg.Namespace {
			resp.Policies = append(resp.Policies, policyProto(c.view, p, s.Node))
		}
	}
	return connect.NewResponse(resp), nil
}

func (s policyService) Get(ctx context.Context, req *connect.Request[varvev1.GetPolicyRequest]) (*connect.Response[varvev1.GetPolicyResponse], error) {
	ref, err := policy.RefFromPB(req.Msg.Ref)
	if err != nil {
		return nil, invalid("ref: %v", err)
	}
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	p, ok := c.view.Policy(ref)
	if !ok {
		return nil, notFound("%s does not exist%s; `varve policy list` shows what does", ref, c.then())
	}
	return connect.NewResponse(&varvev1.GetPolicyResponse{Policy: policyProto(c.view, p, s.Node), Revision: uint64(c.view.Revision()), At: c.at}), nil
}

func (s policyService) Delete(ctx context.Context, req *connect.Request[varvev1.DeletePolicyRequest]) (*connect.Response[varvev1.DeletePolicyResponse], error) {
	ref, err := policy.RefFromPB(req.Msg.Ref)
	if err != nil {
		return nil, invalid("ref: %v", err)
	}
	if _, ok := s.Log.View().Policy(ref); !ok && req.Msg.RequestId == "" {
		return nil, notFound("%s does not exist; `varve policy list` shows what does", ref)
	}
	r, err := s.append(ctx, &eventpb.Event{
		RequestId: req.Msg.RequestId, ExpectedRevision: req.Msg.ExpectedRevision,
		Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: req.Msg.Ref}},
	})
	if err != nil {
		return nil, err
	}
	if err := s.inForce(ctx, r.Revision); err != nil {
		return nil, err
	}
	return connect.NewResponse(&varvev1.DeletePolicyResponse{Revision: uint64(r.Revision)}), nil
}

// policyProto describes a policy and the endpoints of a node, "" for all nodes,
// that it selects.
func policyProto(view fsm.View, p *fsm.Policy, node string) *varvev1.Policy {
	out := &varvev1.Policy{
		Ref: p.Set.Ref, Manifest: p.Set.Manifest, Specs: p.Set.Specs,
		CreatedRevision: uint64(p.Created), Revision: uint64(p.Revision),
	}
	candidates := view.Endpoints()
	if ref := p.Policy.Ref; policy.KindNamespaced(ref.Kind) { // it selects endpoints of its own namespace alone
		candidates = view.EndpointsIn(ref.Namespace)
	}
	for ep := range candidates {
		if node != "" && ep.Node != node {
			continue
		}
		id, ok := view.Identity(ep.Identity)
		if !ok {
			continue
		}
		for _, spec := range p.Policy.Specs {
			if spec.Subject.Matches(id.Labels) {
				out.Endpoints = append(out.Endpoints, endpointName(ep.Ref))
				break
			}
		}
	}
	return out
}
