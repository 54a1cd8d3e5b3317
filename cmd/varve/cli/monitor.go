package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// monitorTypes are the types of events one can ask for; "lost" comes unasked.
var monitorTypes = []string{"drop", "new-flow", "audited", "drift"}

func (a *app) monitorCommand() *cobra.Command {
	var req varvev1.MonitorRequest
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Show drops and verdicts as they happen",
		Long: strings.TrimSpace(`
Show drops and new flows as they happen, one a line, until interrupted: time,
verdict, reason and direction, from whom to whom, and the rule that decided; what
audit mode let pass (audited), with the reason why it would have been dropped; and
what others changed in the kernel (drift). With -o json one event is one line.`),
		Example: strings.Trim(`
  varve monitor
  varve monitor --type drop --endpoint default/web
  varve monitor -o json | jq .reason`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, t := range req.Types {
				if !slices.Contains(monitorTypes, t) {
					return usagef("--type: %q is none of %s", t, strings.Join(monitorTypes, ", "))
				}
			}
			for i, e := range req.Endpoints {
				req.Endpoints[i] = qualified(e)
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			stream, err := c.Datapath.Monitor(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return streamEnd(cmd.Context(), err)
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				if a.output != formatTable {
					if err := a.printItem(stream.Msg()); err != nil {
						return err
					}
					continue
				}
				if _, err := fmt.Fprintln(a.stdout, a.eventLine(stream.Msg())); err != nil {
					return err
				}
			}
			return streamEnd(cmd.Context(), stream.Err())
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&req.Types, "type", nil, "only events of these types: "+strings.Join(monitorTypes, ", "))
	flags.StringSliceVar(&req.Endpoints, "endpoint", nil, "only events of these endpoints, [NAMESPACE/]NAME")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(monitorTypes, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("endpoint", a.completeEndpointFlag)
	return a.withOutput(cmd)
}

// streamEnd is why a stream that has no end of its own ended. The user's Ctrl-C is
// the usual way.
func streamEnd(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
	}
	if err == nil {
		return errors.New("the agent ended the stream; it is stopping")
	}
	return err
}

// eventLine is one event for people. Verdicts stand in columns, the rest follows.
func (a *app) eventLine(e *varvev1.DatapathEvent) string {
	at := a.ink.dim.Sprint(time.Unix(0, e.TimeUnixNs).In(a.zone).Format("15:04:05.000000"))
	if e.Type == "lost" {
		return fmt.Sprintf("%s %s %s: read faster or filter", at, a.ink.warn.Sprintf("%-8s", "lost"), plural(int(e.Lost), "event"))
	}
	if d := e.Drift; d != nil {
		state := "repaired"
		if d.Error != "" {
			state = a.ink.bad.Sprint("NOT REPAIRED: " + d.Error)
		}
		return fmt.Sprintf("%s %s %s %s: %s; %s", at, a.ink.warn.Sprintf("%-8s", "drift"), d.Kind, strings.TrimPrefix(d.Object, d.Kind+" "), d.What, state)
	}
	verdict, reason := a.ink.good.Sprintf("%-8s", "allow"), "new flow"
	switch e.Type {
	case "new-flow":
	case "audited":
		verdict, reason = a.ink.warn.Sprintf("%-8s", e.Type), e.Reason
	default:
		verdict, reason = a.ink.bad.Sprintf("%-8s", e.Type), e.Reason
	}
	line := fmt.Sprintf("%s %s %-30s %s -> %s %s", at, verdict, reason+", "+e.Direction,
		a.party(e.SourceName, e.Source, e.SourcePort, e.Protocol),
		a.party(e.DestinationName, e.Destination, e.DestinationPort, e.Protocol), protocol(e))
	if rules := ruleList(e.Rules, e.Revisions); rules != "" {
		line += a.ink.dim.Sprint(" by ") + rules
	}
	line += a.factLine(e)
	for _, tag := range e.Log {
		line += a.ink.dim.Sprint(" log ") + strconv.Quote(tag)
	}
	return line
}

// party is one end of a flow, "default/web 10.0.0.5:43210".
func (a *app) party(name, address string, port uint32, protocol string) string {
	where := address
	if hasPorts(protocol) {
		if ip, err := netip.ParseAddr(address); err == nil {
			where = netip.AddrPortFrom(ip, uint16(port)).String()
		}
	}
	if name == "" {
		return where
	}
	return a.ink.strong.Sprint(name) + " " + where
}

func hasPorts(protocol string) bool {
	return slices.Contains([]string{"TCP", "UDP", "SCTP"}, strings.ToUpper(protocol))
}

func protocol(e *varvev1.DatapathEvent) string {
	if strings.HasPrefix(strings.ToUpper(e.Protocol), "ICMP") {
		return fmt.Sprintf("%s type %d code %d", e.Protocol, e.IcmpType, e.IcmpCode)
	}
	return e.Protocol
}
