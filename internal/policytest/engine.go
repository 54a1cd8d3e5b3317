package policytest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// Question is one direction of one connection: may it pass, as far as the policy
// of the subject goes?
type Question struct {
	Endpoint  uint32 // the subject's id
	Direction abi.Direction
	Subject   netip.Addr
	Peer      uint64     // the other side, as the tables number it
	PeerAddr  netip.Addr // not valid if it is known by its identity alone
	Protocol  uint8
	Port      uint16 // of the destination; the type for ICMP
}

// ErrNotAsked is returned by a Judge for a question that no policy is asked in the
// datapath: there is no such packet, or it passes or is dropped whatever policy
// says, e.g. an ICMP error.
var ErrNotAsked = errors.New("no policy is asked about this packet")

// Engine judges by tables. Load may be called by several goroutines at a time, and
// Close once all judges are closed.
type Engine interface {
	Name() string
	Load(ctx context.Context, t *projections.Tables) (Judge, error)
	Close() error
}

// Judge answers for the tables of one case, called by one goroutine.
type Judge interface {
	// Allows is the verdict, or ErrNotAsked.
	Allows(q Question) (bool, error)
	// Explain says in words what decided.
	Explain(q Question) string
	Close() error
}

// Tables is the engine that walks the desired tables as the programs walk the
// maps.
var Tables Engine = tablesEngine{}

type tablesEngine struct{}

func (tablesEngine) Name() string { return "tables" }
func (tablesEngine) Close() error { return nil }

func (tablesEngine) Load(_ context.Context, t *projections.Tables) (Judge, error) {
	return tablesJudge{t}, nil
}

type tablesJudge struct{ tables *projections.Tables }

func (tablesJudge) Close() error { return nil }

func (j tablesJudge) verdict(q Question) (projections.Answer, error) {
	return j.tables.Verdict(projections.Question{
		Endpoint: q.Endpoint, Direction: q.Direction, Peer: q.Peer, Protocol: q.Protocol, Port: q.Port,
	})
}

func (j tablesJudge) Allows(q Question) (bool, error) {
	a, err := j.verdict(q)
	return a.Verdict == abi.VerdictAllow, err
}

func (j tablesJudge) Explain(q Question) string {
	a, err := j.verdict(q)
	switch {
	case err != nil:
		return err.Error()
	case a.Default && a.Verdict == abi.VerdictAllow:
		return "no policy isolates it"
	case a.Default:
		return "no rule allows it"
	}
	rules := make([]string, len(a.Row.Cause.Rules))
	for i, r := range a.Row.Cause.Rules {
		rules[i] = r.String()
	}
	slices.Sort(rules)
	return "by " + strings.Join(rules, ", ")
}
