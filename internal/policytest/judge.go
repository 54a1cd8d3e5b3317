package policytest

import (
	"context"
	"errors"
	"fmt"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log/eventpb"
)

// Bits of a truth character.
const (
	ingressAllowed = 1
	egressAllowed  = 2
)

// opinion is what one engine thinks of a case: a matrix like the truth's for each
// probe.
type opinion struct {
	engine string
	judge  Judge
	got    [][]string
}

// judgeCase compares every verdict of the case, counting in r.
func judgeCase(ctx context.Context, engines []Engine, c *testCase, sets []*eventpb.PolicySet, r *Result) (err error) {
	truth, err := c.truth()
	if err != nil {
		return err
	}
	tables, parties, err := project(c, sets)
	if err != nil {
		return err
	}
	opinions := make([]opinion, len(engines))
	for i, e := range engines {
		o := &opinions[i]
		o.engine = e.Name()
		if o.judge, err = e.Load(ctx, tables); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, o.judge.Close()) }()
		if err := o.form(ctx, c.Probes, parties, truth, r); err != nil {
			return err
		}
	}
	r.Difference = compare(c.Probes, parties, truth, opinions, r)
	return nil
}

// form asks for every verdict of which the truth says something.
func (o *opinion) form(ctx context.Context, probes []probe, parties []party, truth [][]string, r *Result) error {
	for i, p := range probes {
		if err := ctx.Err(); err != nil {
			return err
		}
		proto, err := protocol(p.Proto)
		if err != nil {
			return err
		}
		matrix := make([]string, len(parties))
		for from := range parties {
			if matrix[from], err = o.row(parties, from, proto, p.Port, truth[i][from], r); err != nil {
				return fmt.Errorf("engine %s: %s from %s %w", o.engine, p, parties[from].name, err)
			}
		}
		o.got = append(o.got, matrix)
	}
	return nil
}

// row is a row of a matrix as the engine sees it.
func (o *opinion) row(parties []party, from int, proto uint8, port uint16, want string, r *Result) (string, error) {
	got := []byte(want)
	for to := range parties {
		if want[to] == '.' {
			continue
		}
		bits := byte(0)
		for _, s := range sides(parties[from], parties[to]) {
			if s.subject.endpoint == 0 {
				bits |= s.bit
				continue
			}
			allow, err := o.judge.Allows(question(s.direction, s.subject, s.other, proto, port))
			if errors.Is(err, ErrNotAsked) {
				r.NotAsked++
				bits |= want[to] & s.bit
				continue
			}
			if err != nil {
				return "", fmt.Errorf("to %s: %w", parties[to].name, err)
			}
			r.Verdicts++
			if allow {
				bits |= s.bit
			}
		}
		got[to] = '0' + bits
	}
	return string(got), nil
}

// side is one direction of a connection.
type side struct {
	name           string
	bit            byte
	direction      abi.Direction
	subject, other party
}

func sides(from, to party) [2]side {
	return [2]side{
		{"egress", egressAllowed, abi.Egress, from, to},
		{"ingress", ingressAllowed, abi.Ingress, to, from},
	}
}
