package cli

import (
	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) identityCommand() *cobra.Command {
	cmd := group("identity", "List the identities that labels have led to", "", "  varve identity list")
	cmd.Aliases = []string{"identities", "id"}
	cmd.AddCommand(a.identityList())
	return cmd
}

func (a *app) identityList() *cobra.Command {
	var req varvev1.ListIdentitiesRequest
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the identities",
		Long:    "List the identities. Equal labels have one identity, on every node.",
		Example: "  varve identity list\n  varve identity list --reserved",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Identities.List(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				a.sayWhen(resp.Msg.At)
				g := newGrid("ID", "ENDPOINTS", "SINCE", "STATE", "LABELS")
				for _, id := range resp.Msg.Identities {
					since, state := number(id.Revision), a.ink.good.Sprint("in use")
					switch {
					case id.Revision == 0:
						since, state = "-", "reserved"
					case id.Released:
						state = a.ink.dim.Sprint("released")
					}
					g.add(number(id.Id), number(id.Endpoints), since, state, securityLabels(id.Labels))
				}
				a.show(g, "no identities")
			})
		},
	}
	cmd.Flags().BoolVar(&req.Reserved, "reserved", false, "the reserved ones too")
	return a.withAt(a.withOutput(cmd), &req.At)
}
