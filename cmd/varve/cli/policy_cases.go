package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/varve-net/varve/internal/policytest"
)

// shownFailures is how many failed cases are shown in full unless all are asked
// for; a broken rule tends to fail hundreds in the same way.
const shownFailures = 10

// engineNames are what --engine takes.
var engineNames = []string{"tables", "bpf", "both"}

func newEngines(name string) ([]policytest.Engine, error) {
	switch name {
	case "tables":
		return []policytest.Engine{policytest.Tables}, nil
	case "bpf":
		kernel, err := newKernelEngine()
		return []policytest.Engine{kernel}, err
	case "both":
		kernel, err := newKernelEngine()
		return []policytest.Engine{policytest.Tables, kernel}, err
	}
	return nil, usagef("--engine: %q is none of %s", name, strings.Join(engineNames, ", "))
}

func newKernelEngine() (policytest.Engine, error) {
	e, err := policytest.NewKernel()
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w; run as root, or with --engine tables", err)
	}
	return e, err
}

func (a *app) policyTest() *cobra.Command {
	var engine, junit string
	var verbose bool
	var opts policytest.Options
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Run policy test cases, without an agent",
		Long: strings.TrimSpace(`
Run policy test cases, without an agent. A file holds one case a line, as JSON, also
gzipped: a small cluster, its policies, and the verdict that every connection in it
must get; or an FQDN pattern and the names that it must match. Cases whose policies
use what is not supported are refused, with the field.

The engine tables walks the tables that a node would have. The engine bpf writes them
to BPF maps of its own and runs a packet through the real programs for each verdict,
which needs root; nothing that the node enforces is touched. With both, each must be
right, so they must agree.

The exit code is 1 if a case fails.`),
		Example: strings.Trim(`
  varve policy test cases.jsonl.gz
  varve policy test --engine both *.jsonl
  varve policy test cases.jsonl -o junit >report.xml`, "\n"),
		Args: atLeast(1, "at least one FILE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.Engines, err = newEngines(engine); err != nil {
				return err
			}
			defer func() {
				for _, e := range opts.Engines {
					err = joined(err, e.Close())
				}
			}()
			bar := a.newBar("cases")
			opts.Progress = bar.set
			report, err := policytest.Run(cmd.Context(), args, opts)
			bar.clear()
			var unread *fs.PathError
			if errors.As(err, &unread) {
				return &exitError{code: exitUsage, err: err}
			}
			if err != nil {
				return err
			}
			if report.Cases == 0 {
				// A wrong path must not pass a CI run.
				return usagef("%s: no case in any of the files", strings.Join(args, ", "))
			}
			if err := a.writeReport(report, junit, verbose); err != nil {
				return err
			}
			if report.Failed > 0 {
				return errNo
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&engine, "engine", engineNames[0], "what judges: "+strings.Join(engineNames, ", "))
	flags.IntVar(&opts.Parallel, "parallel", 0, "cases at a time (0: as many as there are CPUs)")
	flags.StringVar(&junit, "junit", "", "write a report as JUnit XML to this file, too")
	flags.BoolVarP(&verbose, "verbose", "v", false, "show every refused and every failed case")
	_ = cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(engineNames, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagFilename("junit", "xml")
	return a.withOutput(cmd, formatJUnit)
}

// joined is errors.Join that leaves a single error as it is.
func joined(err, more error) error {
	if more == nil {
		return err
	}
	return errors.Join(err, more)
}

// writeReport writes a report in the chosen format and, if junit names a file, there
// as well.
func (a *app) writeReport(report *policytest.Report, junit string, verbose bool) error {
	if junit != "" {
		var xml bytes.Buffer
		if err := policytest.WriteJUnit(&xml, report); err != nil {
			return err
		}
		if err := os.WriteFile(junit, xml.Bytes(), 0o666); err != nil {
			return &exitError{code: exitUsage, err: fmt.Errorf("--junit: %w", err)}
		}
	}
	switch a.output {
	case formatTable:
		a.showReport(report, verbose)
		return nil
	case formatJUnit:
		return policytest.WriteJUnit(a.stdout, report)
	}
	doc, err := json.Marshal(report)
	if err != nil {
		return err
	}
	return a.printJSON(doc)
}

func (a *app) showReport(r *policytest.Report, verbose bool) {
	shown := 0
	for _, one := range r.Results {
		switch {
		case one.Outcome == policytest.Fail:
			if shown++; shown <= shownFailures || verbose {
				a.showCase(a.ink.bad.Sprint("FAIL"), one)
			}
		case one.Outcome == policytest.Refused && verbose:
			a.showCase(a.ink.warn.Sprint("REFUSED"), one)
		}
	}
	if shown > shownFailures && !verbose {
		fmt.Fprintf(a.stdout, "and %s more; -v shows them\n\n", plural(shown-shownFailures, "failed case"))
	}

	g := newGrid("FILE", "CASES", "PASSED", "FAILED", "REFUSED", "CONNECTIONS", "VERDICTS", "WRONG")
	files := byFile(r)
	for _, f := range files {
		g.add(a.countRow(f.name, f.Report)...)
	}
	if len(files) > 1 {
		g.add(a.countRow("total", *r)...)
	}
	a.show(g, "no cases")

	fmt.Fprintf(a.stdout, "\n%s by %s in %s", plural(r.Verdicts, "verdict"), r.Engine, duration(time.Duration(r.Nanoseconds)))
	if r.NotAsked > 0 {
		fmt.Fprintf(a.stdout, "; %s more that no policy is asked about", plural(r.NotAsked, "packet"))
	}
	fmt.Fprintln(a.stdout)

	if refused := a.refusedFields(r); refused.rows > 0 {
		fmt.Fprintln(a.stdout)
		a.show(refused, "")
	}
}

// showCase shows one case and what is wrong with it.
func (a *app) showCase(outcome string, c policytest.Result) {
	fmt.Fprintf(a.stdout, "%s %s:%d: %s", outcome, c.File, c.Line, a.ink.strong.Sprint(c.Case))
	if c.Desc != "" {
		fmt.Fprintf(a.stdout, " (%s)", c.Desc)
	}
	fmt.Fprintf(a.stdout, "\n  %s\n", strings.ReplaceAll(c.Reason, "\n", "\n  "))
	for line := range strings.Lines(c.Difference) {
		fmt.Fprintf(a.stdout, "    %s", line)
	}
	fmt.Fprintln(a.stdout)
}

type fileReport struct {
	name string
	policytest.Report
}

// byFile splits the counts of a report, in the order of its files.
func byFile(r *policytest.Report) []*fileReport {
	var out []*fileReport
	index := map[string]*fileReport{}
	for _, one := range r.Results {
		f := index[one.File]
		if f == nil {
			f = &fileReport{name: one.File}
			index[one.File] = f
			out = append(out, f)
		}
		f.Cases++
		switch one.Outcome {
		case policytest.Pass:
			f.Passed++
		case policytest.Refused:
			f.Refused++
		default:
			f.Failed++
		}
		f.Connections += one.Connections
		f.Verdicts += one.Verdicts
		f.Wrong += one.Wrong
	}
	return out
}

func (a *app) countRow(name string, r policytest.Report) []string {
	failed, passed := number(r.Failed), number(r.Passed)
	if r.Failed > 0 {
		failed = a.ink.bad.Sprint(failed)
	} else {
		passed = a.ink.good.Sprint(passed)
	}
	return []string{name, number(r.Cases), passed, failed, number(r.Refused), number(r.Connections), number(r.Verdicts), number(r.Wrong)}
}

var listIndex = regexp.MustCompile(`\[\d+\]`)

// refusedFields counts refused cases by field, positions in lists aside.
func (a *app) refusedFields(r *policytest.Report) *grid {
	counts := map[string]int{}
	for _, one := range r.Results {
		seen := map[string]bool{}
		for _, f := range one.Fields {
			f = strings.TrimPrefix(listIndex.ReplaceAllString(f, ""), "policies.")
			if !seen[f] {
				seen[f] = true
				counts[f]++
			}
		}
	}
	fields := slices.SortedFunc(maps.Keys(counts), func(x, y string) int {
		return cmp.Or(cmp.Compare(counts[y], counts[x]), cmp.Compare(x, y))
	})
	g := newGrid("REFUSED FOR", "CASES")
	for _, f := range fields {
		g.add(f, number(counts[f]))
	}
	return g
}
