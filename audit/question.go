package audit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/verdict"
)

// Question is whether From may open a connection to To. Its words are resolved
// anew at each revision, so that a name is whoever had it then, and an address
// whoever used it then.
type Question struct {
	From, To string // as verdict.ParseParty reads them
	Port     Port
	// TimeNS is the moment that is asked about, in Unix time: what From was told of a name
	// may have expired since the revision. 0 is the time of the revision.
	TimeNS int64
	// SinceNS is the moment after which flips are looked for, if that is later than the
	// time of the revision after which they are.
	SinceNS int64
}

// Port is a port of the destination.
type Port struct {
	Name     string // of a named port; then Number follows from the destination
	Protocol uint8  // IP protocol number; of a named port 0 is any
	Number   uint16 // the type for ICMP and ICMPv6
}

// ParsePort reads what verdict.ParsePort does, a number without protocol as TCP's,
// or the name of a port of the destination, "http" or "dns/udp".
func ParsePort(s string) (Port, error) {
	name, protocol, given := strings.Cut(s, "/")
	if name != "" && strings.Trim(name, "0123456789") == "" && !given {
		s += "/tcp"
	}
	number, err := port(s)
	if err == nil {
		return number, nil
	}
	p := Port{Name: strings.ToLower(name)}
	if given {
		for _, known := range []uint8{policy.ProtoTCP, policy.ProtoUDP, policy.ProtoSCTP} {
			if strings.EqualFold(protocol, policy.ProtocolName(known)) {
				p.Protocol = known
			}
		}
	}
	if !strings.ContainsAny(p.Name, "abcdefghijklmnopqrstuvwxyz") || given && p.Protocol == 0 {
		return Port{}, fmt.Errorf("%w: %w; or the name of a port of the destination", ErrQuestion, err)
	}
	return p, nil
}

func port(s string) (Port, error) {
	protocol, number, err := verdict.ParsePort(s)
	return Port{Protocol: protocol, Number: number}, err
}

// String is the port as ParsePort reads it.
func (p Port) String() string {
	name := p.Name
	if name == "" {
		name = fmt.Sprint(p.Number)
	}
	if p.Protocol == 0 {
		return name
	}
	return name + "/" + strings.ToLower(policy.ProtocolName(p.Protocol))
}

// check finds what is wrong with the question at any revision.
func (q Question) check() error {
	for _, side := range []struct{ name, words string }{{"from", q.From}, {"to", q.To}} {
		if side.words == "" {
			return fmt.Errorf("%w: %s: empty", ErrQuestion, side.name)
		}
		party, err := verdict.ParseParty(fsm.View{}, side.words)
		if _, isPod := podOf(side.words); err != nil && !isPod {
			return fmt.Errorf("%w: %s: %w", ErrQuestion, side.name, err)
		}
		if party.Name != "" && side.name == "from" {
			return fmt.Errorf("%w: from: %q is a DNS name, and a name opens no connection; give an endpoint or an address", ErrQuestion, q.From)
		}
	}
	return nil
}

// resolve is the question at a View. ErrAbsent if a party or its port did not
// exist.
func (q Question) resolve(view fsm.View) (verdict.Question, error) {
	var out verdict.Question
	var err error
	if out.From, err = verdict.ParseParty(view, q.From); err != nil {
		return out, absent{fmt.Errorf("from: %w", err)}
	}
	if out.To, err = verdict.ParseParty(view, q.To); err != nil {
		return out, absent{fmt.Errorf("to: %w", err)}
	}
	out.Protocol, out.Port = q.Port.Protocol, q.Port.Number
	if q.Port.Name == "" {
		return out, nil
	}
	if out.To.Endpoint == nil {
		return out, absent{fmt.Errorf("port %s: only an endpoint has named ports, and %s is none at revision %d", q.Port, q.To, view.Revision())}
	}
	for _, p := range out.To.Endpoint.NamedPorts {
		if p.Name == q.Port.Name && (q.Port.Protocol == 0 || q.Port.Protocol == p.Protocol) {
			out.Protocol, out.Port = p.Protocol, p.Port
			return out, nil
		}
	}
	return out, absent{fmt.Errorf("port %s: endpoint %s has none of that name at revision %d", q.Port, out.To.Endpoint.Ref, view.Revision())}
}

// absent is an error that says who or what does not exist: it is an ErrAbsent.
type absent struct{ error }

func (absent) Is(target error) bool { return target == ErrAbsent }

func (a absent) Unwrap() error { return a.error }

// ask answers the question at a View, which may be an excerpt, and a time.
func (a *Auditor) ask(view fsm.View, q Question, timeNS int64) (*verdict.Answer, error) {
	at, err := q.resolve(view)
	if err != nil {
		return nil, err
	}
	at.TimeNS = timeNS
	answer, err := verdict.Ask(view, verdict.Projected(view, a.Options), at)
	if errors.Is(err, verdict.ErrFamily) {
		return nil, absent{err}
	}
	return answer, err
}

// Outcome is what becomes of the connection.
type Outcome uint8

// Outcomes.
const (
	Absent Outcome = iota // a party or its port does not exist
	Denied                // in one direction or both
	Allowed
)

// String is "absent", "denied" or "allowed".
func (o Outcome) String() string { return [...]string{"absent", "denied", "allowed"}[o] }

func (a *Auditor) outcome(view fsm.View, q Question, timeNS int64) (Outcome, error) {
	answer, err := a.ask(view, q, timeNS)
	switch {
	case errors.Is(err, ErrAbsent):
		return Absent, nil
	case err != nil:
		return Absent, err
	}
	return outcomeOf(answer), nil
}

func outcomeOf(answer *verdict.Answer) Outcome {
	if answer.Allowed() {
		return Allowed
	}
	return Denied
}

// podOf is the endpoint that a party's words name, if they name one.
func podOf(party string) (fsm.EndpointRef, bool) {
	if _, isAddr := addrOf(party); isAddr || strings.HasPrefix(party, policy.SourceReserved+":") {
		return fsm.EndpointRef{}, false
	}
	namespace, name, qualified := strings.Cut(party, "/")
	if !qualified {
		if strings.Contains(party, ".") {
			return fsm.EndpointRef{}, false
		}
		namespace, name = "default", party
	}
	return fsm.EndpointRef{Namespace: namespace, Name: name}, name != "" && namespace != ""
}

// addrOf is the address that a party's words are, if they are one.
func addrOf(party string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(party)
	return addr.Unmap().WithZone(""), err == nil
}

// Outcome is what became of the connection at a revision.
func (a *Auditor) Outcome(ctx context.Context, q Question, at log.Revision) (Outcome, error) {
	if err := q.check(); err != nil {
		return Absent, err
	}
	view, err := a.Past.View(ctx, at)
	if err != nil {
		return Absent, err
	}
	keep, err := a.sieveOf(ctx, q, view, at)
	if err != nil {
		return Absent, err
	}
	return a.outcome(keep.excerpt(view).View(), q, q.time(view))
}

// time is the moment that is asked about, at a View.
func (q Question) time(view fsm.View) int64 { return max(q.TimeNS, view.TimeNS()) }
