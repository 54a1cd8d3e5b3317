// Package findings is what policy.Parse and package advise have to say of manifests, as
// the API's messages: for an agent that answers, and for a command that asks none.
package findings

import (
	"errors"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/advise"
	"github.com/varve-net/varve/policy"
)

// Warnings is those of policy.Parse.
func Warnings(ws []policy.Warning) []*varvev1.PolicyWarning {
	var out []*varvev1.PolicyWarning
	for _, w := range ws {
		out = append(out, &varvev1.PolicyWarning{
			Source: w.Source, Line: uint32(w.Line), Document: uint32(w.Document), Path: w.Path, Problem: w.Text, Remedy: w.Remedy,
		})
	}
	return out
}

// Advice is the warnings of package advise about the policies of a manifest.
func Advice(source string, ws []advise.Warning) []*varvev1.PolicyWarning {
	var out []*varvev1.PolicyWarning
	for _, w := range ws {
		out = append(out, &varvev1.PolicyWarning{Source: source, Path: w.Ref.String() + " " + w.Path, Problem: w.Problem, Remedy: w.Remedy})
	}
	return out
}

// Errors is what is wrong with fields, by the error of policy.Parse; nil if that is of
// another sort.
func Errors(err error) []*varvev1.PolicyError {
	var out []*varvev1.PolicyError
	for _, fe := range policy.FieldErrors(err) {
		out = append(out, &varvev1.PolicyError{
			Source: fe.Source, Line: uint32(fe.Line), Document: uint32(fe.Document), Path: fe.Path,
			Problem: fe.Problem, Remedy: fe.Remedy, Unsupported: errors.Is(fe, policy.ErrUnsupported),
		})
	}
	return out
}
