package cli

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) auditBisect() *cobra.Command {
	var req varvev1.BisectRequest
	cmd := &cobra.Command{
		Use:   "bisect --from PARTY --to PARTY --port PORT",
		Short: "Find the event that changed whether a connection is allowed",
		Long: strings.TrimSpace(`
Find the event that changed the outcome for a connection: with --since the first
one after that moment, without it the last one. What had been told of a name may just
have expired: then there is no event. Outcomes are allowed, denied and absent, if a party
did not exist. The exit code is 1 if nothing changed.`),
		Example: strings.Trim(`
  varve audit bisect --from web --to db --port 5432
  varve audit bisect --from web --to db --port 5432 --since -24h --all`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Audit.Bisect(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			if err := a.print(resp.Msg, func() { a.showBisect(resp.Msg) }); err != nil {
				return err
			}
			if len(resp.Msg.Flips) == 0 {
				return errNo
			}
			return nil
		},
	}
	a.addQuestionFlags(cmd, &req.From, &req.To, &req.Port)
	cmd.Flags().Var(momentValue{a, &req.Since}, "since", "the first change after it instead of the last: "+momentHelp)
	cmd.Flags().Var(momentValue{a, &req.At}, "at", "no change after it: "+momentHelp)
	cmd.Flags().BoolVar(&req.All, "all", false, "every change, not only one")
	_ = cmd.RegisterFlagCompletionFunc("since", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("at", cobra.NoFileCompletions)
	return a.withOutput(cmd)
}

func (a *app) showBisect(r *varvev1.BisectResponse) {
	if len(r.Flips) == 0 {
		fmt.Fprintf(a.stdout, "%s at revision %d, and never anything else since revision %d\n", a.outcome(r.Outcome), r.At, r.Since)
		return
	}
	g := newGrid("REVISION", "TIME", "ACTOR", "EVENT", "BEFORE", "AFTER")
	for _, f := range r.Flips {
		cells := a.eventCells(f.Event)
		if len(f.Expired) > 0 {
			cells = []string{"-", a.stamp(f.TimeUnixNs), "-", "what revision " + cells[0] + " told expires"}
		}
		g.add(append(cells, a.outcome(f.Before), a.outcome(f.After))...)
	}
	a.show(g, "")
}
