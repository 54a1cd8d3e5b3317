// Package verdict answers whether one party may open a connection to another, as
// the policy of a View has it: the verdict of egress at one end and of ingress at
// the other, and for each the rules and events that decide it. It is pure: the
// View may be of any revision, and the tables are whatever the caller has or
// computes for it.
package verdict

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// Errors of this package.
var (
	// ErrParty: the words for a party name nobody.
	ErrParty = errors.New("no such party")
	// ErrFamily: the parties have no address family in common, or none that the
	// protocol is of.
	ErrFamily = errors.New("no address family in common")
)

// Question is about the first packet of a connection.
type Question struct {
	From, To Party
	Protocol uint8  // IP protocol number
	Port     uint16 // of the destination; the type for ICMP and ICMPv6
	// TimeNS is when, in Unix time: what From has learned of an address admits until it
	// expires. 0 is the time of the View.
	TimeNS int64
	// More is what From knows beside what the View says, about whatever addresses: the
	// log has facts a moment after the kernel.
	More []Fact
}

// Reason is what kind of thing decides one direction.
type Reason string

// Reasons.
const (
	// NoPolicy: the subject is no endpoint of the cluster, so no policy guards it.
	NoPolicy Reason = "no policy guards it"
	// Itself: an endpoint always reaches itself.
	Itself Reason = "itself"
	// ByRule: the rules in Side.Rules decide.
	ByRule Reason = "rule"
	// NotIsolated: no policy isolates the subject in this direction.
	NotIsolated Reason = "not isolated"
	// DefaultDeny: the policies in Side.Isolated isolate the subject, and no rule
	// takes the connection.
	DefaultDeny Reason = "default deny"
)

// Answer is the verdict of both directions.
type Answer struct {
	Question
	Revision log.Revision // of the View
	Egress   Side         // of From
	Ingress  Side         // of To
	// Name is set if the question is about a DNS name.
	Name *Name
}

// Allowed tells whether the connection passes.
func (a *Answer) Allowed() bool { return a.Egress.Allowed && a.Ingress.Allowed }

// Audited tells that the connection passes and would not, were nothing in audit mode.
func (a *Answer) Audited() bool { return a.Allowed() && (a.Egress.Audited || a.Ingress.Audited) }

// Side is the verdict of one direction.
type Side struct {
	Allowed bool
	// Audited tells that audit mode allows what would be denied. Reason, Rules and
	// Isolated are then those of the deny.
	Audited bool
	Reason  Reason
	// Rules decided, in the order of policies. For a row that several rules make
	// these are all of them.
	Rules []Rule
	// Isolated are the specs that isolate the subject, set for DefaultDeny.
	Isolated []Isolation
	// Row is the row that decided; nil if none did. Its Cause holds every event
	// that it follows from.
	Row *projections.PolicyRow
	// Table, Class and Peer are what the subject's tables have for the two
	// parties; ClassName explains the class.
	Table, Class, Peer uint64
	ClassName          string
	// ByName tells that a fact can allow what is denied otherwise, and decides. Facts is
	// then what the subject knows of the address, by name; none: it never asked.
	ByName bool
	Facts  []KnownFact
}

// Admitting are the facts that admit the connection.
func (s *Side) Admitting() (out []KnownFact) {
	for _, f := range s.Facts {
		if f.Standing == Admits {
			out = append(out, f)
		}
	}
	return out
}

// Rule is a rule of a policy in force.
type Rule struct {
	projections.RuleRef
	Revision log.Revision // of the event that set the policy; 0: implicit
}

// Isolation is a spec of a policy that isolates an endpoint in one direction.
type Isolation struct {
	Policy   policy.Ref
	Spec     int // index in `specs`, 0 for `spec`
	Revision log.Revision
}

// TablesOf gives the tables of an endpoint's node, or at least what of them
// projections.BuildEndpoint has.
type TablesOf func(*fsm.Endpoint) (*projections.Tables, error)

// Projected is the TablesOf that computes the tables from a View.
func Projected(view fsm.View, opts projections.Options) TablesOf {
	return func(e *fsm.Endpoint) (*projections.Tables, error) {
		return projections.BuildEndpoint(view, e.Ref, opts)
	}
}

// Ask answers a question at a View. The tables must be those of the same View.
// ErrFamily, or an error of tables.
func Ask(view fsm.View, tables TablesOf, q Question) (*Answer, error) {
	if q.From.Name != "" {
		return nil, fmt.Errorf("from %s: %w; nobody sends from a name: give its address", q.From, ErrParty)
	}
	if q.To.Name != "" {
		return askName(view, tables, q)
	}
	from, to, err := addresses(q)
	if err != nil {
		return nil, err
	}
	a := &Answer{Question: q, Revision: view.Revision()}
	if q.From.Endpoint != nil && q.From.Endpoint == q.To.Endpoint {
		a.Egress = Side{Allowed: true, Reason: Itself}
		a.Ingress = a.Egress
		return a, nil
	}
	if a.Egress, err = side(view, tables, policy.Egress, q.From, q.To, to, q); err != nil {
		return nil, err
	}
	a.Ingress, err = side(view, tables, policy.Ingress, q.To, q.From, from, q)
	return a, err
}

// side is one direction of subject's policy towards other, which has addr in the
// family of the connection, or no address.
func side(view fsm.View, tables TablesOf, d policy.Direction, subject, other Party, addr netip.Addr, q Question) (Side, error) {
	e := subject.Endpoint
	if e == nil {
		return Side{Allowed: true, Reason: NoPolicy}, nil
	}
	t, err := tables(e)
	if err != nil {
		return Side{}, err
	}
	peer := uint64(other.Identity)
	if addr.IsValid() {
		peer = t.PeerOf(addr)
	}
	asked := projections.Question{Endpoint: e.ID, Direction: abi.Direction(d), Peer: peer, Protocol: q.Protocol, Port: q.Port}
	got, err := t.Verdict(asked)
	if err != nil {
		return Side{}, fmt.Errorf("%s of %s: %w", d, e.Ref, err)
	}
	s := Side{ByName: got.ByName}
	if got.ByName && addr.IsValid() {
		if got, err = s.byName(view, t, asked, got.Table, addr, q); err != nil {
			return Side{}, fmt.Errorf("%s of %s: %w", d, e.Ref, err)
		}
	}
	s.Allowed, s.Audited, s.Row, s.Table, s.Class, s.Peer = got.Verdict == abi.VerdictAllow, got.Audited, got.Row, got.Table, got.Class, peer
	s.ClassName = t.Names[got.Class]
	switch {
	case !got.Default:
		s.Reason = ByRule
		for _, ref := range got.Row.Cause.Rules {
			if s.Audited && !ref.Section.Denies() {
				continue // the row also has the rules that allow
			}
			s.Rules = append(s.Rules, ruleAt(view, ref))
		}
	case s.Allowed && !s.Audited:
		s.Reason = NotIsolated
	default:
		s.Reason = DefaultDeny
		s.Isolated = isolations(view, d, e, s.Audited)
	}
	return s, nil
}

// byName asks again, of what the subject knows of the address.
func (s *Side) byName(view fsm.View, t *projections.Tables, asked projections.Question, table uint64, addr netip.Addr, q Question) (projections.Answer, error) {
	about := func(f Fact) bool { return f.Addr != addr }
	facts := Join(FactsOf(view, q.From.Endpoint, addr), slices.DeleteFunc(slices.Clone(q.More), about))
	now := cmp.Or(q.TimeNS, view.TimeNS())
	for _, f := range facts {
		one := asked
		one.Learned = t.Opens(table, f.Name)
		got, err := t.Verdict(one)
		if err != nil {
			return got, err
		}
		known := KnownFact{f, NoRule}
		switch opens := got.Row != nil && slices.Contains(one.Learned, got.Row.Key.Class); {
		case opens && f.ExpiresNS > now:
			known.Standing = Admits
		case opens:
			known.Standing = Expired
		}
		s.Facts = append(s.Facts, known)
	}
	asked.Learned = Admit(t, table, facts, now)
	return t.Verdict(asked)
}

func ruleAt(view fsm.View, ref projections.RuleRef) Rule {
	r := Rule{RuleRef: ref}
	if p, ok := view.Policy(ref.Policy); ok && ref.Implicit == "" {
		r.Revision = p.Revision
	}
	return r
}

// isolations is the specs that isolate an endpoint, in the order of policies, with
// those in audit mode if these count.
func isolations(view fsm.View, d policy.Direction, e *fsm.Endpoint, audited bool) []Isolation {
	id, ok := view.Identity(e.Identity)
	if !ok {
		return nil
	}
	var out []Isolation
	for p := range view.Policies() {
		for i := range p.Policy.Specs {
			if spec := &p.Policy.Specs[i]; spec.DefaultDeny[d] && (audited || !spec.Audit) && spec.Subject.Matches(id.Labels) {
				out = append(out, Isolation{p.Policy.Ref, i, p.Revision})
			}
		}
	}
	return out
}

// addresses are those of both parties in one family; the zero Addr where a party
// is known by its identity alone.
func addresses(q Question) (from, to netip.Addr, err error) {
	for _, v6 := range []bool{false, true} {
		if v6 && q.Protocol == policy.ProtoICMP || !v6 && q.Protocol == policy.ProtoICMPv6 {
			continue
		}
		from, fromOK := q.From.address(v6)
		to, toOK := q.To.address(v6)
		if fromOK && toOK {
			return from, to, nil
		}
	}
	return from, to, fmt.Errorf("%s to %s, %s: %w", q.From, q.To, policy.ProtocolName(q.Protocol), ErrFamily)
}
