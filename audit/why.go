package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// Why is the answer to a question at one revision, and what made it so.
type Why struct {
	Question
	Revision log.Revision
	TimeNS   int64 // of the revision
	AskedNS  int64 // the moment that was asked about
	Outcome  Outcome
	Answer   *verdict.Answer
	// Events are behind the answer: whatever the parties, their identities and the
	// rows that decide follow from, in the order of revisions.
	Events []Event
	// Flip is the last change of the outcome at or before the moment, and FlipEvent
	// the record of it; of one that only time made, the record of what expired. Nil: the
	// outcome was the same from HeldFrom on.
	Flip      *Flip
	FlipEvent *Event
	HeldFrom  log.Revision
}

// AbsentError is of a party that does not exist at the revision asked about.
type AbsentError struct {
	At  log.Revision
	Err error // ErrAbsent, with who or what is absent
	// LastSeen is the newest revision at which nothing was absent, 0 if there was
	// none; Gone is the record after it.
	LastSeen log.Revision
	Gone     *Event
}

func (e *AbsentError) Error() string {
	if e.LastSeen == 0 {
		return fmt.Sprintf("%v; nor at any revision before that is kept", e.Err)
	}
	return fmt.Sprintf("%v; ask with --at %d, the last revision before one (%d) that %s", e.Err, e.LastSeen, e.Gone.Revision, e.Gone.Text)
}

func (e *AbsentError) Unwrap() error { return e.Err }

// Why answers a question at a revision. An *AbsentError if a party or its port did
// not exist then.
func (a *Auditor) Why(ctx context.Context, q Question, at log.Revision) (*Why, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	view, err := a.Past.View(ctx, at)
	if err != nil {
		return nil, err
	}
	flip, err := a.LastFlip(ctx, q, at)
	if err != nil {
		return nil, err
	}
	keep, err := a.sieveOf(ctx, q, view, at)
	if err != nil {
		return nil, err
	}
	part := keep.excerpt(view).View()
	resolved, err := q.resolve(part)
	resolved.TimeNS = q.time(view)
	if errors.Is(err, ErrAbsent) {
		return nil, a.absent(ctx, err, at, flip)
	}
	if err != nil {
		return nil, err
	}
	chain := chain{causes: causes{}, view: part, tables: map[fsm.EndpointRef]*projections.Tables{}}
	answer, err := verdict.Ask(part, chain.remember(verdict.Projected(part, a.Options)), resolved)
	if errors.Is(err, verdict.ErrFamily) {
		return nil, a.absent(ctx, absent{err}, at, flip)
	}
	if err != nil {
		return nil, err
	}
	out := &Why{Question: q, Revision: at, TimeNS: view.TimeNS(), AskedNS: q.time(view), Outcome: outcomeOf(answer), Answer: answer, Flip: flip, HeldFrom: a.Past.First()}
	chain.follow(answer)
	if out.Events, err = a.events(ctx, chain.causes); err != nil {
		return nil, err
	}
	if flip != nil {
		e, err := a.event(ctx, flip.Cause(), fmt.Sprintf("makes it %s, which was %s before", flip.After, flip.Before))
		if err != nil {
			return nil, err
		}
		out.FlipEvent, out.HeldFrom = &e, flip.Revision
	}
	return out, nil
}

// absent says since when something is absent.
func (a *Auditor) absent(ctx context.Context, err error, at log.Revision, flip *Flip) error {
	out := &AbsentError{At: at, Err: err}
	if flip != nil && flip.After == Absent {
		gone, err := a.event(ctx, flip.Revision)
		if err != nil {
			return err
		}
		out.LastSeen, out.Gone = flip.Revision-1, &gone
	}
	return out
}

// chain follows an answer back to the events that it comes from.
type chain struct {
	causes
	view   fsm.View
	tables map[fsm.EndpointRef]*projections.Tables
}

// remember keeps the tables that a verdict was read from.
func (c *chain) remember(of verdict.TablesOf) verdict.TablesOf {
	return func(e *fsm.Endpoint) (*projections.Tables, error) {
		if t, ok := c.tables[e.Ref]; ok {
			return t, nil
		}
		t, err := of(e)
		if err == nil {
			c.tables[e.Ref] = t
		}
		return t, err
	}
}

func (c *chain) follow(answer *verdict.Answer) {
	c.party("from", answer.From)
	c.party("to", answer.To)
	c.facts(answer)
	c.side("egress", abi.Egress, answer.Egress, answer.From, answer.To)
	c.side("ingress", abi.Ingress, answer.Ingress, answer.To, answer.From)
}

// party adds who a party is: its endpoint, identity and namespace.
func (c *chain) party(side string, p verdict.Party) {
	if p.Endpoint == nil {
		for n := range c.view.Nodes() {
			for _, addr := range n.Addresses {
				if addr == p.Addr && !n.Left {
					c.add(n.Revision, "%s: node %s has address %s", side, n.Name, addr)
				}
			}
		}
		return
	}
	e := p.Endpoint
	c.add(e.Created, "%s: endpoint %s is created", side, e.Ref)
	if e.Revision != e.Created {
		c.add(e.Revision, "%s: last change of endpoint %s", side, e.Ref)
	}
	c.add(e.IdentityRevision, "%s: endpoint %s gets identity %d", side, e.Ref, e.Identity)
	if id, ok := c.view.Identity(e.Identity); ok {
		c.add(id.Revision, "%s: identity %d is allocated", side, e.Identity)
	}
	if ns, ok := c.view.Namespace(e.Ref.Namespace); ok {
		c.add(ns.Revision, "%s: namespace %s has its labels", side, ns.Name)
	}
}

// facts adds the answers to questions for names that the verdict hangs on.
func (c *chain) facts(answer *verdict.Answer) {
	for _, f := range answer.Egress.Facts {
		told := fmt.Sprintf("egress: %s was told %s for %s", answer.From, f.Addr, strings.TrimSuffix(f.Name, "."))
		switch f.Standing {
		case verdict.Admits:
			c.add(f.Revision, "%s, which admits it until %s", told, timeText(f.ExpiresNS))
		case verdict.Expired:
			c.add(f.Revision, "%s, which expired at %s", told, timeText(f.ExpiresNS))
		default:
			c.add(f.Revision, "%s, by which no rule opens this port", told)
		}
	}
	if answer.Name == nil {
		return
	}
	for _, f := range answer.Name.Known {
		if f.Addr != answer.Name.Judged {
			c.add(f.Revision, "to: %s was told %s for %s, until %s", answer.From, f.Addr, answer.To, timeText(f.ExpiresNS))
		}
	}
}

// side adds what decided one direction.
func (c *chain) side(name string, d abi.Direction, s verdict.Side, subject, other verdict.Party) {
	for _, r := range s.Rules {
		c.add(r.Revision, "%s: rule %s decides", name, r.RuleRef)
	}
	for _, i := range s.Isolated {
		c.add(i.Revision, "%s: policy %s isolates %s, and no rule admits", name, i.Policy, subject)
	}
	if s.Row != nil {
		for _, revision := range s.Row.Cause.Events {
			if _, known := c.causes[revision]; !known {
				c.add(revision, "%s: the row that decides follows from it", name)
			}
		}
	}
	if subject.Endpoint == nil {
		return
	}
	t := c.tables[subject.Endpoint.Ref]
	if t == nil {
		return
	}
	if row, ok := t.Endpoints.Get(projections.EndpointKey{ID: subject.Endpoint.ID}); ok {
		scope := row.Value.Egress.Scope
		if d == abi.Ingress {
			scope = row.Value.Ingress.Scope
		}
		c.class(name, t, abi.ClassKey{Scope: scope, Peer: s.Peer}, other)
	}
}

// class adds why a peer is of the class that the deciding row is for.
func (c *chain) class(name string, t *projections.Tables, key abi.ClassKey, other verdict.Party) {
	row, ok := t.Classes.Get(key)
	if !ok {
		key.Peer = uint64(uint32(key.Peer)) // as ingress scopes know an endpoint
		if row, ok = t.Classes.Get(key); !ok {
			return
		}
	}
	for _, revision := range t.ClassCause(row).Events {
		if _, known := c.causes[revision]; !known {
			c.add(revision, "%s: %s is a peer that the rules name", name, other)
		}
	}
}
