package cli

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) fqdnCommand() *cobra.Command {
	cmd := group("fqdn", "See which names endpoints ask for and what that opens", "", "  varve fqdn cache list\n  varve fqdn log --follow")
	cache := group("cache", "See which names endpoints know", "", "  varve fqdn cache list web")
	cache.AddCommand(a.fqdnCacheList())
	cmd.AddCommand(cache, a.fqdnLog())
	return cmd
}

func (a *app) fqdnCacheList() *cobra.Command {
	var req varvev1.ListNamesRequest
	cmd := &cobra.Command{
		Use:     "list [[NAMESPACE/]ENDPOINT]",
		Aliases: []string{"ls"},
		Short:   "List the names that endpoints know, and the addresses they may reach by them",
		Long: strings.TrimSpace(`
List the names that endpoints of this node have asked for, with the addresses they
were told. An address is open to the endpoint that was told it, and to no other, if
some rule has the name (OPEN), until it expires; connections that live then go on.
The node's DNS proxy tells what is so now; with --at, and --log, the log tells.`),
		Example: strings.Trim(`
  varve fqdn cache list
  varve fqdn cache list web --at -2h
  varve fqdn cache list default/web --match-pattern '*.example.com'`, "\n"),
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				req.Endpoint = qualified(args[0])
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.FQDN.ListNames(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				a.sayWhen(resp.Msg.At)
				a.showNames(resp.Msg)
			})
		},
	}
	cmd.Flags().StringVar(&req.Pattern, "match-pattern", "", "only names that match, such as '*.example.com'")
	_ = cmd.RegisterFlagCompletionFunc("match-pattern", cobra.NoFileCompletions)
	return a.withAt(a.withOutput(cmd), &req.At)
}

// showNames shows names as they are now, or were at a moment of the past.
func (a *app) showNames(r *varvev1.ListNamesResponse) {
	g := newGrid("ENDPOINT", "NAME", "ADDRESS", "EXPIRES", "OPEN", "VIA")
	now := a.now()
	if r.At != nil {
		now = time.Unix(0, r.AskedUnixNs)
	}
	for _, n := range r.Names {
		for _, addr := range n.Addresses {
			left := time.Unix(0, addr.ExpiresUnixNs).Sub(now)
			expires, open := "in "+duration(left), a.ink.dim.Sprint("no rule")
			switch {
			case r.At != nil:
				expires = a.clock(addr.ExpiresUnixNs)
			case left <= 0:
				expires = a.ink.dim.Sprint("expired")
			}
			if n.Selected && left > 0 {
				open = a.ink.good.Sprint("yes")
			} else if n.Selected {
				open = a.ink.dim.Sprint("to live connections")
			}
			g.add(n.Endpoint, n.Name, addr.Address, expires, open, dash(strings.Join(n.Chain, " ")))
		}
	}
	a.show(g, "no names")
}

func (a *app) fqdnLog() *cobra.Command {
	var req varvev1.ReadQuestionsRequest
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Show what endpoints asked DNS servers for, and what they were told",
		Long: strings.TrimSpace(`
Show the questions of this node's endpoints, one a line: time, verdict, who asked
whom for what, the answer, how long it took, and the rule that allowed it. The node
keeps the newest of them in a file of a bounded size.`),
		Example: strings.Trim(`
  varve fqdn log --follow
  varve fqdn log --endpoint web --verdict denied --since 10m
  varve fqdn log -o json | jq .name`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Endpoint != "" {
				req.Endpoint = qualified(req.Endpoint)
			}
			if since > 0 {
				req.SinceUnixNs = a.now().Add(-since).UnixNano()
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			stream, err := c.FQDN.ReadQuestions(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				if a.output != formatTable {
					if err := a.printItem(stream.Msg()); err != nil {
						return err
					}
					continue
				}
				if _, err := fmt.Fprintln(a.stdout, a.questionLine(stream.Msg())); err != nil {
					return err
				}
			}
			if !req.Follow && stream.Err() == nil {
				return nil
			}
			return streamEnd(cmd.Context(), stream.Err())
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&req.Follow, "follow", "f", false, "go on with the questions to come, until interrupted")
	flags.StringVar(&req.Endpoint, "endpoint", "", "only those of this endpoint, [NAMESPACE/]NAME")
	flags.StringVar(&req.Pattern, "match-pattern", "", "only those for names that match, such as '*.example.com'")
	flags.StringVar(&req.Verdict, "verdict", "", "only those with this verdict: allowed, denied, malformed")
	flags.DurationVar(&since, "since", 0, "only those of the last while, such as 10m")
	flags.Uint32Var(&req.Last, "last", 0, "only the newest so many (0: all)")
	_ = cmd.RegisterFlagCompletionFunc("endpoint", a.completeEndpointFlag)
	_ = cmd.RegisterFlagCompletionFunc("verdict", cobra.FixedCompletions([]string{"allowed", "denied", "malformed"}, cobra.ShellCompDirectiveNoFileComp))
	return a.withOutput(cmd)
}

// questionLine is one question for people.
func (a *app) questionLine(q *varvev1.Question) string {
	at := a.ink.dim.Sprint(time.Unix(0, q.TimeUnixNs).In(a.zone).Format("15:04:05.000000"))
	verdict := a.ink.good.Sprintf("%-9s", q.Verdict)
	if q.Verdict != "allowed" {
		verdict = a.ink.bad.Sprintf("%-9s", q.Verdict)
	}
	kind, ok := dns.TypeToString[uint16(q.Type)]
	if !ok {
		kind = fmt.Sprintf("TYPE%d", q.Type)
	}
	answer, ok := dns.RcodeToString[int(q.Rcode)]
	if !ok {
		answer = fmt.Sprintf("RCODE%d", q.Rcode)
	}
	if len(q.Addresses) > 0 {
		answer = strings.Join(q.Addresses, " ")
	}
	if q.Problem != "" {
		answer += ": " + q.Problem
	}
	line := fmt.Sprintf("%s %s %s -> %s/%s %s %s: %s %s", at, verdict, a.ink.strong.Sprint(q.Endpoint), q.Server, q.Protocol,
		dash(q.Name), kind, answer, a.ink.dim.Sprintf("in %s", duration(time.Duration(q.TotalNs))))
	if len(q.Chain) > 0 {
		line += a.ink.dim.Sprint(" via ") + strings.Join(q.Chain, " ")
	}
	if q.Rule != "" {
		line += a.ink.dim.Sprint(" by ") + q.Rule
	}
	return line
}
