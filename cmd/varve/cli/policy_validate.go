package cli

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/policy"
)

func (a *app) policyValidate() *cobra.Command {
	var files []string
	var cluster string
	cmd := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check manifests, without an agent",
		Long: strings.TrimSpace(`
Check manifests, without an agent: files, directories of them, or - for standard
input. Everything that is wrong is said as FILE:LINE: PATH: PROBLEM; REMEDY. The exit
code is 1 if something is.`),
		Example: "  varve policy validate web.yaml\n  varve policy validate policies/ -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			manifests, err := a.readManifests(append(files, args...))
			if err != nil {
				return err
			}
			resp := validateOffline(manifests, cluster)
			if err := a.print(resp, func() { a.showValidated(resp) }); err != nil {
				return err
			}
			if len(resp.Errors) > 0 {
				return errNo
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest: a file, a directory, or - for standard input; repeatable")
	cmd.Flags().StringVar(&cluster, "cluster-name", "default", "name of the cluster, which labels may speak of")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
	return a.withOutput(cmd)
}

func validateOffline(manifests []manifest, cluster string) *varvev1.ValidatePolicyResponse {
	resp := &varvev1.ValidatePolicyResponse{}
	for _, m := range manifests {
		sets, warnings, err := policy.Parse(m.source, m.text, policy.Options{Cluster: cluster})
		for _, w := range warnings {
			resp.Warnings = append(resp.Warnings, &varvev1.PolicyWarning{
				Source: w.Source, Line: uint32(w.Line), Document: uint32(w.Document), Path: w.Path, Problem: w.Text,
			})
		}
		found := policy.FieldErrors(err)
		slices.SortStableFunc(found, func(x, y *policy.FieldError) int { return cmp.Compare(x.Line, y.Line) })
		for _, fe := range found {
			resp.Errors = append(resp.Errors, &varvev1.PolicyError{
				Source: fe.Source, Line: uint32(fe.Line), Document: uint32(fe.Document), Path: fe.Path,
				Problem: fe.Problem, Remedy: fe.Remedy, Unsupported: errors.Is(fe, policy.ErrUnsupported),
			})
		}
		switch {
		case err != nil && len(found) == 0:
			resp.Errors = append(resp.Errors, &varvev1.PolicyError{Source: m.source, Problem: err.Error()})
		case err == nil && len(sets) == 0:
			resp.Errors = append(resp.Errors, &varvev1.PolicyError{Source: m.source, Problem: "holds no policy"})
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
