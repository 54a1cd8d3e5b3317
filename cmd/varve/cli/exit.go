package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// Exit codes.
const (
	exitYes    = 0
	exitNo     = 1
	exitUsage  = 2
	exitBroken = 3
)

// exitError ends the command with a code. Without err all has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// errNo is the answer no, where the output has said why.
var errNo = &exitError{code: exitNo}

func nof(format string, args ...any) error {
	return &exitError{code: exitNo, err: fmt.Errorf(format, args...)}
}

func usagef(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// explain is what to tell the user about an error, and the exit code. It is the
// one place that classifies the errors of the agent.
func explain(ctx context.Context, err error) (string, int) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return explainAll(ctx, joined.Unwrap())
	}
	var exit *exitError
	var dial *api.DialError
	var ce *connect.Error
	switch {
	case errors.As(err, &exit):
		return exit.Error(), exit.code
	case ctx.Err() != nil:
		return "interrupted", exitBroken
	case errors.As(err, &dial):
		return explainDial(dial), exitBroken
	case errors.As(err, &ce):
		return explainCall(err, ce)
	default:
		return err.Error(), exitBroken
	}
}

// explainAll explains each of several errors; the worst decides the code.
func explainAll(ctx context.Context, errs []error) (string, int) {
	var lines []string
	worst := exitYes
	for _, err := range errs {
		message, code := explain(ctx, err)
		if message != "" {
			lines = append(lines, message)
		}
		worst = max(worst, code)
	}
	return strings.Join(lines, "\n"), worst
}

func explainDial(e *api.DialError) string {
	if errors.Is(e, fs.ErrPermission) {
		return fmt.Sprintf("%v; run as root or as a member of the group varve", e)
	}
	return fmt.Sprintf("%v; is the agent running? start it with `varve agent` or give --socket", e)
}

func explainCall(err error, ce *connect.Error) (string, int) {
	if pes := api.PolicyErrors(err); len(pes) > 0 {
		slices.SortStableFunc(pes, func(x, y *varvev1.PolicyError) int { return cmp.Compare(x.Line, y.Line) })
		var lines []string
		for _, pe := range pes {
			lines = append(lines, policyErrorLine(pe))
		}
		return strings.Join(lines, "\n"), exitNo
	}
	// Whoever wrapped it says about what it is.
	message := ce.Message()
	if before, ok := strings.CutSuffix(err.Error(), ce.Error()); ok {
		message = before + message
	}
	switch ce.Code() {
	case connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodeAborted, connect.CodeFailedPrecondition:
		return message, exitNo
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return message, exitUsage
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		// Whom the socket lets in, and who may append what, the agent says itself.
		return message, exitBroken
	case connect.CodeUnimplemented:
		return message + "; is the agent of another version? compare `varve version` with `varve status`", exitBroken
	case connect.CodeUnavailable:
		return message + "; `varve status` and the agent's log tell more", exitBroken
	default:
		return message, exitBroken
	}
}

// policyErrorLine is "file:line: path: problem; remedy", as policy.FieldError says
// it.
func policyErrorLine(e *varvev1.PolicyError) string {
	return findingLine(e.GetSource(), e.GetLine(), e.GetPath(), e.GetProblem(), e.GetRemedy())
}

func findingLine(source string, line uint32, path, problem, remedy string) string {
	var b strings.Builder
	if source != "" {
		b.WriteString(source)
		if line > 0 {
			fmt.Fprintf(&b, ":%d", line)
		}
		b.WriteString(": ")
	} else if line > 0 {
		fmt.Fprintf(&b, "line %d: ", line)
	}
	if path != "" {
		b.WriteString(path + ": ")
	}
	b.WriteString(problem)
	if remedy != "" {
		b.WriteString("; " + remedy)
	}
	return b.String()
}
