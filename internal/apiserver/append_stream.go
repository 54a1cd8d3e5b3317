package apiserver

import (
	"context"
	"errors"
	"io"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log"
)

const (
	// streamWindowBytes and streamWindowGroups bound what one stream may have on its
	// way to the log. A group may be larger than the window: then it is alone.
	streamWindowBytes  = 8 << 20
	streamWindowGroups = 8192
	// groupBytes is what a group costs beside its events' bytes.
	groupBytes = 256
)

// underway is a group of a stream that has no answer yet.
type underway struct {
	pending log.Pending // nil if err is set
	err     error
	bytes   int64
}

// errStopping ends the streams of a server that stops. What had no answer yet may or
// may not have been recorded.
var errStopping = connect.NewError(connect.CodeUnavailable, errors.New("the agent stops; connect again"))

// AppendStream reads and proposes in one goroutine and answers in another. It ends
// with the server, too: then the goroutine that reads ends once it has returned.
func (s logService) AppendStream(ctx context.Context, stream *connect.BidiStream[varvev1.AppendStreamRequest, varvev1.AppendStreamResponse]) error {
	window := semaphore.NewWeighted(streamWindowBytes)
	groups := make(chan underway, streamWindowGroups)
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return answerGroups(ctx, stream, groups, window) })
	read := make(chan error, 1)
	go func() {
		defer close(groups)
		read <- s.readGroups(ctx, stream, groups, window)
	}()
	var err error
	select {
	case err = <-read:
	case <-ctx.Done():
		err = errStopping
	}
	if werr := work.Wait(); werr != nil && !errors.Is(werr, context.Canceled) {
		return werr
	}
	return err
}

func (s logService) readGroups(ctx context.Context, stream *connect.BidiStream[varvev1.AppendStreamRequest, varvev1.AppendStreamResponse], groups chan<- underway, window *semaphore.Weighted) error {
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, group := range msg.Groups {
			u := underway{bytes: min(int64(group.SizeVT())+groupBytes, streamWindowBytes)}
			if err := window.Acquire(ctx, u.bytes); err != nil {
				return err
			}
			u.pending, u.err = s.propose(ctx, group)
			select {
			case groups <- u:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func (s logService) propose(ctx context.Context, group *varvev1.AppendRequest) (log.Pending, error) {
	events, err := s.group(ctx, group)
	if err != nil {
		return nil, err
	}
	p, err := s.Log.Propose(ctx, events...)
	if err != nil {
		return nil, appendError(err)
	}
	return p, nil
}

// answerGroups sends the answers in order, all that are there in one message.
func answerGroups(ctx context.Context, stream *connect.BidiStream[varvev1.AppendStreamRequest, varvev1.AppendStreamResponse], groups <-chan underway, window *semaphore.Weighted) error {
	var next underway
	more, drained := true, true
	for {
		if drained {
			select {
			case next, more = <-groups:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if !more {
			return nil
		}
		resp := &varvev1.AppendStreamResponse{}
		drained = false
		for {
			answer, err := next.answer(ctx)
			if err != nil {
				return err
			}
			resp.Answers = append(resp.Answers, answer)
			window.Release(next.bytes)
			select {
			case next, more = <-groups:
				if more && next.ready() {
					continue
				}
			default:
				drained = true
			}
			break
		}
		// What is known goes out before the wait for more.
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (u underway) ready() bool { return u.err != nil || u.pending.Ready() }

// answer waits for the group. An error is the stream's own end.
func (u underway) answer(ctx context.Context) (*varvev1.AppendAnswer, error) {
	err := u.err
	if err == nil {
		var results []log.Result
		if results, err = u.pending.Wait(ctx); err == nil {
			answer := &varvev1.AppendAnswer{}
			answer.Results, answer.Head = resultsProto(results)
			return answer, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		err = appendError(err)
	}
	out := &varvev1.AppendError{Code: uint32(connect.CodeOf(err)), Message: strings.ToValidUTF8(message(err), "\uFFFD")}
	if ce := asConnect(err); ce != nil {
		for _, d := range ce.Details() {
			if m, derr := d.Value(); derr == nil {
				if pe, ok := m.(*varvev1.PolicyError); ok {
					out.PolicyErrors = append(out.PolicyErrors, pe)
				}
			}
		}
	}
	return &varvev1.AppendAnswer{Error: out}, nil
}
