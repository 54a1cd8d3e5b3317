package cli

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/past"
)

func (a *app) auditReplay() *cobra.Command {
	var req varvev1.AuditReplayRequest
	var deletes []string
	cmd := &cobra.Command{
		Use:   "replay [FILE] [--delete POLICY]",
		Short: "Find recorded flows that other policies would have judged otherwise",
		Long: strings.TrimSpace(`
Find the flows that this node has recorded whose verdict would have been another,
had the policies of a manifest been in force, or those of --delete not: each at the
revision at which it was seen. What the record lacks is told. Nothing is changed. With --log a
state directory, or an export and --log-flows a copy of the folder flows of one, no
agent is needed. The exit code is 1 if any verdict differs.
` + policyRefHelp),
		Example: strings.Trim(`
  varve audit replay lockdown.yaml --since 24h
  varve audit replay --delete cnp/shop/guard --since 2026-03-01
  sed s/5432/5433/ db.yaml | varve audit replay - --since 1h -o json`, "\n"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("give one manifest, not %d; it may hold several policies", len(args))
			}
			if len(args) == 0 && len(deletes) == 0 {
				return usagef("nothing to suppose; give a manifest, or --delete POLICY")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				manifests, err := a.readManifests(args)
				if err != nil {
					return err
				}
				if len(manifests) != 1 {
					return usagef("%s: give one file, not a directory of %d", args[0], len(manifests))
				}
				req.Manifest, req.Source = string(manifests[0].text), manifests[0].source
			}
			req.Since, req.Until = past.Zoned(req.Since, a.zone), past.Zoned(req.Until, a.zone)
			refs, err := a.findPolicies(cmd.Context(), cmd, deletes, "")
			if err != nil {
				return err
			}
			for _, ref := range refs {
				req.Delete = append(req.Delete, ref.PB())
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Audit.Replay(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			if err := a.print(resp.Msg, func() { a.showReplay(resp.Msg) }); err != nil {
				return err
			}
			if resp.Msg.DifferingFlows > 0 {
				return errNo
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&deletes, "delete", nil, "suppose that this policy was not there")
	flags.StringVar(&req.Since, "since", "", "flows seen since then: a time, or how long ago such as 24h (default all that are recorded)")
	flags.StringVar(&req.Until, "until", "", "flows seen until then")
	_ = cmd.RegisterFlagCompletionFunc("delete", a.completeEach(policyNames))
	_ = cmd.RegisterFlagCompletionFunc("since", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("until", cobra.NoFileCompletions)
	return a.withNamespace(a.withOutput(cmd), defaultNamespace)
}

func (a *app) showReplay(r *varvev1.AuditReplayResponse) {
	if len(r.Groups) == 0 {
		fmt.Fprintln(a.stdout, a.ink.good.Sprint("No recorded flow would have been judged otherwise."))
	} else {
		fmt.Fprintf(a.stdout, "%s, seen %s, would have been judged otherwise:\n\n", a.ink.bad.Sprint(plural(int(r.DifferingFlows), "flow")), times(r.DifferingEvents))
		g := newGrid("FROM", "TO", "PORT", "WAS", "WOULD BE", "FLOWS", "SEEN", "LAST", "BECAUSE", "FOR EXAMPLE")
		for _, x := range r.Groups {
			g.add(x.From, x.To, x.Port, a.outcome(x.Was), a.outcome(x.Is), number(x.Flows), number(x.Events), a.stamp(x.LastUnixNs), dash(x.Because), x.Samples[0])
		}
		a.show(g, "")
	}
	fmt.Fprintf(a.stdout, "\nLooked through: %s of node %s, seen %s, from %s to %s\n", plural(int(r.Flows), "distinct flow"), r.Node, times(r.Events), a.stamp(r.FromUnixNs), a.stamp(r.ToUnixNs))
	for _, note := range []struct {
		n    uint64
		text string
	}{
		{r.Skipped, "dropped for reasons that no policy has a part in"},
		{r.Unexplained, "not following from the policies of their time, such as seen while those changed: not compared"},
		{r.TooOld, "seen under a state that is no longer kept: not compared"},
	} {
		if note.n > 0 {
			fmt.Fprintf(a.stdout, "  %s %s\n", plural(int(note.n), "event"), note.text)
		}
	}
	a.showGaps(r.Gaps)
}

// showGaps says what a flow record lacks.
func (a *app) showGaps(gaps []*varvev1.FlowGap) {
	if len(gaps) == 0 {
		fmt.Fprintln(a.stdout, "The record lacks nothing in that time.")
		return
	}
	var blind time.Duration
	var lost uint64
	for _, g := range gaps {
		if g.Lost == 0 && g.Overflowed == 0 {
			blind += time.Duration(g.ToUnixNs - g.FromUnixNs)
		}
		lost += g.Lost + g.Overflowed
	}
	var lacks []string
	if blind > 0 {
		lacks = append(lacks, duration(blind)+" in which nobody watched")
	}
	if lost > 0 {
		lacks = append(lacks, plural(int(lost), "event")+" that were lost")
	}
	fmt.Fprintf(a.stdout, "The record lacks %s:\n", strings.Join(lacks, ", and "))
	for i, g := range gaps {
		if i == 10 {
			fmt.Fprintf(a.stdout, "  and %s more; -o json lists them\n", plural(len(gaps)-i, "gap"))
			break
		}
		fmt.Fprintln(a.stdout, "  "+a.gapLine(g))
	}
}

// times is how often something was seen.
func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
