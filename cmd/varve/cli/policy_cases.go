package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/varve-net/varve/internal/policytest"
)

var engines = map[string]policytest.Engine{
	policytest.Tables.Name(): policytest.Tables,
}

// shownFailures is how many failed cases are shown in full unless all are asked
// for; a broken rule tends to fail hundreds in the same way.
const shownFailures = 10

func (a *app) policyTest() *cobra.Command {
	var engine string
	var verbose bool
	var opts policytest.Options
	names := slices.Sorted(maps.Keys(engines))
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Run policy test cases, without an agent",
		Long: strings.TrimSpace(`
Run policy test cases, without an agent. A file holds one case a line, as JSON, also
gzipped: a small cluster, its policies, and the verdict that every connection in it
must get. Cases whose policies use what is not supported are refused, with the field.

The exit code is 1 if a case fails.`),
		Example: "  varve policy test cases.jsonl.gz\n  varve policy test *.jsonl --engine tables -o json",
		Args:    atLeast(1, "at least one FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var ok bool
			if opts.Engine, ok = engines[engine]; !ok {
				return usagef("--engine: %q is none of %s", engine, strings.Join(names, ", "))
			}
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
			if report.Passed+report.Failed+report.Refused == 0 {
				// A wrong path must not pass a CI run.
				return usagef("%s: no case in any of the files", strings.Join(args, ", "))
			}
			if a.output == formatTable {
				a.showReport(report, verbose)
			} else {
				doc, err := json.Marshal(report)
				if err != nil {
					return err
				}
				if err := a.printJSON(doc); err != nil {
					return err
				}
			}
			if report.Failed > 0 {
				return errNo
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&engine, "engine", policytest.Tables.Name(), "what judges: "+strings.Join(names, ", "))
	flags.IntVar(&opts.Parallel, "parallel", 0, "cases at a time (0: as many as there are CPUs)")
	flags.BoolVarP(&verbose, "verbose", "v", false, "show every refused and every failed case")
	_ = cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	return a.withOutput(cmd)
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
