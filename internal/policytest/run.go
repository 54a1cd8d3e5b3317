package policytest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/policy"
)

// Options of Run.
type Options struct {
	// Engines judge every case, each on its own, and must agree. They stay the
	// caller's to close. Empty: Tables.
	Engines  []Engine
	Parallel int // cases at a time; 0: as many as CPUs may be used
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
	// Connections were compared, by each engine with up to two Verdicts: that of
	// egress at one end and of ingress at the other. NotAsked are verdicts that an
	// engine could not give, since no policy is asked about such a packet. Wrong
	// counts connections.
	Connections int      `json:"connections"`
	Verdicts    int      `json:"verdicts"`
	NotAsked    int      `json:"not_asked"`
	Wrong       int      `json:"wrong"`
	Nanoseconds int64    `json:"nanoseconds"`
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
	NotAsked    int      `json:"not_asked"`
	Wrong       int      `json:"wrong"`
	Nanoseconds int64    `json:"nanoseconds"`
	// Difference is for people: for each probe whose matrix differs the one that
	// is wanted, those that the engines gave and where they differ, and what decided
	// each wrong verdict.
	Difference string `json:"difference,omitempty"`
}

// Run runs every case of files. The error says that a file could not be read, or
// that ctx ended; a case that cannot be run fails by itself.
func Run(ctx context.Context, files []string, opts Options) (*Report, error) {
	began := time.Now()
	engines := opts.Engines
	if len(engines) == 0 {
		engines = []Engine{Tables}
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

	report := &Report{Engine: names(engines), Cases: len(jobs), Results: make([]Result, len(jobs))}
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
			report.Results[i] = runCase(ctx, engines, &jobs[i].c, jobs[i].err)
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
	report.Nanoseconds = int64(time.Since(began))
	return report, nil
}

func names(engines []Engine) string {
	out := make([]string, len(engines))
	for i, e := range engines {
		out[i] = e.Name()
	}
	return strings.Join(out, ", ")
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
		r.NotAsked += one.NotAsked
		r.Wrong += one.Wrong
	}
}

// runCase gives one case its result. Unread is why its line could not be read.
func runCase(ctx context.Context, engines []Engine, c *testCase, unread error) Result {
	began := time.Now()
	r := judged(ctx, engines, c, unread)
	r.Nanoseconds = int64(time.Since(began))
	return r
}

func judged(ctx context.Context, engines []Engine, c *testCase, unread error) Result {
	r := Result{File: c.file, Line: c.line, Case: c.name(), Desc: c.Desc}
	if unread != nil {
		return r.fail(unread)
	}
	if c.Kind != "" {
		if err := judgePattern(c, &r); err != nil {
			return r.fail(err)
		}
		r.Outcome = Pass
		return r
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
	if err := judgeCase(ctx, engines, c, sets, &r); err != nil {
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
