package cli

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) endpointCommand() *cobra.Command {
	cmd := group("endpoint", "Connect workloads, list, label and disconnect them", `
An endpoint is a workload's network namespace, connected to this node: a veth
pair, addresses, routes, an identity that follows from its labels, and policy.`, `
  varve endpoint add web --netns web --labels app=web
  varve endpoint list
  varve endpoint label web tier=front
  varve endpoint delete web`)
	cmd.Aliases = []string{"endpoints", "ep"}
	cmd.AddCommand(a.endpointAdd(), a.endpointList(), a.endpointGet(), a.endpointLabel(), a.endpointConfig(), a.endpointDelete())
	return cmd
}

func (a *app) endpointList() *cobra.Command {
	var at string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the endpoints",
		Example: "  varve endpoint list\n  varve endpoint list -n shop -o yaml\n  varve endpoint list --at 2026-03-01T03:00:00Z",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ns, _ := cmd.Flags().GetString("namespace")
			resp, err := c.Endpoints.List(cmd.Context(), connect.NewRequest(&varvev1.ListEndpointsRequest{Namespace: ns, At: at}))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				a.sayWhen(resp.Msg.At)
				g := newGrid("NAMESPACE", "NAME", "ID", "IDENTITY", "IPV4", "IPV6", "INGRESS", "EGRESS", "STATE", "LABELS")
				for _, e := range resp.Msg.Endpoints {
					g.add(e.Namespace, e.Name, number(e.Id), number(e.Identity), dash(e.Ipv4), dash(e.Ipv6),
						enforced(e.IngressEnforced, e.PolicyAuditMode), enforced(e.EgressEnforced, e.PolicyAuditMode), a.endpointState(e.State), dash(labelList(e.Labels)))
				}
				a.show(g, "no endpoints")
			})
		},
	}
	return a.withNamespace(a.withAt(a.withOutput(cmd), &at), "")
}

func (a *app) endpointGet() *cobra.Command {
	var at string
	cmd := &cobra.Command{
		Use:               "get [NAMESPACE/]NAME",
		Short:             "Show one endpoint",
		Example:           "  varve endpoint get web\n  varve endpoint get shop/cart -o json",
		Args:              oneArg("NAME"),
		ValidArgsFunction: a.completeFirst(endpointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseNamed(cmd, "endpoint", args[0])
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Endpoints.Get(cmd.Context(), connect.NewRequest(&varvev1.GetEndpointRequest{Namespace: ref.namespace, Name: ref.name, At: at}))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() { a.showEndpoint(resp.Msg) })
		},
	}
	return a.withNamespace(a.withAt(a.withOutput(cmd), &at), defaultNamespace)
}

func (a *app) showEndpoint(resp *varvev1.GetEndpointResponse) {
	a.sayWhen(resp.At)
	e := resp.Endpoint
	var ports []string
	for _, p := range e.GetNamedPorts() {
		ports = append(ports, fmt.Sprintf("%s=%d/%s", p.Name, p.Port, strings.ToLower(p.Protocol)))
	}
	g := newGrid()
	g.add("Name", e.GetNamespace()+"/"+e.GetName())
	g.add("State", a.endpointState(e.GetState()))
	g.add("Id", number(e.GetId()))
	g.add("Identity", number(e.GetIdentity())+"  "+securityLabels(resp.IdentityLabels))
	g.addIf("Labels", labelList(e.GetLabels()))
	g.addIf("Service account", e.GetServiceAccount())
	g.addIf("IPv4", e.GetIpv4())
	g.addIf("IPv6", e.GetIpv6())
	g.addIf("MAC", e.GetMac())
	g.addIf("Named ports", strings.Join(ports, ", "))
	g.add("Ingress policy", enforced(e.GetIngressEnforced(), e.GetPolicyAuditMode()))
	g.add("Egress policy", enforced(e.GetEgressEnforced(), e.GetPolicyAuditMode()))
	g.addIf("Node", e.GetNode())
	g.addIf("Network namespace", e.GetNetns())
	g.addIf("Host interface", e.GetHostInterface())
	g.addIf("Container interface", e.GetContainerInterface())
	g.add("Created", fmt.Sprintf("at revision %d, incarnation %d", e.GetCreatedRevision(), e.GetIncarnation()))
	g.add("Changed", fmt.Sprintf("at revision %d", e.GetRevision()))
	a.show(g, "")
}

// enforced is what policy does in one direction.
func enforced(on, audit bool) string {
	switch {
	case on && audit:
		return "audited"
	case on:
		return "enforced"
	}
	return "open"
}

func (a *app) endpointState(state string) string {
	switch state {
	case "ready":
		return a.ink.good.Sprint(state)
	case "remote", "":
		return dash(state)
	default:
		return a.ink.bad.Sprint(state)
	}
}
