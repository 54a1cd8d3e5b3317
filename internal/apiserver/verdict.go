package apiserver

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/auditserver"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// Verdict answers of the present by what is in force on this node, which may be
// behind the log, and of the past by the tables that the log says there were.
func (s policyService) Verdict(ctx context.Context, req *connect.Request[varvev1.VerdictRequest]) (*connect.Response[varvev1.VerdictResponse], error) {
	c, tables, err := s.court(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	view := c.view
	q := verdict.Question{}
	for _, side := range []struct {
		field, words string
		party        *verdict.Party
	}{{"from", req.Msg.From, &q.From}, {"to", req.Msg.To, &q.To}} {
		if side.words == "" {
			return nil, invalid("%s: empty; name an endpoint or an address", side.field)
		}
		if *side.party, err = verdict.ParseParty(view, side.words); err != nil {
			return nil, notFound("%s: %v", side.field, err)
		}
	}
	if q.Protocol, q.Port, err = verdict.ParsePort(req.Msg.Port); err != nil {
		return nil, invalid("%v", err)
	}
	q.TimeNS = c.askedNS
	if c.present() && q.To.Endpoint == nil && (q.To.Addr.IsValid() || q.To.Name != "") {
		q.More = s.told(ctx, q.From.Endpoint, q.To.Addr, q.To.Name)
	}
	a, err := verdict.Ask(view, tables, q)
	switch {
	case errors.Is(err, verdict.ErrFamily), errors.Is(err, verdict.ErrParty):
		return nil, invalid("%v", err)
	case err != nil:
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	resp := &varvev1.VerdictResponse{
		Allowed: a.Allowed(), Audited: a.Audited(), Revision: uint64(a.Revision),
		From: verdictParty(view, req.Msg.From, q.From), To: verdictParty(view, req.Msg.To, q.To),
		Port:   strconv.Itoa(int(q.Port)) + "/" + strings.ToLower(policy.ProtocolName(q.Protocol)),
		Egress: directionVerdict(a.Egress), Ingress: directionVerdict(a.Ingress), At: c.at,
	}
	if a.Name != nil {
		resp.Name = nameVerdict(a, q.TimeNS)
	}
	return connect.NewResponse(resp), nil
}

// court is the scene of a verdict, with the tables that judge there.
func (s policyService) court(ctx context.Context, at string) (*scene, verdict.TablesOf, error) {
	if at != "" || s.Archive {
		c, err := s.scene(ctx, at)
		if err != nil {
			return nil, nil, err
		}
		return c, verdict.Projected(c.view, projections.Options{}), nil
	}
	s.settle(ctx)
	c := &scene{s: s.Server, askedNS: time.Now().UnixNano()}
	var here *projections.Tables
	err := s.Projector.Hold(ctx, func(v fsm.View, t *projections.Tables) error {
		c.view, here = v, t // neither changes any more
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if here == nil {
		return nil, nil, connect.NewError(connect.CodeUnavailable, errors.New("nothing is in force yet"))
	}
	elsewhere := verdict.Projected(c.view, projections.Options{})
	return c, func(e *fsm.Endpoint) (*projections.Tables, error) {
		if e.Node == s.Node {
			return here, nil
		}
		return elsewhere(e)
	}, nil
}

func verdictParty(view fsm.View, words string, p verdict.Party) *varvev1.VerdictParty {
	out := &varvev1.VerdictParty{Name: words, Identity: p.Identity}
	if p.Addr.IsValid() {
		out.Address = p.Addr.String()
	}
	if e := p.Endpoint; e != nil {
		out.Endpoint, out.Node, out.Identity = endpointName(e.Ref), e.Node, e.Identity
		if id, ok := view.Identity(e.Identity); ok {
			out.Labels = labelStrings(id.Labels)
		}
		for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
			if out.Address == "" && a.IsValid() {
				out.Address = a.String()
			}
		}
		return out
	}
	for n := range view.Nodes() {
		for _, a := range n.Addresses {
			if a == p.Addr && !n.Left {
				out.Node = n.Name
			}
		}
	}
	return out
}

func directionVerdict(s verdict.Side) *varvev1.DirectionVerdict {
	out := &varvev1.DirectionVerdict{
		Allowed: s.Allowed, Audited: s.Audited, Reason: string(s.Reason), Rules: decidingRules(s.Rules), Table: hex(s.Table), Peer: s.ClassName,
		ByName: s.ByName, Facts: auditserver.FactProtos(s.Facts),
	}
	for _, i := range s.Isolated {
		out.IsolatedBy = append(out.IsolatedBy, &varvev1.IsolatingSpec{Policy: i.Policy.PB(), Spec: uint32(i.Spec), Revision: uint64(i.Revision)})
	}
	if s.Row != nil {
		out.Row = hex(s.Row.Value.Row)
		_, out.Events = causeStrings(s.Row.Cause)
	}
	return out
}

func decidingRules(rules []verdict.Rule) []*varvev1.DecidingRule {
	var out []*varvev1.DecidingRule
	for _, r := range rules {
		d := &varvev1.DecidingRule{Implicit: r.Implicit, Revision: uint64(r.Revision), Text: r.String()}
		if r.Implicit == "" {
			d.Policy, d.Spec, d.Section, d.Index = r.Policy.PB(), uint32(r.Spec), r.Section.String(), uint32(r.Index)
		}
		out = append(out, d)
	}
	return out
}
