package cli

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// completeRow completes a map, and then a key of it.
func (a *app) completeRow(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return diffMaps, cobra.ShellCompDirectiveNoFileComp
	case 1:
		return a.complete(cmd, prefix, rowKeys(args[0]))
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// rowKeys are the keys of a map's rows that are one word, with what they mean.
func rowKeys(table string) names {
	return func(ctx context.Context, c *api.Client, _ *cobra.Command) ([]string, error) {
		req := &varvev1.DumpRequest{Map: map[string]varvev1.Map{
			"endpoint": varvev1.Map_MAP_ENDPOINT, "ipcache": varvev1.Map_MAP_IPCACHE, "policy": varvev1.Map_MAP_POLICY,
		}[table]}
		if req.Map == varvev1.Map_MAP_UNSPECIFIED {
			return nil, nil
		}
		resp, err := c.Datapath.Dump(ctx, connect.NewRequest(req))
		if err != nil {
			return nil, err
		}
		var out []string
		for _, r := range resp.Msg.Endpoints {
			out = append(out, r.Endpoint)
		}
		for _, r := range resp.Msg.Ipcache {
			out = append(out, r.Prefix+"\t"+r.Peer)
		}
		for _, r := range resp.Msg.Policies {
			out = append(out, r.Row+"\t"+strings.Join([]string{r.Direction, r.Class, r.Protocol, r.Ports, r.Verdict}, " "))
		}
		return out, nil
	}
}
