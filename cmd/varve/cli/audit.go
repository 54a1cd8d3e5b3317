package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := group("audit", "Ask what was, who changed it, and why", `
The past follows from the log's records. Names and addresses are resolved at the
moment that is asked about: pods that are gone are found, and an address is
whoever had it then. Moments are revisions, times or how long ago:
`+momentHelp, `
  varve audit at -2h
  varve audit at 4711 --tables node-1 --log march.varve
  varve audit why --from web --to db --port 5432
  varve audit why --from shop/web --to 192.0.2.7 --port 443 --at 2026-03-01T03:00:00Z
  varve audit bisect --from web --to db --port 5432 --since -2h
  varve audit diff -1h now --kind policy-set
  varve audit provenance ipcache 10.244.0.5
  varve audit replay lockdown.yaml --since 24h`)
	cmd.AddCommand(a.auditAt(), a.auditVerify(), a.auditWhy(), a.auditBisect(), a.auditDiff(), a.auditProvenance(), a.auditReplay())
	return cmd
}

const momentHelp = "4711, 2026-03-01T03:00:00Z, -2h, now."

// addQuestionFlags are the flags of a question about one connection.
func (a *app) addQuestionFlags(cmd *cobra.Command, from, to, port *string) {
	flags := cmd.Flags()
	flags.StringVar(from, "from", "", "who opens the connection: [NAMESPACE/]NAME, an address or reserved:IDENTITY")
	flags.StringVar(to, "to", "", "to whom: the same, or a DNS name")
	flags.StringVar(port, "port", "", "destination port: 80 (of TCP), 53/udp, a named port such as http, or a type such as 8/icmp")
	for _, name := range []string{"from", "to", "port"} {
		_ = cmd.MarkFlagRequired(name)
	}
	_ = cmd.RegisterFlagCompletionFunc("from", a.completeEndpointFlag)
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeEndpointFlag)
	_ = cmd.RegisterFlagCompletionFunc("port", cobra.NoFileCompletions)
}

// outcome colours an outcome.
func (a *app) outcome(o string) string {
	switch o {
	case "allowed":
		return a.ink.good.Sprint(o)
	case "denied":
		return a.ink.bad.Sprint(o)
	}
	return a.ink.warn.Sprint(o)
}

// showEvents is a table of events, each with what it has to do with the answer.
func (a *app) showEvents(events []*varvev1.AuditEvent) {
	g := newGrid("REVISION", "TIME", "ACTOR", "EVENT", "PART")
	for _, e := range events {
		g.add(append(a.eventCells(e), strings.Join(e.Roles, "\n"))...)
	}
	a.show(g, "no events")
}

func (a *app) eventCells(e *varvev1.AuditEvent) []string {
	if !e.Kept {
		return []string{number(e.Revision), "-", "-", a.ink.warn.Sprint("no longer kept")}
	}
	text := e.Text
	if e.Rejected != "" {
		text = a.ink.warn.Sprint("rejected: ") + e.Rejected
	}
	return []string{number(e.Revision), a.stamp(e.TimeUnixNs), actorName(e), text}
}

// actorName is who did it; a node's own facts are the node's.
func actorName(e *varvev1.AuditEvent) string {
	if e.Node != "" && strings.HasPrefix(e.Actor, "node:") {
		return "node " + e.Node
	}
	return dash(e.Actor)
}

func (a *app) partyText(p *varvev1.AuditParty) string {
	text := a.ink.strong.Sprint(p.Name)
	if p.Endpoint != "" && p.Endpoint != p.Name {
		text += " (" + p.Endpoint + ")"
	}
	if p.Address != "" && p.Address != p.Name {
		text += " " + p.Address
	}
	if p.Endpoint == "" && p.Node != "" {
		text += " (node " + p.Node + ")"
	}
	return text
}

// revisionAt is a revision and its time.
func (a *app) revisionAt(revision uint64, ns int64) string {
	if ns == 0 {
		return fmt.Sprintf("revision %d", revision)
	}
	return fmt.Sprintf("revision %d of %s", revision, time.Unix(0, ns).In(a.zone).Format(time.RFC3339))
}
