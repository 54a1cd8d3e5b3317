package apiserver

import (
	"context"
	"net/netip"
	"time"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/auditserver"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// proxyTimeout bounds how long the DNS proxy is asked for what the log may not have yet.
const proxyTimeout = time.Second

// told is what an endpoint of this node was told of an address, or for a name, as the DNS
// proxy has it: it knows it before the log does. Nothing if it does not answer.
func (s *Server) told(ctx context.Context, e *fsm.Endpoint, addr netip.Addr, name string) []verdict.Fact {
	if s.Names == nil || e == nil || e.Node != s.Node {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	facts, err := s.Names.Facts(ctx, e.Ref, addr, name)
	if err != nil {
		s.Logger.Debug("the DNS proxy does not say what it knows; the log does", "error", err)
	}
	return facts
}

// Standings of the addresses of a name that is asked about.
const (
	standingAllowed = "allowed"
	standingDenied  = "denied"
)

// nameVerdict is what an answer says of a name, at a moment.
func nameVerdict(a *verdict.Answer, nowNS int64) *varvev1.NameVerdict {
	out := &varvev1.NameVerdict{Name: a.To.String(), Rules: decidingRules(a.Name.Selected)}
	for i, f := range a.Name.Known {
		standing := standingDenied
		switch {
		case a.Name.Passes[i]:
			standing = standingAllowed
		case f.ExpiresNS <= nowNS:
			standing = string(verdict.Expired)
		}
		out.Addresses = append(out.Addresses, auditserver.FactProto(f, standing))
	}
	if a.Name.Judged.IsValid() {
		out.Judged = a.Name.Judged.String()
	}
	return out
}

// facts is what the subject of an event of egress was told of the other side, if nothing
// else can admit the packet.
func (s *Server) facts(ctx context.Context, n *names, e dataplane.Event) (facts []*varvev1.NameFact, byName bool) {
	subject := n.byID[e.Endpoint]
	_, inCluster := n.byAddr[e.Dst]
	decided := e.Type == abi.EventNewFlow || e.Reason == abi.PolicyDefaultDeny
	if e.Drift != nil || e.Direction != abi.Egress || !decided || subject == nil || n.tables == nil || !e.Dst.IsValid() || inCluster {
		return nil, false
	}
	q := verdict.Question{
		From: verdict.Party{Endpoint: subject, Addr: e.Src}, To: verdict.Party{Addr: e.Dst}, Protocol: e.Protocol, Port: e.DstPort, TimeNS: unixTime(e),
	}
	if e.Protocol == policy.ProtoICMP || e.Protocol == policy.ProtoICMPv6 {
		q.Port = e.SrcPort
	}
	tables := func(*fsm.Endpoint) (*projections.Tables, error) { return n.tables, nil }
	a, err := verdict.Ask(s.Log.View(), tables, q)
	if err != nil || !a.Egress.ByName {
		return nil, false
	}
	q.More = s.told(ctx, subject, e.Dst, "")
	if a, err = verdict.Ask(s.Log.View(), tables, q); err != nil {
		return nil, false
	}
	return auditserver.FactProtos(a.Egress.Facts), true
}
