package cli

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) namespaceCommand() *cobra.Command {
	cmd := group("namespace", "Label namespaces and list them", "", `
  varve namespace apply shop --labels team=sales
  varve namespace list`)
	cmd.Aliases = []string{"namespaces", "ns"}
	cmd.AddCommand(a.namespaceApply(), a.namespaceList())
	return cmd
}

func (a *app) namespaceApply() *cobra.Command {
	var req varvev1.ApplyNamespaceRequest
	var labels []string
	var expected uint64
	cmd := &cobra.Command{
		Use:   "apply NAME",
		Short: "Set the labels of a namespace",
		Long: strings.TrimSpace(`
Set the labels of a namespace, wholly: those that are not given are removed. Its
endpoints get the identities that follow.`),
		Example:           "  varve namespace apply shop --labels team=sales,env=prod",
		Args:              oneArg("NAME"),
		ValidArgsFunction: a.completeFirst(namespaceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			req.Name = args[0]
			if req.Labels, err = parseLabels("--labels", labels); err != nil {
				return err
			}
			if cmd.Flags().Changed("expected-revision") {
				req.ExpectedRevision = &expected
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Namespaces.Apply(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				ns := resp.Msg.Namespace
				fmt.Fprintf(a.stdout, "namespace %s %s at revision %d\n", ns.GetName(), a.ink.good.Sprint("applied"), ns.GetRevision())
			})
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVarP(&labels, "labels", "l", nil, "labels, key=value, comma-separated or repeated")
	addWriteFlags(flags, &req.RequestId, &expected)
	return a.withOutput(cmd)
}

func (a *app) namespaceList() *cobra.Command {
	var req varvev1.ListNamespacesRequest
	return a.withAt(a.withOutput(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the namespaces",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Namespaces.List(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				a.sayWhen(resp.Msg.At)
				g := newGrid("NAME", "ENDPOINTS", "REVISION", "LABELS")
				for _, ns := range resp.Msg.Namespaces {
					revision := "-"
					if ns.Revision > 0 {
						revision = number(ns.Revision)
					}
					g.add(ns.Name, number(ns.Endpoints), revision, dash(labelList(ns.Labels)))
				}
				a.show(g, "no namespaces")
			})
		},
	}), &req.At)
}
