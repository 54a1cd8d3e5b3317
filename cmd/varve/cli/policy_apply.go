package cli

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) policyApply() *cobra.Command {
	var files []string
	var requestID string
	var expected uint64
	cmd := &cobra.Command{
		Use:   "apply FILE... | -f FILE",
		Short: "Put policies in force",
		Long: strings.TrimSpace(`
Put the policies of manifests in force: files, directories of them, or - for
standard input. A file is applied wholly or not at all, and with several files none
is applied unless all are valid. The command returns once the kernel enforces them.
What is already in force as written is left alone.`),
		Example: strings.Trim(`
  varve policy apply -f web.yaml
  varve policy apply policies/
  sed s/80/8080/ web.yaml | varve policy apply -`, "\n"),
		RunE: func(cmd *cobra.Command, args []string) error {
			manifests, err := a.readManifests(append(files, args...))
			if err != nil {
				return err
			}
			one := cmd.Flags().Changed("expected-revision") || requestID != ""
			if one && len(manifests) > 1 {
				return usagef("--expected-revision and --request-id: go with one file, not with %d", len(manifests))
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			if len(manifests) > 1 {
				if err := validateAll(cmd.Context(), c, manifests); err != nil {
					return err
				}
			}
			var applied varvev1.ApplyPolicyResponse
			for _, m := range manifests {
				req := &varvev1.ApplyPolicyRequest{Manifest: string(m.text), Source: m.source, RequestId: requestID}
				if cmd.Flags().Changed("expected-revision") {
					req.ExpectedRevision = &expected
				}
				resp, err := c.Policies.Apply(cmd.Context(), connect.NewRequest(req))
				if err != nil {
					return applyError(m, err)
				}
				applied.Policies = append(applied.Policies, resp.Msg.Policies...)
				applied.Warnings = append(applied.Warnings, resp.Msg.Warnings...)
				if a.output == formatTable {
					a.sayApplied(resp.Msg)
				}
			}
			return a.print(&applied, func() {})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&files, "filename", "f", nil, "manifest: a file, a directory, or - for standard input; repeatable")
	addWriteFlags(flags, &requestID, &expected)
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
	return a.withOutput(cmd)
}

// applyError names the manifest, unless the error's details do.
func applyError(m manifest, err error) error {
	if len(api.PolicyErrors(err)) > 0 || connect.CodeOf(err) == connect.CodeUnavailable {
		return err
	}
	return fmt.Errorf("%s: %w", m.source, err)
}

// validateAll asks the agent about every manifest before any of them is applied.
func validateAll(ctx context.Context, c *api.Client, manifests []manifest) error {
	return eachOf(manifests, func(m manifest) error {
		resp, err := c.Policies.Validate(ctx, connect.NewRequest(&varvev1.ValidatePolicyRequest{Manifest: string(m.text), Source: m.source}))
		if err != nil {
			return applyError(m, err)
		}
		return eachOf(resp.Msg.Errors, func(pe *varvev1.PolicyError) error { return nof("%s", policyErrorLine(pe)) })
	})
}

func (a *app) sayApplied(resp *varvev1.ApplyPolicyResponse) {
	for _, p := range resp.Policies {
		action := strings.ToLower(p.Action.String())
		if p.Action != varvev1.AppliedPolicy_UNCHANGED {
			action = a.ink.good.Sprint(action)
		}
		fmt.Fprintf(a.stdout, "policy %s %s at revision %d\n", refArg(p.Ref), action, p.Revision)
	}
	for _, w := range resp.Warnings {
		a.warn(w)
	}
}

func (a *app) warn(w *varvev1.PolicyWarning) {
	fmt.Fprintf(a.stderr, "varve: warning: %s\n", findingLine(w.Source, w.Line, w.Path, w.Problem, w.Remedy))
}
