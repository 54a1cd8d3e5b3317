package cli

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// policyRefHelp is how policies are named on the command line.
const policyRefHelp = `
A policy is KIND/NAMESPACE/NAME, or KIND/NAME for a cluster-wide one, where KIND is
np, cnp, ccnp or the full name. KIND may be left out where only one policy has the
name; a bare NAME is in the namespace of -n, or cluster-wide.`

// refOf is the reference in a message; what came from an agent is shown as it is.
func refOf(pb *eventpb.PolicyRef) policy.Ref {
	return policy.Ref{Kind: pb.GetKind(), Namespace: pb.GetNamespace(), Name: pb.GetName()}
}

// refArg is the argument that names a policy exactly.
func refArg(pb *eventpb.PolicyRef) string { return refOf(pb).String() }

// splitPolicyArg reads a policy's name. A zero kind is one that was left out.
func splitPolicyArg(cmd *cobra.Command, arg string) (ref policy.Ref, bare bool, err error) {
	ns := cmd.Flags().Lookup("namespace").Value.String()
	parts := strings.Split(arg, "/")
	for _, p := range parts {
		if p == "" {
			return ref, false, usagef("policy %q: has an empty part; write KIND/NAMESPACE/NAME", arg)
		}
	}
	switch len(parts) {
	case 1:
		return policy.Ref{Namespace: ns, Name: parts[0]}, true, nil
	case 2:
		kind, kindErr := policy.ParseKind(parts[0])
		isKind := kindErr == nil
		switch {
		case !isKind:
			return policy.Ref{Namespace: parts[0], Name: parts[1]}, false, nil
		case policy.KindNamespaced(kind):
			return policy.Ref{Kind: kind, Namespace: ns, Name: parts[1]}, false, nil
		default:
			return policy.Ref{Kind: kind, Name: parts[1]}, false, nil
		}
	case 3:
		kind, err := policy.ParseKind(parts[0])
		if err != nil {
			return ref, false, &exitError{code: exitUsage, err: err}
		}
		if !policy.KindNamespaced(kind) {
			return ref, false, usagef("policy %q: a %s has no namespace; write %s/%s", arg, policy.KindName(kind), parts[0], parts[2])
		}
		return policy.Ref{Kind: kind, Namespace: parts[1], Name: parts[2]}, false, nil
	default:
		return ref, false, usagef("policy %q: is not KIND/NAMESPACE/NAME", arg)
	}
}

// findPolicies resolves arguments to policies; for kinds that were left out it asks
// the agent once, for those of a moment; "" is now.
func (a *app) findPolicies(ctx context.Context, cmd *cobra.Command, args []string, at string) ([]policy.Ref, error) {
	var out []policy.Ref
	var all []*varvev1.Policy
	asked := false
	for _, arg := range args {
		want, bare, err := splitPolicyArg(cmd, arg)
		if err != nil {
			return nil, err
		}
		if want.Kind != 0 {
			out = append(out, want)
			continue
		}
		if !asked {
			c, err := a.dial()
			if err != nil {
				return nil, err
			}
			resp, err := c.Policies.List(ctx, connect.NewRequest(&varvev1.ListPoliciesRequest{At: at}))
			if err != nil {
				return nil, err
			}
			all, asked = resp.Msg.Policies, true
		}
		var found []policy.Ref
		var names []string
		for _, p := range all {
			r := refOf(p.Ref)
			clusterWide := bare && !policy.KindNamespaced(r.Kind)
			if r.Name == want.Name && (r.Namespace == want.Namespace || clusterWide) {
				found, names = append(found, r), append(names, r.String())
			}
		}
		switch len(found) {
		case 0:
			then := ""
			if at != "" {
				then = " at " + at
			}
			return nil, nof("policy %s does not exist%s; `varve policy list` shows what does", arg, then)
		case 1:
			out = append(out, found[0])
		default:
			return nil, usagef("policy %s: there is more than one; give the kind: %s", arg, strings.Join(names, ", "))
		}
	}
	return out, nil
}
