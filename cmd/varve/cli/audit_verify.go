package cli

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) auditVerify() *cobra.Command {
	var req varvev1.AuditVerifyRequest
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Recompute from the log what this node had in force, and compare",
		Long: strings.TrimSpace(`
Each time this node brings tables in force it records their digest, with the
revision of the log and the number of its own newest fact that they were made of;
the newest 32,768 of them at least are kept. This recomputes the tables from the
log and compares. The exit code is 1 if any differ.`),
		Example: "  varve audit verify\n  varve audit verify --since -2h",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Audit.Verify(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			if err := a.print(resp.Msg, func() { a.showAuditVerify(resp.Msg) }); err != nil {
				return err
			}
			if len(resp.Msg.Mismatches) > 0 {
				return errNo
			}
			return nil
		},
	}
	cmd.Flags().Var(momentValue{a, &req.Since}, "since", "only from this revision or time on: "+momentHelp)
	cmd.Flags().Var(momentValue{a, &req.Until}, "until", "only up to this revision or time")
	for _, flag := range []string{"since", "until"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return a.withOutput(cmd)
}

func (a *app) showAuditVerify(r *varvev1.AuditVerifyResponse) {
	g := newGrid()
	g.add("Node", r.Node)
	g.add("Compared", fmt.Sprintf("%s, of revisions %d to %d", plural(int(r.Compared), "set")+" of tables", r.First, r.Last))
	if r.Skipped > 0 {
		g.add("No longer kept", number(r.Skipped))
	}
	verdict := a.ink.good.Sprint("the log explains all that was in force")
	if len(r.Mismatches) > 0 {
		verdict = a.ink.bad.Sprintf("%s differ", plural(len(r.Mismatches), "set"))
	}
	g.add("Verdict", verdict)
	a.show(g, "")
	if len(r.Mismatches) == 0 {
		return
	}
	g = newGrid("REVISION", "IN FORCE SINCE", "RECORDED", "FROM THE LOG")
	for _, m := range r.Mismatches {
		g.add(number(m.Revision), a.stamp(m.TimeUnixNs), short(m.RecordedDigest), short(m.ReplayedDigest))
	}
	a.show(g, "")
}
