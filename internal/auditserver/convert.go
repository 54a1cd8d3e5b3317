package auditserver

import (
	"fmt"
	"net/netip"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/audit"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/verdict"
)

func whyProto(view fsm.View, w *audit.Why) *varvev1.WhyResponse {
	port := audit.Port{Protocol: w.Answer.Protocol, Number: w.Answer.Port}
	out := &varvev1.WhyResponse{
		Revision: uint64(w.Revision), TimeUnixNs: w.TimeNS, AskedUnixNs: w.AskedNS, Outcome: w.Outcome.String(),
		From: partyProto(view, w.From, w.Answer.From), To: partyProto(view, w.To, w.Answer.To),
		Port: port.String(), HeldFrom: uint64(w.HeldFrom),
		Sides: []*varvev1.AuditSide{sideProto("egress", w.Answer.From, w.Answer.Egress), sideProto("ingress", w.Answer.To, w.Answer.Ingress)},
		Flip:  flipProto(w.Flip, w.FlipEvent),
	}
	if w.Port.Name != "" {
		out.Port = fmt.Sprintf("%s (%s)", w.Port.Name, port)
	}
	for i := range w.Events {
		out.Events = append(out.Events, EventProto(&w.Events[i]))
	}
	return out
}

func partyProto(view fsm.View, words string, p verdict.Party) *varvev1.AuditParty {
	out := &varvev1.AuditParty{Name: p.String(), Identity: p.Identity}
	if p.Addr.IsValid() {
		out.Name, out.Address = words, p.Addr.String()
	}
	if e := p.Endpoint; e != nil {
		out.Endpoint, out.Identity, out.Node = e.Ref.String(), e.Identity, e.Node
		for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
			if out.Address == "" && a.IsValid() {
				out.Address = a.String()
			}
		}
		if id, ok := view.Identity(e.Identity); ok {
			out.Labels = labels(id.Labels)
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

func labels(all policy.Labels) []string {
	out := make([]string, len(all))
	for i := range all {
		out[i] = all[i].String()
	}
	return out
}

func sideProto(direction string, subject verdict.Party, s verdict.Side) *varvev1.AuditSide {
	out := &varvev1.AuditSide{
		Direction: direction, Subject: subject.String(), Allowed: s.Allowed, Reason: string(s.Reason), Table: hex(s.Table), Class: s.ClassName,
		ByName: s.ByName,
	}
	out.Facts = FactProtos(s.Facts)
	for _, r := range s.Rules {
		out.Rules = append(out.Rules, r.RuleRef.String())
	}
	for _, i := range s.Isolated {
		name := i.Policy.String()
		if i.Spec > 0 {
			name = fmt.Sprintf("%s specs[%d]", name, i.Spec)
		}
		out.IsolatedBy = append(out.IsolatedBy, name)
	}
	if s.Row != nil {
		out.Row = hex(s.Row.Value.Row)
	}
	return out
}

func hex(id uint64) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("%016x", id)
}

// EventProto is an event as the API quotes it; nil of nil.
func EventProto(e *audit.Event) *varvev1.AuditEvent {
	if e == nil {
		return nil
	}
	out := &varvev1.AuditEvent{Revision: uint64(e.Revision), Kept: e.Kept, Roles: e.Roles}
	if e.Kept {
		out.TimeUnixNs, out.Kind, out.Stream, out.Actor, out.Node = e.TimeNS, e.Kind.String(), e.Stream, e.Actor, e.Node
		out.Rejected, out.Text = e.Rejected, e.Text
	}
	return out
}

func flipProto(f *audit.Flip, e *audit.Event) *varvev1.AuditFlip {
	if f == nil {
		return nil
	}
	out := &varvev1.AuditFlip{Revision: uint64(f.Revision), TimeUnixNs: f.TimeNS, Before: f.Before.String(), After: f.After.String(), Event: EventProto(e)}
	for _, x := range f.Expired {
		out.Expired = append(out.Expired, FactProto(x, string(verdict.Expired)))
	}
	return out
}

// FactProto is what an endpoint was told, as the API has it.
func FactProto(f verdict.Fact, standing string) *varvev1.NameFact {
	return &varvev1.NameFact{
		Name: f.Name, Address: f.Addr.String(), Chain: f.Chain, ExpiresUnixNs: f.ExpiresNS, Revision: uint64(f.Revision), Standing: standing,
	}
}

// FactProtos is FactProto of several, each with what it does for a connection.
func FactProtos(facts []verdict.KnownFact) (out []*varvev1.NameFact) {
	for _, f := range facts {
		out = append(out, FactProto(f.Fact, string(f.Standing)))
	}
	return out
}
