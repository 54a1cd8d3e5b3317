package cli

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := group("policy", "Apply, list, delete, check and test policies", `
Policies are NetworkPolicy, CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy,
in YAML or JSON. What varve does not fully understand it refuses.
`+policyRefHelp, `
  varve policy validate web.yaml
  varve policy apply -f web.yaml
  varve policy list
  varve policy delete cnp/default/web
  varve policy verdict --from web --to db --port 5432/tcp
  varve policy test cases.jsonl`)
	cmd.Aliases = []string{"policies"}
	cmd.AddCommand(a.policyApply(), a.policyList(), a.policyGet(), a.policyDelete(), a.policyValidate(), a.policyVerdict(), a.policyTest())
	return cmd
}

func (a *app) policyList() *cobra.Command {
	var at string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the policies",
		Example: "  varve policy list\n  varve policy list -n shop -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ns, _ := cmd.Flags().GetString("namespace")
			resp, err := c.Policies.List(cmd.Context(), connect.NewRequest(&varvev1.ListPoliciesRequest{Namespace: ns, At: at}))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() {
				a.sayWhen(resp.Msg.At)
				g := newGrid("KIND", "NAMESPACE", "NAME", "REVISION", "RULES", "ENDPOINTS")
				for _, p := range resp.Msg.Policies {
					g.add(policy.KindName(p.Ref.GetKind()), dash(p.Ref.GetNamespace()), p.Ref.GetName(),
						number(p.Revision), number(ruleCount(p.Specs)), number(len(p.Endpoints)))
				}
				a.show(g, "no policies")
			})
		},
	}
	return a.withNamespace(a.withAt(a.withOutput(cmd), &at), "")
}

func ruleCount(specs []*eventpb.PolicySpec) int {
	n := 0
	for _, s := range specs {
		n += len(s.Ingress) + len(s.Egress) + len(s.IngressDeny) + len(s.EgressDeny)
	}
	return n
}

func (a *app) policyGet() *cobra.Command {
	var at string
	cmd := &cobra.Command{
		Use:   "get POLICY",
		Short: "Show one policy",
		Long: strings.TrimSpace(`
Show one policy. With -o yaml or -o json it is what its user wrote, fit for
` + "`varve policy apply`" + `.
` + policyRefHelp),
		Example:           "  varve policy get default/web\n  varve policy get cnp/default/web -o yaml",
		Args:              oneArg("POLICY"),
		ValidArgsFunction: a.completeFirst(policyNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := a.findPolicies(cmd.Context(), cmd, args, at)
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Policies.Get(cmd.Context(), connect.NewRequest(&varvev1.GetPolicyRequest{Ref: refs[0].PB(), At: at}))
			if err != nil {
				return err
			}
			p := resp.Msg.Policy
			switch {
			case a.output == formatTable:
				a.sayWhen(resp.Msg.At)
				return a.showPolicy(p)
			case p.GetManifest() == "":
				// It was appended as an event, without the text of a manifest.
				return a.print(p, nil)
			default:
				return a.printJSON([]byte(p.Manifest))
			}
		},
	}
	return a.withNamespace(a.withAt(a.withOutput(cmd), &at), defaultNamespace)
}

func (a *app) showPolicy(p *varvev1.Policy) error {
	g := newGrid()
	g.add("Kind", policy.KindName(p.GetRef().GetKind()))
	g.addIf("Namespace", p.GetRef().GetNamespace())
	g.add("Name", p.GetRef().GetName())
	g.add("Created", fmt.Sprintf("at revision %d", p.GetCreatedRevision()))
	g.add("Changed", fmt.Sprintf("at revision %d", p.GetRevision()))
	g.add("Rules", number(ruleCount(p.GetSpecs())))
	g.add("Endpoints", dash(strings.Join(p.GetEndpoints(), ", ")))
	a.show(g, "")
	if p.GetManifest() == "" {
		return nil
	}
	text, err := jsonToYAML([]byte(p.Manifest))
	if err != nil {
		return fmt.Errorf("manifest of %s: %w", refArg(p.Ref), err)
	}
	_, err = fmt.Fprintf(a.stdout, "\n%s", text)
	return err
}

func (a *app) policyDelete() *cobra.Command {
	var files []string
	var requestID string
	var expected uint64
	cmd := &cobra.Command{
		Use:               "delete POLICY... | -f FILE",
		Aliases:           []string{"rm"},
		Short:             "Delete policies",
		Long:              strings.TrimSpace("Delete policies by name, or those that a manifest names.\n" + policyRefHelp),
		Example:           "  varve policy delete cnp/default/web\n  varve policy delete -f web.yaml",
		ValidArgsFunction: a.completeEach(policyNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := a.policiesToDelete(cmd, args, files)
			if err != nil {
				return err
			}
			one := cmd.Flags().Changed("expected-revision") || requestID != ""
			if one && len(refs) > 1 {
				return usagef("--expected-revision and --request-id: go with one policy, not with %d", len(refs))
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			return eachOf(refs, func(ref policy.Ref) error {
				req := &varvev1.DeletePolicyRequest{Ref: ref.PB(), RequestId: requestID}
				if cmd.Flags().Changed("expected-revision") {
					req.ExpectedRevision = &expected
				}
				resp, err := c.Policies.Delete(cmd.Context(), connect.NewRequest(req))
				if err != nil {
					return fmt.Errorf("policy %w", err)
				}
				fmt.Fprintf(a.stdout, "policy %s %s at revision %d\n", ref, a.ink.good.Sprint("deleted"), resp.Msg.Revision)
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&files, "filename", "f", nil, "manifest that names the policies: a file, a directory, or -")
	addWriteFlags(flags, &requestID, &expected)
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
	return a.withNamespace(cmd, defaultNamespace)
}

func (a *app) policiesToDelete(cmd *cobra.Command, args, files []string) ([]policy.Ref, error) {
	if len(files) == 0 {
		if len(args) == 0 {
			return nil, usagef("no policy is given; name policies, or a manifest with -f")
		}
		return a.findPolicies(cmd.Context(), cmd, args, "")
	}
	if len(args) > 0 {
		return nil, usagef("give either names or -f, not both")
	}
	manifests, err := a.readManifests(files)
	if err != nil {
		return nil, err
	}
	var refs []policy.Ref
	for _, m := range manifests {
		r, err := m.refs()
		if err != nil {
			return nil, err
		}
		refs = append(refs, r...)
	}
	if len(refs) == 0 {
		return nil, usagef("%s: names no policy", strings.Join(files, ", "))
	}
	return refs, nil
}
