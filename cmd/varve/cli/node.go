package cli

import (
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) nodeCommand() *cobra.Command {
	cmd := group("node", "List the nodes of the cluster", "", "  varve node list")
	cmd.Aliases = []string{"nodes"}
	cmd.AddCommand(a.nodeList())
	return cmd
}

func (a *app) nodeList() *cobra.Command {
	var req varvev1.ListNodesRequest
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the nodes",
		Example: "  varve node list\n  varve node list --at -1d",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Nodes.List(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				a.sayWhen(resp.Msg.At)
				a.showNodes(resp.Msg.Nodes)
			})
		},
	}
	return a.withAt(a.withOutput(cmd), &req.At)
}

func (a *app) showNodes(nodes []*varvev1.Node) {
	g := newGrid("NAME", "STATE", "ENDPOINTS", "SINCE", "ADDRESSES", "ENDPOINT RANGES")
	for _, n := range nodes {
		state := a.ink.good.Sprint("joined")
		if n.Left {
			state = a.ink.dim.Sprint("left")
		}
		g.add(n.Name, state, number(n.Endpoints), number(n.Revision), dash(strings.Join(n.Addresses, " ")), dash(strings.Join(n.EndpointCidrs, " ")))
	}
	a.show(g, "no nodes")
}
