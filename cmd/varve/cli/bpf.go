package cli

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) bpfCommand() *cobra.Command {
	cmd := group("bpf", "Read the BPF maps as they are in the kernel", `
The rows are read from the kernel. With --at they are those that the node's tables
had then, projected from the log.`, `
  varve bpf policy list --endpoint default/web
  varve bpf ct list
  varve bpf metrics list`)
	cmd.AddCommand(
		a.bpfMap("endpoint", "Endpoints by interface", varvev1.Map_MAP_ENDPOINT, false, a.showEndpointMap),
		a.bpfMap("ipcache", "What addresses resolve to", varvev1.Map_MAP_IPCACHE, false, a.showIPCache),
		a.bpfMap("policy", "Verdicts by table, class, protocol and port", varvev1.Map_MAP_POLICY, true, a.showPolicyMap),
		a.bpfMap("ct", "Flows that are tracked", varvev1.Map_MAP_CT, true, a.showConntrack),
		a.bpfMap("class", "Classes of peers by scope", varvev1.Map_MAP_CLASS, false, a.showClasses),
		a.bpfMap("fqdn", "Addresses that names open, by endpoint", varvev1.Map_MAP_FQDN, true, a.showFQDNMap),
		a.bpfMetrics(),
	)
	return cmd
}

// bpfMap is the group of one map's commands.
func (a *app) bpfMap(name, short string, m varvev1.Map, byEndpoint bool, show func(*varvev1.DumpResponse)) *cobra.Command {
	cmd := group(name, short, "", "  varve bpf "+name+" list")
	req := &varvev1.DumpRequest{Map: m}
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the rows of the map",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req.Endpoint = qualified(req.Endpoint)
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Datapath.Dump(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				a.sayProjected(resp.Msg.At)
				show(resp.Msg)
			})
		},
	}
	if byEndpoint {
		list.Flags().StringVar(&req.Endpoint, "endpoint", "", "only rows of this endpoint, [NAMESPACE/]NAME")
		_ = list.RegisterFlagCompletionFunc("endpoint", a.completeEndpointFlag)
	}
	if m != varvev1.Map_MAP_CT { // flows are not in the log
		a.withAt(list, &req.At)
	}
	cmd.AddCommand(a.withOutput(list))
	return cmd
}

// sayProjected tells that rows of the past come from the log, not from a kernel.
func (a *app) sayProjected(at *varvev1.Moment) {
	if at != nil {
		fmt.Fprintln(a.stderr, a.ink.dim.Sprint("projected from the log at "+a.revisionAt(at.Revision, at.TimeUnixNs)))
	}
}

// qualified puts a bare endpoint's name into the default namespace.
func qualified(endpoint string) string {
	if endpoint == "" || strings.Contains(endpoint, "/") {
		return endpoint
	}
	return defaultNamespace + "/" + endpoint
}

func (a *app) showEndpointMap(resp *varvev1.DumpResponse) {
	g := newGrid("IFINDEX", "ENDPOINT", "ID", "IDENTITY", "IPV4", "IPV6", "MAC", "INGRESS", "EGRESS")
	for _, e := range resp.Endpoints {
		g.add(number(e.Ifindex), dash(e.Endpoint), number(e.Id), number(e.Identity), dash(e.Ipv4), dash(e.Ipv6), dash(e.Mac),
			tableUse(e.IngressTable, e.IngressEnforced), tableUse(e.EgressTable, e.EgressEnforced))
	}
	a.show(g, "no endpoints in the kernel")
}

// tableUse is the table of a direction, and what holds where it has no row.
func tableUse(table string, isEnforced bool) string {
	switch {
	case table == "" && !isEnforced:
		return "open"
	case table == "":
		return "deny all"
	case !isEnforced:
		return table + " else open"
	default:
		return table
	}
}

func (a *app) showIPCache(resp *varvev1.DumpResponse) {
	g := newGrid("PREFIX", "IDENTITY", "PEER", "IFINDEX", "LABELS")
	for _, e := range resp.Ipcache {
		ifindex := "-"
		if e.Ifindex != 0 {
			ifindex = number(e.Ifindex)
		}
		g.add(e.Prefix, number(e.Identity), dash(e.Peer), ifindex, securityLabels(e.Labels))
	}
	a.show(g, "no addresses in the kernel")
}

func (a *app) showPolicyMap(resp *varvev1.DumpResponse) {
	g := newGrid("TABLE", "DIRECTION", "CLASS", "PROTOCOL", "PORTS", "VERDICT", "ENDPOINTS", "RULES")
	for _, p := range resp.Policies {
		g.add(p.Table, p.Direction, dash(derived.Replace(p.Class)), p.Protocol, p.Ports, a.verdict(p.Verdict),
			dash(strings.Join(p.Endpoints, " ")), dash(ruleList(p.Rules, p.Revisions)))
	}
	a.show(g, "no policy rows in the kernel")
}

func (a *app) verdict(v string) string {
	switch v {
	case "allow":
		return a.ink.good.Sprint(v)
	case "deny":
		return a.ink.bad.Sprint(v)
	default:
		return dash(v)
	}
}

// ruleList is the rules behind a verdict and the revisions that made them.
func ruleList(rules []string, revisions []uint64) string {
	out := strings.Join(rules, ", ")
	if out == "" || len(revisions) == 0 {
		return out
	}
	parts := make([]string, len(revisions))
	for i, r := range revisions {
		parts[i] = number(r)
	}
	return fmt.Sprintf("%s (revision %s)", out, strings.Join(parts, ", "))
}

func (a *app) showConntrack(resp *varvev1.DumpResponse) {
	g := newGrid("PROTOCOL", "SOURCE", "DESTINATION", "STATE", "EXPIRES", "IDENTITY")
	for _, f := range resp.Flows {
		state := f.State
		if state == "denied" {
			state = a.ink.bad.Sprint(state)
		}
		g.add(f.Protocol, f.Source, f.Destination, state,
			(time.Duration(f.ExpiresSeconds) * time.Second).String(), number(f.SourceIdentity))
	}
	a.show(g, "no flows")
}

func (a *app) showClasses(resp *varvev1.DumpResponse) {
	g := newGrid("SCOPE", "PEER", "CLASS")
	for _, c := range resp.Classes {
		g.add(c.Scope, c.Peer, derived.Replace(c.Class))
	}
	a.show(g, "no classes in the kernel")
}

func (a *app) showFQDNMap(resp *varvev1.DumpResponse) {
	g := newGrid("ENDPOINT", "ADDRESS", "NAMES", "EXPIRES", "TOLD FOR", "RULES")
	for _, r := range resp.Names {
		endpoint := r.Endpoint
		if endpoint == "" {
			endpoint = "id " + number(r.Id)
		}
		var names, expires, told []string
		for _, c := range r.Classes {
			name := c.Names
			if name == "" {
				name = "class " + c.Class
			}
			names, told = append(names, name), append(told, dash(strings.Join(c.Told, " ")))
			expires = append(expires, a.expiry(c.ExpiresUnixNs, resp.At))
		}
		g.add(endpoint, r.Address, dash(strings.Join(names, "\n")), dash(strings.Join(expires, "\n")), dash(strings.Join(told, "\n")),
			dash(ruleList(r.Rules, r.Revisions)))
	}
	a.show(g, "no addresses that names open in the kernel")
}

// expiry is when a row expires: how soon, or, of the past, the time.
func (a *app) expiry(ns int64, at *varvev1.Moment) string {
	if at != nil {
		return a.clock(ns)
	}
	if left := time.Unix(0, ns).Sub(a.now()); left > 0 {
		return "in " + duration(left)
	}
	return a.ink.dim.Sprint("expired")
}

func (a *app) bpfMetrics() *cobra.Command {
	cmd := group("metrics", "Packets and bytes by reason and direction", "", "  varve bpf metrics list")
	cmd.AddCommand(a.withOutput(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the counters",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Datapath.Counters(cmd.Context(), connect.NewRequest(&varvev1.CountersRequest{}))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				g := newGrid("REASON", "DIRECTION", "PACKETS", "BYTES")
				for _, n := range resp.Msg.Counters {
					reason := n.Reason
					if n.Audited {
						reason += " (audited)"
					}
					g.add(reason, n.Direction, number(n.Packets), number(n.Bytes))
				}
				a.show(g, "nothing was counted")
				if lost := resp.Msg.EventsLost; lost > 0 {
					fmt.Fprintf(a.stderr, "varve: %s lost: the ring buffer was full\n", plural(int(lost), "event"))
				}
			})
		},
	}))
	return cmd
}
