// Package auditserver answers the API's questions about the past (AuditService),
// in an agent and offline alike. It only translates: package audit finds the
// answers.
package auditserver

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/audit"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// Service answers AuditService.
type Service struct {
	varvev1connect.UnimplementedAuditServiceHandler
	past    *past.Past
	auditor *audit.Auditor
}

// New makes the service of a past.
func New(p *past.Past, opts projections.Options) *Service {
	return &Service{past: p, auditor: &audit.Auditor{Past: records{p}, Options: opts}}
}

// Auditor is who finds the answers.
func (s *Service) Auditor() *audit.Auditor { return s.auditor }

// Why implements AuditService.
func (s *Service) Why(ctx context.Context, req *connect.Request[varvev1.WhyRequest]) (*connect.Response[varvev1.WhyResponse], error) {
	q, err := question(req.Msg.From, req.Msg.To, req.Msg.Port)
	if err != nil {
		return nil, err
	}
	at, asked, err := s.moment(ctx, "at", orNow(req.Msg.At))
	if err != nil {
		return nil, err
	}
	q.TimeNS = asked
	why, err := s.auditor.Why(ctx, q, at)
	if err != nil {
		return nil, callError(ctx, err)
	}
	view, err := s.past.View(ctx, at)
	if err != nil {
		return nil, callError(ctx, err)
	}
	return connect.NewResponse(whyProto(view, why)), nil
}

// Bisect implements AuditService.
func (s *Service) Bisect(ctx context.Context, req *connect.Request[varvev1.BisectRequest]) (*connect.Response[varvev1.BisectResponse], error) {
	q, err := question(req.Msg.From, req.Msg.To, req.Msg.Port)
	if err != nil {
		return nil, err
	}
	at, asked, err := s.moment(ctx, "at", orNow(req.Msg.At))
	if err != nil {
		return nil, err
	}
	q.TimeNS = asked
	since := records{s.past}.First()
	if req.Msg.Since != "" {
		if since, q.SinceNS, err = s.moment(ctx, "since", req.Msg.Since); err != nil {
			return nil, err
		}
	}
	if since > at {
		return nil, invalid("since: revision %d is after revision %d of at", since, at)
	}
	flips, err := s.flips(ctx, req.Msg, q, since, at)
	if err != nil {
		return nil, callError(ctx, err)
	}
	outcome, err := s.auditor.Outcome(ctx, q, at)
	if err != nil {
		return nil, callError(ctx, err)
	}
	resp := &varvev1.BisectResponse{Since: uint64(since), At: uint64(at), Outcome: outcome.String()}
	for _, f := range flips {
		event, err := s.auditor.Event(ctx, f.Cause())
		if err != nil {
			return nil, callError(ctx, err)
		}
		resp.Flips = append(resp.Flips, flipProto(&f, &event))
	}
	return connect.NewResponse(resp), nil
}

// flips is all, the first or the last of the changes that a search is for.
func (s *Service) flips(ctx context.Context, req *varvev1.BisectRequest, q audit.Question, since, at log.Revision) ([]audit.Flip, error) {
	var flips []audit.Flip
	if req.All {
		return flips, s.auditor.Flips(ctx, q, since, at, func(f audit.Flip) error { flips = append(flips, f); return nil })
	}
	var one *audit.Flip
	var err error
	if req.Since == "" {
		one, err = s.auditor.LastFlip(ctx, q, at)
	} else {
		one, err = s.auditor.NextFlip(ctx, q, since, at)
	}
	if one != nil {
		flips = append(flips, *one)
	}
	return flips, err
}

// moment is the revision that a field names, and the time.
func (s *Service) moment(ctx context.Context, field, text string) (at log.Revision, askedNS int64, err error) {
	m, err := s.past.Resolve(ctx, text)
	if err != nil {
		return 0, 0, callError(ctx, fmt.Errorf("%s: %w", field, err))
	}
	return m.Revision, m.AskedNS, nil
}

func orNow(text string) string {
	if text == "" {
		return "now"
	}
	return text
}

func question(from, to, port string) (audit.Question, error) {
	if port == "" {
		return audit.Question{}, invalid("port: empty; give e.g. 80, 53/udp, http or 8/icmp")
	}
	p, err := audit.ParsePort(port)
	if err != nil {
		return audit.Question{}, invalid("%v", err)
	}
	return audit.Question{From: from, To: to, Port: p}, nil
}

func invalid(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// callError classifies what package audit and the records say.
func callError(ctx context.Context, err error) error {
	var corrupt *log.CorruptError
	code := connect.CodeInternal
	switch {
	case ctx.Err() != nil:
		code = connect.CodeCanceled
	case errors.Is(err, audit.ErrQuestion), errors.Is(err, past.ErrMoment):
		code = connect.CodeInvalidArgument
	case errors.Is(err, audit.ErrAbsent), errors.Is(err, audit.ErrNoRow), errors.Is(err, projections.ErrUnknownNode):
		code = connect.CodeNotFound
	case errors.Is(err, past.ErrFuture), errors.Is(err, log.ErrCompacted):
		code = connect.CodeOutOfRange
	case errors.As(err, &corrupt):
		code = connect.CodeDataLoss
	}
	return connect.NewError(code, err)
}
