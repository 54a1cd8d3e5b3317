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

// observeLast is how many flows are shown if nothing says how many, as in hubble.
const observeLast = 20

// formatJSONPB is Hubble's name for JSON of which one flow is one line.
const formatJSONPB = "jsonpb"

func (a *app) observeCommand() *cobra.Command {
	req := &varvev1.ObserveRequest{Filter: &varvev1.FlowFilter{}}
	f := req.Filter
	var ports, identities []uint
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show flows that this node has seen, lately or long ago",
		Long: strings.TrimSpace(`
Show flows that this node has seen: who spoke with whom, what policy said and by
which rule, how often, and from when to when. Flows are added up over five seconds
at a time. Without --since and --last the newest 20 are shown. What the record
lacks is told too. With -o json (or jsonpb) one flow is one line; "varve monitor"
shows every event as it happens. With --log a state directory, or --log-flows a copy
of the folder flows in one, no agent is needed, and "5m" counts back from the record's
end.`),
		Example: strings.Trim(`
  varve observe --since 5m --verdict DROPPED
  varve observe --from-pod default/web --port 5432 --last 100
  varve observe --follow --to-ip 192.0.2.0/24 -o jsonpb`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, pods := range [][]string{f.FromPods, f.ToPods, f.Pods} {
				for i, pod := range pods {
					pods[i] = qualified(pod)
				}
			}
			req.Since, req.Until = past.Zoned(req.Since, a.zone), past.Zoned(req.Until, a.zone)
			f.Ports, f.Identities = numbers(ports), numbers(identities)
			if req.Since == "" && !cmd.Flags().Changed("last") {
				req.Last = observeLast
			}
			if a.output == formatJSONPB {
				a.output = formatJSON
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			stream, err := c.Flows.Observe(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return streamEnd(cmd.Context(), err)
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				if err := a.printFlow(stream.Msg()); err != nil {
					return err
				}
			}
			if req.Follow {
				return streamEnd(cmd.Context(), stream.Err())
			}
			return stream.Err()
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&req.Since, "since", "", "only flows seen since then: a time, or how long ago such as 5m")
	flags.StringVar(&req.Until, "until", "", "only flows seen until then")
	flags.Uint64Var(&req.Last, "last", 0, "only the newest so many")
	flags.BoolVarP(&req.Follow, "follow", "f", false, "then show each flow as it is seen")
	flags.StringSliceVar(&f.Verdicts, "verdict", nil, "FORWARDED, DROPPED or AUDIT")
	flags.StringSliceVar(&f.DropReasons, "drop-reason", nil, `why it was dropped, such as "policy denied"`)
	flags.StringSliceVar(&f.FromPods, "from-pod", nil, "opened by [NAMESPACE/]NAME, or NAMESPACE/ for all in it")
	flags.StringSliceVar(&f.ToPods, "to-pod", nil, "opened to it")
	flags.StringSliceVar(&f.Pods, "pod", nil, "at either end")
	flags.StringSliceVar(&f.FromIps, "from-ip", nil, "from this address or prefix")
	flags.StringSliceVar(&f.ToIps, "to-ip", nil, "to this address or prefix")
	flags.StringSliceVar(&f.Ips, "ip", nil, "at either end")
	flags.UintSliceVar(&ports, "port", nil, "destination port, or type of ICMP")
	flags.StringSliceVar(&f.Protocols, "protocol", nil, "tcp, udp, sctp, icmp or icmpv6")
	flags.UintSliceVar(&identities, "identity", nil, "identity at either end")
	fixed := func(flag string, values ...string) {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	fixed("verdict", "FORWARDED", "DROPPED", "AUDIT")
	fixed("protocol", "tcp", "udp", "sctp", "icmp", "icmpv6")
	for _, flag := range []string{"from-pod", "to-pod", "pod"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, a.completeEndpointFlag)
	}
	return a.withOutput(cmd, formatJSONPB)
}

func numbers(in []uint) []uint32 {
	var out []uint32
	for _, n := range in {
		out = append(out, uint32(min(n, 1<<32-1)))
	}
	return out
}

func (a *app) printFlow(r *varvev1.ObserveResponse) error {
	if a.output != formatTable {
		return a.printItem(r)
	}
	if g := r.GetGap(); g != nil {
		// Beside the flows, not among them.
		_, err := fmt.Fprintln(a.stderr, a.gapLine(g))
		return err
	}
	_, err := fmt.Fprintln(a.stdout, a.flowLine(r.GetFlow()))
	return err
}

// flowLine is a flow as people read it.
func (a *app) flowLine(f *varvev1.Flow) string {
	verdict := a.ink.good
	what := f.Direction
	switch f.Verdict {
	case "DROPPED":
		verdict, what = a.ink.bad, f.DropReason+", "+f.Direction
	case "AUDIT":
		verdict = a.ink.warn
	}
	to, protocol := f.Destination.Address, f.Protocol
	switch {
	case hasPorts(f.Protocol):
		to = a.party("", f.Destination.Address, f.Port, f.Protocol)
	case strings.HasPrefix(f.Protocol, "ICMP"):
		protocol += fmt.Sprintf(" type %d", f.Port)
	}
	line := fmt.Sprintf("%s %s %-8s %s -> %s %s", a.stamp(f.FirstUnixNs), verdict.Sprintf("%-9s", f.Verdict), a.times(f),
		a.named(f.Source, f.Source.Address), a.named(f.Destination, to), protocol) + " " + what
	if len(f.Rules) > 0 {
		line += a.ink.dim.Sprint(" by ") + strings.Join(f.Rules, ", ")
	}
	return line
}

func (a *app) named(p *varvev1.FlowParty, where string) string {
	if p.Pod == "" {
		return dash(where)
	}
	return a.ink.strong.Sprint(p.Pod) + " " + where
}

// times is how often a flow was seen, and over how long.
func (a *app) times(f *varvev1.Flow) string {
	if d := time.Duration(f.LastUnixNs - f.FirstUnixNs); d >= time.Second {
		return fmt.Sprintf("x%d/%s", f.Count, d.Round(time.Second))
	}
	return fmt.Sprintf("x%d", f.Count)
}

func (a *app) gapLine(g *varvev1.FlowGap) string {
	when := fmt.Sprintf("%s to %s", a.stamp(g.FromUnixNs), a.stamp(g.ToUnixNs))
	switch {
	case g.Damaged != "":
		return a.ink.warn.Sprintf("not known, %s: %s", when, g.Damaged)
	case g.Lost > 0 || g.Overflowed > 0:
		return a.ink.warn.Sprintf("incomplete, %s: %s missing", when, plural(int(g.Lost+g.Overflowed), "event"))
	}
	return a.ink.warn.Sprintf("not known, %s: nobody watched", when)
}
