package policytest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// Options of Run.
type Options struct {
	Engine   Engine // nil: Tables
	Parallel int    // cases at a time; 0: as many as CPUs may be used
	// Progress, if set, is called after each case, one call at a time.
	Progress func(done, total int)
}

// Outcome is what became of a case.
type Outcome string

// Outcomes.
const (
	// Pass: every verdict is the case's, or the policies were to be rejected
	// and are.
	Pass Outcome = "pass"
	// Fail: some verdict differs, or the case could not be run; Reason and
	// Difference say how.
	Fail Outcome = "fail"
	// Refused: a policy uses what varve does not support; Fields names it.
	Refused Outcome = "refused"
)

// Report is the result of a run.
type Report struct {
	Engine  string `json:"engine"`
	Cases   int    `json:"cases"`
	Passed  int    `json:"passed"`
	Failed  int    `json:"failed"`
	Refused int    `json:"refused"`
	// Connections were compared, each with up to two Verdicts: that of egress at
	// one end and of ingress at the other. Wrong counts connections.
	Connections int      `json:"connections"`
	Verdicts    int      `json:"verdicts"`
	Wrong       int      `json:"wrong"`
	Results     []Result `json:"results"` // in the order of files and lines
}

// Result is the outcome of one case.
type Result struct {
	File    string  `json:"file"`
	Line    int     `json:"line"`
	Case    string  `json:"case"`
	Desc    string  `json:"desc,omitempty"`
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason,omitempty"`
	// Fields are the fields of the policies that are not supported, as paths.
	Fields      []string `json:"fields,omitempty"`
	Connections int      `json:"connections"`
	Verdicts    int      `json:"verdicts"`
	Wrong       int      `json:"wrong"`
	// Difference is for people: the rows of the matrix that differ, wanted over
	// got, and what decided each wrong verdict.
	Difference string `json:"difference,omitempty"`
}

// Run runs every case of files. The error says that a file could not be read, or
// that ctx ended; a case that cannot be run fails by itself.
func Run(ctx context.Context, files []string, opts Options) (*Report, error) {
	engine := opts.Engine
	if engine == nil {
		engine = Tables
	}
	type job struct {
		c   testCase
		err error
	}
	var jobs []job
	for _, file := range files {
		if err := readFile(file, func(c testCase, err error) { jobs = append(jobs, job{c, err}) }); err != nil {
			return nil, err
		}
	}

	report := &Report{Engine: engine.Name(), Cases: len(jobs), Results: make([]Result, len(jobs))}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(cmp.Or(opts.Parallel, runtime.GOMAXPROCS(0)))
	var mu sync.Mutex
	done := 0
	for i := range jobs {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			report.Results[i] = runCase(ctx, engine, &jobs[i].c, jobs[i].err)
			mu.Lock()
			defer mu.Unlock()
			done++
			if opts.Progress != nil {
				opts.Progress(done, len(jobs))
			}
			return nil
		})
	}
	if err := errors.Join(group.Wait(), context.Cause(ctx)); err != nil && done < len(jobs) {
		return nil, err
	}
	report.sum()
	return report, nil
}

func (r *Report) sum() {
	for _, one := range r.Results {
		switch one.Outcome {
		case Pass:
			r.Passed++
		case Refused:
			r.Refused++
		default:
			r.Failed++
		}
		r.Connections += one.Connections
		r.Verdicts += one.Verdicts
		r.Wrong += one.Wrong
	}
}

// runCase gives one case its result. Unread is why its line could not be read.
func runCase(ctx context.Context, engine Engine, c *testCase, unread error) Result {
	r := Result{File: c.file, Line: c.line, Case: c.name(), Desc: c.Desc}
	if unread != nil {
		return r.fail(unread)
	}
	if c.Pattern != "" {
		return r.refuse("FQDN patterns are not supported", "toFQDNs."+c.Kind)
	}
	sets, err := parsePolicies(c)
	switch {
	case errors.Is(err, policy.ErrInvalid):
		if c.Error == "" {
			return r.fail(err)
		}
		r.Outcome = Pass
		return r
	case errors.Is(err, policy.ErrUnsupported):
		return r.refuse(err.Error(), unsupportedFields(err)...)
	case err != nil:
		return r.fail(err)
	case c.Error != "":
		return r.fail(fmt.Errorf("the policies are accepted; they must be rejected: %s", c.Error))
	}
	if err := judgeCase(ctx, engine, c, sets, &r); err != nil {
		return r.fail(err)
	}
	r.Outcome = Pass
	if r.Wrong > 0 {
		r.Outcome = Fail
		r.Reason = fmt.Sprintf("%d of %d connections differ", r.Wrong, r.Connections)
	}
	return r
}

func (r Result) fail(err error) Result {
	r.Outcome, r.Reason = Fail, err.Error()
	return r
}

func (r Result) refuse(reason string, fields ...string) Result {
	r.Outcome, r.Reason, r.Fields = Refused, reason, fields
	return r
}

func unsupportedFields(err error) []string {
	var out []string
	for _, e := range policy.FieldErrors(err) {
		if errors.Is(e, policy.ErrUnsupported) {
			out = append(out, e.Source+"."+e.Path)
		}
	}
	return out
}

// judgeCase compares every verdict of the case, counting in r.
func judgeCase(ctx context.Context, engine Engine, c *testCase, sets []*eventpb.PolicySet, r *Result) (err error) {
	truth, err := c.truth()
	if err != nil {
		return err
	}
	tables, parties, err := project(c, sets)
	if err != nil {
		return err
	}
	judge, err := engine.Load(ctx, tables)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, judge.Close()) }()

	var diff difference
	for i, p := range c.Probes {
		if err := ctx.Err(); err != nil {
			return err
		}
		proto, err := protocol(p.Proto)
		if err != nil {
			return err
		}
		for from := range parties {
			got, err := judgeRow(judge, parties, from, proto, p.Port, truth[i][from], r)
			if err != nil {
				return err
			}
			diff.row(judge, p, proto, parties, from, truth[i][from], got)
		}
	}
	r.Difference = diff.String()
	return nil
}

// Bits of a truth character.
const (
	ingressAllowed = 1
	egressAllowed  = 2
)

// judgeRow is the row of the matrix as the engine sees it.
func judgeRow(j Judge, parties []party, from int, proto uint8, port uint16, want string, r *Result) (string, error) {
	got := []byte(want)
	for to := range parties {
		if want[to] == '.' {
			continue
		}
		r.Connections++
		bits := byte(0)
		for _, side := range []struct {
			bit            byte
			direction      abi.Direction
			subject, other party
		}{
			{ingressAllowed, abi.Ingress, parties[to], parties[from]},
			{egressAllowed, abi.Egress, parties[from], parties[to]},
		} {
			if side.subject.endpoint == 0 {
				bits |= side.bit
				continue
			}
			r.Verdicts++
			allow, err := j.Allows(question(side.direction, side.subject, side.other, proto, port))
			if err != nil {
				return "", fmt.Errorf("from %s to %s: %w", parties[from].name, parties[to].name, err)
			}
			if allow {
				bits |= side.bit
			}
		}
		if got[to] = '0' + bits; got[to] != want[to] {
			r.Wrong++
		}
	}
	return string(got), nil
}
