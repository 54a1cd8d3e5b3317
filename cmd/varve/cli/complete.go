package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// completeTimeout is how long a shell waits for names from the agent.
const completeTimeout = 2 * time.Second

// names asks the agent for what may stand at a place of the command line; each is
// "name" or "name\tdescription".
type names func(ctx context.Context, c *api.Client, cmd *cobra.Command) ([]string, error)

// complete answers a shell. An agent that is down completes to nothing.
func (a *app) complete(cmd *cobra.Command, prefix string, from names) ([]string, cobra.ShellCompDirective) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	c, err := a.dial()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := from(ctx, c, cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all = slices.DeleteFunc(all, func(s string) bool { return !strings.HasPrefix(s, prefix) })
	slices.Sort(all)
	return slices.Compact(all), cobra.ShellCompDirectiveNoFileComp
}

// completeFirst completes the first argument.
func (a *app) completeFirst(from names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.complete(cmd, prefix, from)
	}
}

// completeEach completes every argument, but with none twice.
func (a *app) completeEach(from names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		found, directive := a.complete(cmd, prefix, from)
		return slices.DeleteFunc(found, func(s string) bool {
			name, _, _ := strings.Cut(s, "\t")
			return slices.Contains(args, name)
		}), directive
	}
}

func (a *app) completeNamespaces(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, prefix, namespaceNames)
}

// completeEndpointFlag completes a flag that takes NAMESPACE/NAME.
func (a *app) completeEndpointFlag(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, prefix, qualifiedEndpointNames)
}

func namespaceNames(ctx context.Context, c *api.Client, _ *cobra.Command) ([]string, error) {
	resp, err := c.Namespaces.List(ctx, connect.NewRequest(&varvev1.ListNamespacesRequest{}))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, ns := range resp.Msg.Namespaces {
		out = append(out, ns.Name)
	}
	return out, nil
}

// endpointNames are bare names in the namespace of -n, and qualified ones where
// -n is not given.
func endpointNames(ctx context.Context, c *api.Client, cmd *cobra.Command) ([]string, error) {
	flag := cmd.Flags().Lookup("namespace")
	resp, err := c.Endpoints.List(ctx, connect.NewRequest(&varvev1.ListEndpointsRequest{}))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range resp.Msg.Endpoints {
		describe := "\t" + labelList(e.Labels)
		switch {
		case e.Namespace == flag.Value.String():
			out = append(out, e.Name+describe)
		case !flag.Changed:
			out = append(out, e.Namespace+"/"+e.Name+describe)
		}
	}
	return out, nil
}

func qualifiedEndpointNames(ctx context.Context, c *api.Client, _ *cobra.Command) ([]string, error) {
	resp, err := c.Endpoints.List(ctx, connect.NewRequest(&varvev1.ListEndpointsRequest{}))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range resp.Msg.Endpoints {
		out = append(out, e.Namespace+"/"+e.Name)
	}
	return out, nil
}

func policyNames(ctx context.Context, c *api.Client, _ *cobra.Command) ([]string, error) {
	resp, err := c.Policies.List(ctx, connect.NewRequest(&varvev1.ListPoliciesRequest{}))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range resp.Msg.Policies {
		out = append(out, refArg(p.Ref)+"\t"+plural(len(p.Endpoints), "endpoint"))
	}
	return out, nil
}
