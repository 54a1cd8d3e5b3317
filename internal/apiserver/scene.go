package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// scene is the state that a request is about: the present one, or one of the past.
type scene struct {
	s    *Server
	view fsm.View
	at   *varvev1.Moment // of the past; nil: the present
	// askedNS is the time that was asked about, which of the past may be later than the
	// revision's.
	askedNS int64
}

// scene finds the state at a moment that a request names; "" is the present, which
// of an archive is its newest revision.
func (s *Server) scene(ctx context.Context, at string) (*scene, error) {
	if at == "" && !s.Archive {
		return &scene{s: s, view: s.Log.View(), askedNS: time.Now().UnixNano()}, nil
	}
	if at == "" {
		at = "now"
	}
	moment, err := s.Past.Resolve(ctx, at)
	if err != nil {
		return nil, pastError(ctx, fmt.Errorf("at: %w", err))
	}
	view, err := s.Past.View(ctx, moment.Revision)
	if err != nil {
		return nil, pastError(ctx, fmt.Errorf("at: %w", err))
	}
	return &scene{s: s, view: view, at: &varvev1.Moment{Revision: uint64(moment.Revision), TimeUnixNs: moment.TimeNS}, askedNS: moment.AskedNS}, nil
}

// present tells whether the scene is the node as it runs now.
func (c *scene) present() bool { return c.at == nil }

// then says of when an answer is, for the end of a sentence.
func (c *scene) then() string {
	if c.present() {
		return ""
	}
	return fmt.Sprintf(" at revision %d", c.view.Revision())
}

// only is the endpoint to which an answer is limited, by [NAMESPACE/]NAME; nil, no limit,
// if that is empty.
func (c *scene) only(name string) (*fsm.Endpoint, error) {
	if name == "" {
		return nil, nil
	}
	namespace, short, ok := strings.Cut(name, "/")
	if !ok {
		namespace, short = defaultNamespace, name
	}
	ref := fsm.EndpointRef{Namespace: namespace, Name: short}
	e, ok := c.view.Endpoint(ref)
	if !ok {
		return nil, notFound("endpoint %s does not exist%s; `varve endpoint list` shows what does", endpointName(ref), c.then())
	}
	return e, nil
}

// tables are this node's in the scene; nil if it has none.
func (c *scene) tables(ctx context.Context) (*projections.Tables, error) {
	if c.present() {
		return c.s.Projector.Current(), nil
	}
	t, err := c.s.Past.Tables(ctx, c.view.Revision(), c.s.Node)
	if errors.Is(err, projections.ErrUnknownNode) {
		return nil, nil
	}
	return t, pastError(ctx, err)
}

// pastError classifies what the past has to say.
func pastError(ctx context.Context, err error) error {
	var corrupt *log.CorruptError
	code := connect.CodeInternal
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		code = connect.CodeCanceled
	case errors.Is(err, past.ErrMoment):
		code = connect.CodeInvalidArgument
	case errors.Is(err, past.ErrFuture), errors.Is(err, log.ErrCompacted):
		code = connect.CodeOutOfRange
	case errors.Is(err, projections.ErrUnknownNode):
		code = connect.CodeNotFound
	case errors.As(err, &corrupt):
		code = connect.CodeDataLoss
	}
	return connect.NewError(code, err)
}
