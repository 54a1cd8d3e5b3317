package cli

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) policyVerdict() *cobra.Command {
	var req varvev1.VerdictRequest
	cmd := &cobra.Command{
		Use:   "verdict --from PARTY --to PARTY --port PORT",
		Short: "Tell whether a connection may be opened, and what decides",
		Long: strings.TrimSpace(`
Tell whether one party may open a connection to another, as policy has it now, or
had it with --at: the verdict of egress at one end and of ingress at the other,
wherever they are, and the rules or the default that decide. The exit code is 1 if it
may not. What audit mode lets pass is audited: it may be opened, and is reported with
what would deny it.

What --from was told when it asked for names counts until it expires, and is named. Of
a DNS name the addresses that --from was told are judged, and the rules that select it
are told: they admit what --from learns by asking for it.`),
		Example: strings.Trim(`
  varve policy verdict --from shop/web --to shop/db --port 5432/tcp
  varve policy verdict --from web --to 203.0.113.7 --port 443/tcp -o json
  varve policy verdict --from 203.0.113.7 --to web --port 8/icmp
  varve policy verdict --from shop/web --to shop/db --port 5432 --at -2h
  varve policy verdict --log incident.varve --from shop/web --to shop/db --port 5432 --at 4711`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			if !strings.Contains(req.Port, "/") {
				req.Port += "/tcp"
			}
			resp, err := c.Policies.Verdict(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			if err := a.print(resp.Msg, func() { a.showVerdict(resp.Msg) }); err != nil {
				return err
			}
			if !resp.Msg.Allowed {
				return errNo
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.From, "from", "", "who opens the connection: [NAMESPACE/]NAME, an address or reserved:IDENTITY")
	flags.StringVar(&req.To, "to", "", "to whom: the same, or a DNS name")
	flags.StringVar(&req.Port, "port", "", "destination port: 80/tcp, 53/udp, 3868/sctp, or a type: 8/icmp, 128/icmpv6")
	for _, name := range []string{"from", "to", "port"} {
		_ = cmd.MarkFlagRequired(name)
	}
	_ = cmd.RegisterFlagCompletionFunc("from", a.completeEndpointFlag)
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeEndpointFlag)
	_ = cmd.RegisterFlagCompletionFunc("port", cobra.NoFileCompletions)
	return a.withAt(a.withOutput(cmd), &req.At)
}

func (a *app) showVerdict(v *varvev1.VerdictResponse) {
	outcome := "denied"
	switch {
	case v.Audited:
		outcome = "audited"
	case v.Allowed:
		outcome = "allowed"
	}
	fmt.Fprintf(a.stdout, "%s  %s -> %s, port %s, at %s\n\n", a.outcome(outcome), a.verdictParty(v.From), a.verdictParty(v.To), v.Port,
		a.revisionAt(v.Revision, v.At.GetTimeUnixNs()))
	g := newGrid("DIRECTION", "OF", "VERDICT", "BECAUSE", "REVISION")
	for _, d := range []struct {
		name    string
		subject *varvev1.VerdictParty
		verdict *varvev1.DirectionVerdict
	}{{"egress", v.From, v.Egress}, {"ingress", v.To, v.Ingress}} {
		verdict := a.verdict("deny")
		switch {
		case d.verdict.Audited:
			verdict = a.outcome("audit")
		case d.verdict.Allowed:
			verdict = a.verdict("allow")
		}
		because, revisions := reasons(d.verdict)
		g.add(d.name, d.subject.Name, verdict, strings.Join(because, "\n"), strings.Join(revisions, "\n"))
	}
	a.show(g, "")
	if v.Audited {
		fmt.Fprintf(a.stdout, "\nAudit mode lets it pass, and reports it: without, it would be denied as above.\n")
	}
	if v.Name == nil {
		a.showFacts(v.From.Name, v.Egress.ByName, v.Egress.Facts)
		return
	}
	if v.Name.Judged == "" {
		fmt.Fprintf(a.stdout, "\nThe above holds for an address of the world that no rule names: %s knows none of %s that has not expired.\n", v.From.Name, v.Name.Name)
	} else {
		fmt.Fprintf(a.stdout, "\nThe above holds for %s.\n", v.Name.Judged)
	}
	for _, f := range v.Name.Addresses {
		fmt.Fprintf(a.stdout, "  %s\n", a.factText(f))
	}
	if len(v.Name.Rules) == 0 {
		fmt.Fprintf(a.stdout, "No toFQDNs rule selects %s on this port.\n", v.Name.Name)
		return
	}
	fmt.Fprintf(a.stdout, "These rules select %s; they admit what %s learns by asking for it:\n", v.Name.Name, v.From.Name)
	for _, r := range v.Name.Rules {
		fmt.Fprintf(a.stdout, "  %s (revision %d)\n", r.Text, r.Revision)
	}
}

// reasons is what decided, each with its revision.
func reasons(d *varvev1.DirectionVerdict) (because, revisions []string) {
	add := func(text string, revision uint64) {
		because = append(because, text)
		if revision == 0 {
			revisions = append(revisions, "-")
		} else {
			revisions = append(revisions, number(revision))
		}
	}
	for _, r := range d.Rules {
		add(r.Text, r.Revision)
	}
	for _, i := range d.IsolatedBy {
		text := refArg(i.Policy)
		if i.Spec > 0 {
			text += fmt.Sprintf(" specs[%d]", i.Spec)
		}
		add(d.Reason+": isolated by "+text, i.Revision)
	}
	if len(because) == 0 {
		add(d.Reason, 0)
	}
	return because, revisions
}

func (a *app) verdictParty(p *varvev1.VerdictParty) string {
	text := a.ink.strong.Sprint(p.Name)
	if p.Endpoint != "" && p.Endpoint != p.Name {
		text += " (" + p.Endpoint + ")"
	}
	if p.Node != "" {
		text += " on " + p.Node
	}
	return text
}
