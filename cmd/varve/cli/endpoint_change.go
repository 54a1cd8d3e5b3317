package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// netnsDirectory is where iproute2 keeps named network namespaces (ip-netns(8)).
const netnsDirectory = "/run/netns"

func (a *app) endpointAdd() *cobra.Command {
	var req varvev1.AddEndpointRequest
	var labels, ports []string
	cmd := &cobra.Command{
		Use:   "add [NAMESPACE/]NAME --netns PATH|NAME",
		Short: "Connect a workload's network namespace",
		Long: strings.TrimSpace(`
Connect a workload's network namespace: a veth pair, addresses, routes, identity
and policy. The command returns when all of it is in force. Repeating it changes
only what differs.`),
		Example: strings.Trim(`
  ip netns add web
  varve endpoint add web --netns web --labels app=web,tier=front
  varve endpoint add db -n shop --netns /proc/4711/ns/net --address 10.244.0.9 --port sql=5432/tcp`, "\n"),
		Args: oneArg("NAME"),
		// The name is the user's to choose.
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseNamed(cmd, "endpoint", args[0])
			if err != nil {
				return err
			}
			req.Namespace, req.Name = ref.namespace, ref.name
			if req.Labels, err = parseLabels("--labels", labels); err != nil {
				return err
			}
			for _, p := range ports {
				port, err := parsePort(p)
				if err != nil {
					return err
				}
				req.NamedPorts = append(req.NamedPorts, port)
			}
			if req.Netns, err = netnsPath(req.Netns); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Endpoints.Add(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				done := "already there"
				if resp.Msg.Created {
					done = "added"
				}
				a.sayEndpoint(done, resp.Msg.Endpoint)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Netns, "netns", "", "network namespace: a path as the agent sees it, or a name that ip netns knows")
	flags.StringSliceVarP(&labels, "labels", "l", nil, "labels, key=value, comma-separated or repeated")
	flags.StringVar(&req.ServiceAccount, "service-account", "", "service account (default \"default\")")
	flags.StringSliceVar(&req.Addresses, "address", nil, "address, at most one of each family (default the next free ones)")
	flags.StringSliceVar(&ports, "port", nil, "named port, name=number/protocol, repeatable")
	flags.StringVar(&req.ContainerInterface, "interface", "", "name of the interface in the network namespace (default eth0)")
	flags.BoolVar(&req.PolicyAuditMode, "policy-audit-mode", false, "let pass, and report, what policy would drop of its traffic")
	flags.Uint32Var(&req.Mtu, "mtu", 0, "MTU of the interface, in bytes (default the agent's)")
	flags.BoolVar(&req.BigTcp, "big-tcp", false, "let its TCP packets to containers of this node grow to 192 KiB (default as the agent has it)")
	_ = cmd.MarkFlagRequired("netns")
	return a.withNamespace(a.withOutput(cmd), defaultNamespace)
}

// netnsPath turns what a user gives into a path that means the same to the agent.
func netnsPath(s string) (string, error) {
	if s == "" {
		return "", usagef("--netns: is empty; give a path such as /proc/PID/ns/net, or a name of `ip netns`")
	}
	if !strings.Contains(s, "/") {
		return filepath.Join(netnsDirectory, s), nil
	}
	return filepath.Abs(s)
}

// sayEndpoint tells in one line what became of an endpoint.
func (a *app) sayEndpoint(done string, e *varvev1.Endpoint) {
	fmt.Fprintf(a.stdout, "endpoint %s/%s %s", e.GetNamespace(), e.GetName(), a.ink.good.Sprint(done))
	for _, part := range []string{e.GetIpv4(), e.GetIpv6()} {
		if part != "" {
			fmt.Fprintf(a.stdout, ", %s", part)
		}
	}
	fmt.Fprintf(a.stdout, ", identity %d\n", e.GetIdentity())
}

func (a *app) endpointLabel() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "label [NAMESPACE/]NAME KEY=VALUE|KEY-...",
		Short: "Set and remove labels of an endpoint",
		Long: strings.TrimSpace(`
Set labels (KEY=VALUE) and remove them (KEY-). The command returns when the
identity that follows from them is in force.`),
		Example: strings.Trim(`
  varve endpoint label web tier=front
  varve endpoint label web -n shop app=web old-`, "\n"),
		Args:              atLeast(2, "NAME and at least one label"),
		ValidArgsFunction: a.completeFirst(endpointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseNamed(cmd, "endpoint", args[0])
			if err != nil {
				return err
			}
			set, remove, err := parseLabelEdits(args[1:])
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Endpoints.SetLabels(cmd.Context(), connect.NewRequest(&varvev1.SetEndpointLabelsRequest{
				Namespace: ref.namespace, Name: ref.name, Set: set, Remove: remove,
			}))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() { a.sayEndpoint("labelled "+dash(labelList(resp.Msg.Endpoint.GetLabels())), resp.Msg.Endpoint) })
		},
	}
	return a.withNamespace(a.withOutput(cmd), defaultNamespace)
}

// optionAuditMode is named as in cilium-dbg endpoint config.
const optionAuditMode = "PolicyAuditMode"

func (a *app) endpointConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config [NAMESPACE/]NAME [OPTION=Enabled|Disabled...]",
		Short: "Show and set options of an endpoint",
		Long: strings.TrimSpace(`
Show the options of an endpoint, or set some. The command returns when they are in
force. There is one option:

  PolicyAuditMode   what policy would drop of its traffic passes, and is reported:
                    by varve monitor as "audited", and in policy_audit_count_total`),
		Example: strings.Trim(`
  varve endpoint config web
  varve endpoint config shop/cart PolicyAuditMode=Enabled`, "\n"),
		Args:              atLeast(1, "NAME"),
		ValidArgsFunction: a.completeFirst(endpointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseNamed(cmd, "endpoint", args[0])
			if err != nil {
				return err
			}
			req := &varvev1.ConfigureEndpointRequest{Namespace: ref.namespace, Name: ref.name}
			for _, arg := range args[1:] {
				if req.PolicyAuditMode, err = parseOption(arg); err != nil {
					return err
				}
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Endpoints.Configure(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				state := "Disabled"
				if resp.Msg.Endpoint.GetPolicyAuditMode() {
					state = "Enabled"
				}
				g := newGrid()
				g.add(optionAuditMode, state)
				a.show(g, "")
			})
		},
	}
	return a.withNamespace(a.withOutput(cmd), defaultNamespace)
}

// parseOption reads OPTION=Enabled, of whatever case, and the like.
func parseOption(arg string) (*bool, error) {
	option, value, ok := strings.Cut(arg, "=")
	if !ok || !strings.EqualFold(option, optionAuditMode) {
		return nil, usagef("%q: no option; write %s=Enabled or %s=Disabled", arg, optionAuditMode, optionAuditMode)
	}
	var on bool
	switch strings.ToLower(value) {
	case "enabled", "true":
		on = true
	case "disabled", "false":
	default:
		return nil, usagef("%s: %q is neither Enabled nor Disabled", optionAuditMode, value)
	}
	return &on, nil
}

func (a *app) endpointDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "delete [NAMESPACE/]NAME...",
		Aliases:           []string{"rm"},
		Short:             "Disconnect endpoints and leave nothing behind",
		Long:              "Disconnect endpoints and leave nothing behind. Deleting what does not exist\nsucceeds.",
		Example:           "  varve endpoint delete web\n  varve endpoint delete shop/cart shop/db",
		Args:              atLeast(1, "at least one NAME"),
		ValidArgsFunction: a.completeEach(endpointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			var refs []named
			for _, arg := range args {
				ref, err := parseNamed(cmd, "endpoint", arg)
				if err != nil {
					return err
				}
				refs = append(refs, ref)
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			return eachOf(refs, func(ref named) error {
				resp, err := c.Endpoints.Delete(cmd.Context(), connect.NewRequest(&varvev1.DeleteEndpointRequest{Namespace: ref.namespace, Name: ref.name}))
				if err != nil {
					return fmt.Errorf("endpoint %s: %w", ref, err)
				}
				done := "did not exist"
				if resp.Msg.Deleted {
					done = a.ink.good.Sprint("deleted")
				}
				fmt.Fprintf(a.stdout, "endpoint %s %s\n", ref, done)
				return nil
			})
		},
	}
	return a.withNamespace(cmd, defaultNamespace)
}
