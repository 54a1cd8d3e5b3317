package apiserver

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/policy"
)

func asConnect(err error) *connect.Error {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce
	}
	return nil
}

// message is an error's text without connect's code in front.
func message(err error) string {
	if ce := asConnect(err); ce != nil {
		return ce.Message()
	}
	return err.Error()
}

func notFound(format string, args ...any) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf(format, args...))
}

func invalid(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// policyErrors lists what policy.Parse found, as the API's messages.
func policyErrors(err error) []*varvev1.PolicyError {
	var out []*varvev1.PolicyError
	for _, fe := range policy.FieldErrors(err) {
		out = append(out, &varvev1.PolicyError{
			Source: fe.Source, Line: uint32(fe.Line), Document: uint32(fe.Document), Path: fe.Path,
			Problem: fe.Problem, Remedy: fe.Remedy, Unsupported: errors.Is(fe, policy.ErrUnsupported),
		})
	}
	return out
}

// policyError is policy.Parse's error with each finding as a detail.
func policyError(err error) error {
	code := connect.CodeInvalidArgument
	out := connect.NewError(code, err)
	for _, pe := range policyErrors(err) {
		if d, derr := connect.NewErrorDetail(pe); derr == nil {
			out.AddDetail(d)
		}
	}
	return out
}
