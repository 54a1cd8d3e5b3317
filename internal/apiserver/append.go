package apiserver

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// maxRequestIDBytes is the longest idempotency key, as in event.proto.
const maxRequestIDBytes = 64

// event completes one that a caller asked for: who, where and in which stream. It
// refuses what the caller may not append.
func (s *Server) event(ctx context.Context, e *eventpb.Event) (*eventpb.Event, error) {
	return s.eventOf(ActorFrom(ctx), e)
}

// eventOf is event for a caller who is known.
func (s *Server) eventOf(actor Actor, e *eventpb.Event) (*eventpb.Event, error) {
	if len(e.RequestId) > maxRequestIDBytes {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("request_id: %d bytes; at most %d", len(e.RequestId), maxRequestIDBytes))
	}
	e.Actor = actor.Proto()
	e.Origin = &eventpb.Origin{Cluster: s.Cluster, Node: s.Node}
	stream, err := log.StreamOf(e)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	e.Stream = stream
	if err := log.Authorize(e); err != nil {
		return nil, connect.NewError(connect.CodePermissionDenied, err)
	}
	return e, nil
}

// append appends one event for a caller and turns every outcome that is not
// "applied" (or a repeat of what was applied) into a typed error.
func (s *Server) append(ctx context.Context, e *eventpb.Event) (log.Result, error) {
	e, err := s.event(ctx, e)
	if err != nil {
		return log.Result{}, err
	}
	results, err := s.Log.Append(ctx, e)
	if err != nil {
		return log.Result{}, appendError(err)
	}
	return results[0], outcomeError(e.Stream, results[0])
}

// outcomeError is nil for what was applied, now or at the first attempt.
func outcomeError(stream string, r log.Result) error {
	switch r.Outcome {
	case log.OutcomeConflict:
		return connect.NewError(connect.CodeAborted, fmt.Errorf("%s: conflict: %s", stream, r.Reason))
	case log.OutcomeRejected:
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s: rejected at revision %d: %s", stream, r.Revision, r.Reason))
	default:
		return nil
	}
}

// appendError classifies the errors of the log for the API.
func appendError(err error) error {
	if asConnect(err) != nil {
		return err
	}
	code := connect.CodeInternal
	switch {
	case errors.Is(err, log.ErrNoSpace):
		code = connect.CodeResourceExhausted
	case errors.Is(err, log.ErrTooLarge), errors.Is(err, log.ErrInvalid):
		code = connect.CodeInvalidArgument
	case errors.Is(err, log.ErrForbidden):
		code = connect.CodePermissionDenied
	case errors.Is(err, log.ErrNotLeader), errors.Is(err, log.ErrClosed):
		code = connect.CodeUnavailable
	case errors.Is(err, log.ErrCompacted):
		code = connect.CodeOutOfRange
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	}
	return connect.NewError(code, err)
}

// inForce waits until the kernel enforces a revision.
func (s *Server) inForce(ctx context.Context, revision log.Revision) error {
	if err := s.Projector.Wait(ctx, revision); err != nil {
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("recorded at revision %d, but not in force in the kernel: %w", revision, err))
	}
	return nil
}
