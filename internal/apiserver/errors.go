package apiserver

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/internal/findings"
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

// policyError is policy.Parse's error with each finding as a detail.
func policyError(err error) error {
	code := connect.CodeInvalidArgument
	out := connect.NewError(code, err)
	for _, pe := range findings.Errors(err) {
		if d, derr := connect.NewErrorDetail(pe); derr == nil {
			out.AddDetail(d)
		}
	}
	return out
}
