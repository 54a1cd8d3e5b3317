package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/findings"
	"github.com/varve-net/varve/policy"
)

func (a *app) policyValidate() *cobra.Command {
	var files []string
	var cluster string
	var without bool
	cmd := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check manifests, without setting anything",
		Long: strings.TrimSpace(`
Check manifests, without setting anything: files, directories of them, or - for
standard input. Everything that is wrong is said as FILE:LINE: PATH: PROBLEM; REMEDY.
The exit code is 1 if something is. What is legal but surely not meant is a warning. An
agent, if one answers, warns as well of what its state tells: a selector that matches
nothing now, a rule that a deny covers. --offline asks none.`),
		Example: "  varve policy validate web.yaml\n  varve policy validate policies/ -o json\n  varve policy validate --offline policies/",
		RunE: func(cmd *cobra.Command, args []string) error {
			manifests, err := a.readManifests(append(files, args...))
			if err != nil {
				return err
			}
			var resp *varvev1.ValidatePolicyResponse
			if !without && !cmd.Flags().Changed("cluster-name") {
				if resp, err = a.validateThere(cmd.Context(), manifests); err != nil {
					return err
				}
			}
			if resp == nil {
				resp = validateOffline(manifests, cluster)
			}
			if err := a.print(resp, func() { a.showValidated(resp) }); err != nil {
				return err
			}
			if !without && resp.Revision == 0 && len(resp.Valid) > 0 {
				fmt.Fprintln(a.stderr, a.ink.dim.Sprint("not compared with what is there now: no agent was asked"))
			}
			if len(resp.Errors) > 0 {
				return errNo
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest: a file, a directory, or - for standard input; repeatable")
	cmd.Flags().StringVar(&cluster, "cluster-name", "default", "name of the cluster, which labels may speak of")
	cmd.Flags().BoolVar(&without, "offline", false, "ask no agent")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
	return a.withOutput(cmd)
}

// validateThere has the agent check. Nil if none answers.
func (a *app) validateThere(ctx context.Context, manifests []manifest) (*varvev1.ValidatePolicyResponse, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	all := &varvev1.ValidatePolicyResponse{}
	for _, m := range manifests {
		resp, err := c.Policies.Validate(ctx, connect.NewRequest(&varvev1.ValidatePolicyRequest{Manifest: string(m.text), Source: m.source}))
		switch {
		case connect.CodeOf(err) == connect.CodeUnavailable:
			return nil, nil
		case err != nil:
			return nil, applyError(m, err)
		}
		all.Valid = append(all.Valid, resp.Msg.Valid...)
		all.Errors = append(all.Errors, resp.Msg.Errors...)
		all.Warnings = append(all.Warnings, resp.Msg.Warnings...)
		if len(resp.Msg.Valid)+len(resp.Msg.Errors) == 0 {
			all.Errors = append(all.Errors, &varvev1.PolicyError{Source: m.source, Problem: noPolicy})
		}
		all.Revision = max(all.Revision, resp.Msg.Revision)
	}
	return all, nil
}

// noPolicy is what is wrong with a manifest of nothing.
const noPolicy = "holds no policy"

func validateOffline(manifests []manifest, cluster string) *varvev1.ValidatePolicyResponse {
	resp := &varvev1.ValidatePolicyResponse{}
	for _, m := range manifests {
		sets, warnings, err := policy.Parse(m.source, m.text, policy.Options{Cluster: cluster})
		resp.Warnings = append(resp.Warnings, findings.Warnings(warnings)...)
		found := findings.Errors(err)
		slices.SortStableFunc(found, func(x, y *varvev1.PolicyError) int { return cmp.Compare(x.Line, y.Line) })
		resp.Errors = append(resp.Errors, found...)
		switch {
		case err != nil && len(found) == 0:
			resp.Errors = append(resp.Errors, &varvev1.PolicyError{Source: m.source, Problem: err.Error()})
		case err == nil && len(sets) == 0:
			resp.Errors = append(resp.Errors, &varvev1.PolicyError{Source: m.source, Problem: noPolicy})
		}
		if err == nil {
			for _, s := range sets {
				resp.Valid = append(resp.Valid, s.Ref)
			}
		}
	}
	return resp
}

func (a *app) showValidated(resp *varvev1.ValidatePolicyResponse) {
	for _, ref := range resp.Valid {
		fmt.Fprintf(a.stdout, "policy %s is %s\n", refArg(ref), a.ink.good.Sprint("valid"))
	}
	for _, w := range resp.Warnings {
		a.warn(w)
	}
	for _, e := range resp.Errors {
		fmt.Fprintln(a.stdout, policyErrorLine(e))
	}
}
