package api_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

// appends counts how groups come to the fake, and answers each by its request id:
// a number is its revision, "refuse" an error, "break" ends the stream without
// an answer, "wait" is answered when released is closed.
type appends struct {
	calls, streams, groups atomic.Int64
	released               chan struct{}
}

func newAppends() *appends { return &appends{released: make(chan struct{})} }

var errBreak = connect.NewError(connect.CodeUnavailable, errors.New("broken"))

func (a *appends) answer(req *varvev1.AppendRequest) (*varvev1.AppendAnswer, error) {
	switch id := req.Events[0].RequestId; id {
	case "refuse":
		return &varvev1.AppendAnswer{Error: &varvev1.AppendError{Code: uint32(connect.CodeInvalidArgument), Message: "refused"}}, nil
	case "break":
		return nil, errBreak
	case "wait":
		<-a.released
		return &varvev1.AppendAnswer{}, nil
	default:
		n, err := strconv.ParseUint(id, 10, 64)
		return &varvev1.AppendAnswer{Results: []*varvev1.AppendResult{{Revision: n}}, Head: n}, err
	}
}

func (l fakeLog) Append(_ context.Context, req *connect.Request[varvev1.AppendRequest]) (*connect.Response[varvev1.AppendResponse], error) {
	l.calls.Add(1)
	answer, err := l.answer(req.Msg)
	if err != nil {
		return nil, err
	}
	if e := answer.Error; e != nil {
		return nil, connect.NewError(connect.Code(e.Code), errors.New(e.Message))
	}
	return connect.NewResponse(&varvev1.AppendResponse{Results: answer.Results, Head: answer.Head}), nil
}

func (l fakeLog) AppendStream(_ context.Context, stream *connect.BidiStream[varvev1.AppendStreamRequest, varvev1.AppendStreamResponse]) error {
	l.streams.Add(1)
	for {
		req, err := stream.Receive()
		if err != nil {
			return nil // the client has ended it
		}
		resp := &varvev1.AppendStreamResponse{}
		for _, g := range req.Groups {
			l.groups.Add(1)
			answer, err := l.answer(g)
			if err != nil {
				return err
			}
			resp.Answers = append(resp.Answers, answer)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func appendID(ctx context.Context, c *api.Client, id string) (uint64, error) {
	resp, err := c.Log.Append(ctx, connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{{RequestId: id}}}))
	if err != nil {
		return 0, err
	}
	return resp.Msg.Head, nil
}

// holdOne keeps a call under way, so that the ones after it are not alone; it goes
// the way of a call that is alone.
func holdOne(t *testing.T, c *api.Client, a *appends) (release func()) {
	t.Helper()
	var wait sync.WaitGroup
	wait.Go(func() {
		if _, err := appendID(context.Background(), c, "wait"); err != nil {
			t.Errorf("the call that waits: %v", err)
		}
	})
	for a.calls.Load() == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the call that waits does not arrive")
		}
	}
	return func() {
		close(a.released)
		wait.Wait()
	}
}

func newAppendClient(t *testing.T, a *appends, opts ...api.Option) *api.Client {
	t.Helper()
	socket, stop := serveFake(fakeLog{appends: a})
	t.Cleanup(stop)
	c, err := api.New(socket, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestACallAloneIsMadeAsItIs(t *testing.T) {
	a := newAppends()
	c := newAppendClient(t, a)
	for i := range 3 {
		if got, err := appendID(t.Context(), c, fmt.Sprint(i)); err != nil || got != uint64(i) {
			t.Errorf("%d, %v", got, err)
		}
	}
	if a.calls.Load() != 3 || a.streams.Load() != 0 {
		t.Errorf("%d calls, %d streams", a.calls.Load(), a.streams.Load())
	}
}

// Calls at the same time share one stream, and each gets its own answer or error.
func TestCallsAtTheSameTimeShareAStream(t *testing.T) {
	a := newAppends()
	c := newAppendClient(t, a)
	release := holdOne(t, c, a)
	var wait sync.WaitGroup
	for i := range 200 {
		wait.Go(func() {
			id := fmt.Sprint(i)
			if i%10 == 0 {
				id = "refuse"
			}
			got, err := appendID(t.Context(), c, id)
			switch {
			case i%10 == 0 && (connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "refused")):
				t.Errorf("%d: %v", i, err)
			case i%10 != 0 && (err != nil || got != uint64(i)):
				t.Errorf("%d: %d, %v", i, got, err)
			}
		})
	}
	wait.Wait()
	release()
	if a.calls.Load() != 1 || a.streams.Load() != 1 || a.groups.Load() != 200 {
		t.Errorf("%d calls, %d streams with %d groups; want 1, 1 with 200", a.calls.Load(), a.streams.Load(), a.groups.Load())
	}
}

func TestWhatIsNotShared(t *testing.T) {
	large := connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{{RequestId: "7", Stream: strings.Repeat("x", 100<<10)}}})
	withHeader := connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{{RequestId: "7"}}})
	withHeader.Header().Set("Traceparent", "x")
	plain := func() *connect.Request[varvev1.AppendRequest] {
		return connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{{RequestId: "7"}}})
	}
	seen := 0
	interceptor := connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			if r.Any().(*varvev1.AppendRequest).Events[0].RequestId == "7" {
				seen++
			}
			return next(ctx, r)
		}
	})
	for name, tt := range map[string]struct {
		req  *connect.Request[varvev1.AppendRequest]
		opts []api.Option
	}{
		"large":            {req: large},
		"with a header":    {req: withHeader},
		"unary":            {req: plain(), opts: []api.Option{api.WithUnaryAppends()}},
		"an interceptor's": {req: plain(), opts: []api.Option{api.WithConnect(connect.WithInterceptors(interceptor))}},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAppends()
			c := newAppendClient(t, a, tt.opts...)
			release := holdOne(t, c, a)
			if resp, err := c.Log.Append(t.Context(), tt.req); err != nil || resp.Msg.Head != 7 {
				t.Errorf("%v, %v", resp, err)
			}
			release()
			if a.calls.Load() != 2 || a.streams.Load() != 0 {
				t.Errorf("%d calls, %d streams", a.calls.Load(), a.streams.Load())
			}
		})
	}
	if seen != 1 {
		t.Errorf("the interceptor saw the call %d times", seen)
	}
}

func TestASharedStreamThatBreaks(t *testing.T) {
	a := newAppends()
	c := newAppendClient(t, a)
	release := holdOne(t, c, a)
	defer release()
	for range 3 {
		if _, err := appendID(t.Context(), c, "break"); connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "before the answer") {
			t.Errorf("the call that may or may not have been recorded: %v", err)
		}
		if got, err := appendID(t.Context(), c, "5"); err != nil || got != 5 {
			t.Errorf("the call after it: %d, %v", got, err)
		}
	}
}

// A caller that gives up gets its context's error, and nobody else does.
func TestASharedCallEndsWithItsContext(t *testing.T) {
	a := newAppends()
	c := newAppendClient(t, a)
	release := holdOne(t, c, a)
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() {
		if _, err := appendID(ctx, c, "wait"); connect.CodeOf(err) != connect.CodeCanceled {
			t.Errorf("given up: %v", err)
		}
	})
	for a.groups.Load() == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the group does not arrive")
		}
	}
	cancel()
	wait.Wait()
	wait.Go(func() {
		if got, err := appendID(t.Context(), c, "9"); err != nil || got != 9 {
			t.Errorf("the next one: %d, %v", got, err)
		}
	})
	release()
	wait.Wait()
}
