package cli

import (
	"encoding/hex"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/policy"
)

func (a *app) auditAt() *cobra.Command {
	var req varvev1.AuditAtRequest
	cmd := &cobra.Command{
		Use:   "at MOMENT",
		Short: "Show the whole state, or a node's tables, as they were",
		Long: strings.TrimSpace(`
Show the state as it was, or with --tables all that a node's BPF maps should have
held then, with their digests. The digests are those that every agent had, and an
export of the log leads to the same. A moment is one of
` + momentHelp),
		Example: strings.Trim(`
  varve audit at -2h
  varve audit at 2026-03-01T03:00:00Z --summary
  varve audit at 4711 --tables node-1 -o json
  varve audit at now --log march.varve`, "\n"),
		Args: oneArg("MOMENT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.At, err = a.moment(args[0]); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Audit.At(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() { a.showAt(resp.Msg, req.Summary) })
		},
	}
	cmd.Flags().StringVar(&req.Node, "tables", "", "the tables of this node instead of the state")
	cmd.Flags().BoolVar(&req.Summary, "summary", false, "digests and numbers alone")
	return a.withOutput(cmd)
}

func (a *app) showAt(r *varvev1.AuditAtResponse, summary bool) {
	g := newGrid()
	g.add("At", a.revisionAt(r.At.GetRevision(), r.At.GetTimeUnixNs()))
	g.add("Cluster", r.Cluster)
	g.add("Chain", hex.EncodeToString(r.Chain))
	g.add("State digest", hex.EncodeToString(r.StateDigest))
	if r.Node != "" {
		g.add("Node", r.Node)
		g.add("Tables digest", hex.EncodeToString(r.TablesDigest))
		for _, t := range r.Tables {
			g.add("  "+t.Name, fmt.Sprintf("%s, %s", plural(int(t.Rows), "row"), short(t.Digest)))
		}
	}
	for _, c := range r.Counts {
		g.add("  "+c.What, number(c.Count))
	}
	a.show(g, "")
	if summary {
		return
	}
	if r.Node != "" {
		for _, show := range []struct {
			name string
			show func(*varvev1.DumpResponse)
		}{{"Endpoints", a.showEndpointMap}, {"IP cache", a.showIPCache}, {"Classes", a.showClasses}, {"Policy", a.showPolicyMap}, {"Names", a.showFQDNMap}} {
			a.heading(show.name)
			show.show(r.Rows)
		}
		return
	}
	a.heading("Nodes")
	a.showNodes(r.Nodes)
	a.heading("Namespaces")
	g = newGrid("NAME", "REVISION", "LABELS")
	for _, n := range r.Namespaces {
		g.add(n.Name, number(n.Revision), dash(labelList(n.Labels)))
	}
	a.show(g, "no namespaces")
	a.heading("Endpoints")
	g = newGrid("NAMESPACE", "NAME", "NODE", "IDENTITY", "IPV4", "IPV6", "REVISION", "LABELS")
	for _, e := range r.Endpoints {
		g.add(e.Namespace, e.Name, e.Node, number(e.Identity), dash(e.Ipv4), dash(e.Ipv6), number(e.Revision), dash(labelList(e.Labels)))
	}
	a.show(g, "no endpoints")
	a.heading("Policies")
	g = newGrid("KIND", "NAMESPACE", "NAME", "REVISION", "RULES", "ENDPOINTS")
	for _, p := range r.Policies {
		g.add(policy.KindName(p.Ref.GetKind()), dash(p.Ref.GetNamespace()), p.Ref.GetName(), number(p.Revision), number(ruleCount(p.Specs)), number(len(p.Endpoints)))
	}
	a.show(g, "no policies")
	a.heading("Identities")
	g = newGrid("ID", "ENDPOINTS", "SINCE", "LABELS")
	for _, id := range r.Identities {
		g.add(number(id.Id), number(id.Endpoints), number(id.Revision), securityLabels(id.Labels))
	}
	a.show(g, "no identities")
	a.heading("Names")
	g = newGrid("ENDPOINT", "NAME", "REVISION", "ADDRESSES", "VIA")
	for _, n := range r.Names {
		addresses := make([]string, len(n.Addresses))
		for i, addr := range n.Addresses {
			addresses[i] = addr.Address + " until " + a.clock(addr.ExpiresUnixNs)
		}
		g.add(n.Endpoint, n.Name, number(n.Revision), strings.Join(addresses, ", "), dash(strings.Join(n.Chain, " ")))
	}
	a.show(g, "no names")
}

func (a *app) heading(text string) { fmt.Fprintf(a.stdout, "\n%s\n", a.ink.strong.Sprint(text)) }
