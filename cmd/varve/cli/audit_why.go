package cli

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) auditWhy() *cobra.Command {
	var req varvev1.WhyRequest
	cmd := &cobra.Command{
		Use:   "why --from PARTY --to PARTY --port PORT",
		Short: "Tell whether a connection was allowed, what decided, and who caused it",
		Long: strings.TrimSpace(`
Tell whether a connection was allowed, at any revision: the verdict of both
directions, the rules that decided, the events behind them and behind who the
parties were, and the event that last changed the outcome. What the one who opens the
connection had been told of names counts until it expires; that alone may have changed
the outcome. The exit code is 1 if it was denied, or a party did not exist.`),
		Example: strings.Trim(`
  varve audit why --from web --to db --port 5432
  varve audit why --from web --to db --port 5432 --at 2026-03-01T03:00:00Z -o json`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Audit.Why(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			if err := a.print(resp.Msg, func() { a.showWhy(resp.Msg) }); err != nil {
				return err
			}
			if resp.Msg.Outcome != "allowed" {
				return errNo
			}
			return nil
		},
	}
	a.addQuestionFlags(cmd, &req.From, &req.To, &req.Port)
	return a.withAt(a.withOutput(cmd), &req.At)
}

func (a *app) showWhy(w *varvev1.WhyResponse) {
	fmt.Fprintf(a.stdout, "%s  %s -> %s, port %s, at %s\n\n", a.outcome(w.Outcome), a.partyText(w.From), a.partyText(w.To), w.Port, a.revisionAt(w.Revision, w.TimeUnixNs))
	g := newGrid("DIRECTION", "OF", "VERDICT", "BECAUSE", "ROW")
	for _, s := range w.Sides {
		verdict := "allow"
		if !s.Allowed {
			verdict = "deny"
		}
		g.add(s.Direction, s.Subject, a.verdict(verdict), because(s), dash(s.Row))
	}
	a.show(g, "")
	for _, s := range w.Sides {
		a.showFacts(s.Subject, s.ByName, s.Facts)
	}
	fmt.Fprintln(a.stdout)
	a.showEvents(w.Events)
	fmt.Fprintln(a.stdout)
	if w.Flip == nil {
		fmt.Fprintf(a.stdout, "It has been so since the oldest record kept (revision %d).\n", w.HeldFrom)
		return
	}
	cells := a.eventCells(w.Flip.Event)
	if len(w.Flip.Expired) > 0 {
		fmt.Fprintf(a.stdout, "Last changed from %s to %s at %s, by no event: what revision %s told had expired\n",
			a.outcome(w.Flip.Before), a.outcome(w.Flip.After), a.clock(w.Flip.TimeUnixNs), cells[0])
		return
	}
	fmt.Fprintf(a.stdout, "Last changed from %s to %s by revision %s, %s, by %s: %s\n",
		a.outcome(w.Flip.Before), a.outcome(w.Flip.After), cells[0], cells[1], cells[2], cells[3])
}

func because(s *varvev1.AuditSide) string {
	switch {
	case len(s.Rules) > 0:
		return strings.Join(s.Rules, ", ")
	case len(s.IsolatedBy) > 0:
		return s.Reason + ": isolated by " + strings.Join(s.IsolatedBy, ", ")
	}
	return s.Reason
}
