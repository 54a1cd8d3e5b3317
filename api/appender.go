package api

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/log/eventpb"
)

// appenderWindow is how many groups of an Appender wait for their answers at most.
// With 256 bytes an event that fills a Raft entry and the one gathering behind it.
const appenderWindow = 4096

// maxStreamMessage bounds the bytes of events that share one message of a stream.
const maxStreamMessage = 1 << 20

// ErrAppenderClosed is returned for a group given to an Appender after Close.
var ErrAppenderClosed = errors.New("appender is closed")

// errNotSent is of a group that never left for the agent.
var errNotSent = errors.New("not sent")

// Appender appends over one stream (LogService.AppendStream): groups are sent
// without waiting for the answers to those before, and many share a message. It
// is safe for concurrent use. Groups get their revisions in the order in which
// Begin took them, and their answers come in that order.
type Appender struct {
	stream *connect.BidiStreamForClient[varvev1.AppendStreamRequest, varvev1.AppendStreamResponse]
	window chan struct{} // a token for each group without an answer
	ended  chan struct{} // closed once no answer will come any more
	cancel context.CancelFunc

	mu     sync.Mutex
	send   []*PendingAppend // not yet sent
	sent   []*PendingAppend // without an answer; the reader takes them from the front
	closed bool
	cause  error         // why the stream ended
	wake   chan struct{} // of capacity 1: send is not empty, or closed is set
}

// PendingAppend is a group on its way.
type PendingAppend struct {
	group  []byte // as a field of AppendStreamRequest; nil once it was taken
	done   chan struct{}
	answer *varvev1.AppendAnswer
	err    error
}

// NewAppender opens a stream. It lives until Close, or until ctx ends.
func (c *Client) NewAppender(ctx context.Context) *Appender { return newAppender(ctx, c.Log) }

func newAppender(ctx context.Context, service varvev1connect.LogServiceClient) *Appender {
	ctx, cancel := context.WithCancel(ctx)
	a := &Appender{
		stream: service.AppendStream(ctx),
		window: make(chan struct{}, appenderWindow),
		ended:  make(chan struct{}),
		wake:   make(chan struct{}, 1),
		cancel: cancel,
	}
	go a.write()
	go a.read()
	return a
}

// Append appends one atomic group and waits for its answer: a result for each
// event. Other goroutines' groups share the stream meanwhile. The error is a
// *connect.Error as of LogService.Append.
func (a *Appender) Append(ctx context.Context, events ...*eventpb.Event) (*varvev1.AppendAnswer, error) {
	p, err := a.Begin(ctx, events...)
	if err != nil {
		return nil, err
	}
	return p.Wait(ctx)
}

// Begin sends one atomic group and does not wait for its answer. It waits only
// while too many groups have none.
func (a *Appender) Begin(ctx context.Context, events ...*eventpb.Event) (*PendingAppend, error) {
	return a.begin(ctx, &varvev1.AppendRequest{Events: events})
}

// begin encodes the group here, so that many callers share the work and the group
// is theirs again when it returns.
func (a *Appender) begin(ctx context.Context, group *varvev1.AppendRequest) (*PendingAppend, error) {
	p := &PendingAppend{done: make(chan struct{})}
	var err error
	if p.group, err = asField(group); err != nil {
		return nil, err
	}
	select {
	case a.window <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-a.ended:
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return nil, fmt.Errorf("%w: %w", ErrAppenderClosed, errNotSent)
	case a.cause != nil:
		return nil, fmt.Errorf("append stream ended: %w: %w", errNotSent, a.cause)
	}
	a.send = append(a.send, p)
	a.notify()
	return p, nil
}

// fieldGroups is AppendStreamRequest.groups.
const fieldGroups = 1

// asField encodes a group as it stands in an AppendStreamRequest.
func asField(group *varvev1.AppendRequest) ([]byte, error) {
	size := group.SizeVT()
	b := protowire.AppendTag(make([]byte, 0, size+2*binary.MaxVarintLen32), fieldGroups, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	n, err := group.MarshalToSizedBufferVT(b[len(b) : len(b)+size])
	return b[:len(b)+n], err
}

// Wait returns the answer to a group. When ctx ends first, or the stream broke,
// the group may or may not have been recorded: repeat it with the same request
// ids.
func (p *PendingAppend) Wait(ctx context.Context) (*varvev1.AppendAnswer, error) {
	select {
	case <-p.done:
		return p.answer, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close sends what is left, waits for all answers and ends the stream. Its error
// is why the stream broke, or ctx's.
func (a *Appender) Close(ctx context.Context) error {
	defer a.cancel()
	a.mu.Lock()
	a.closed = true
	a.notify()
	a.mu.Unlock()
	select {
	case <-a.ended:
		if err := a.why(); !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// over tells whether the stream has ended.
func (a *Appender) over() bool { return a.why() != nil }

func (a *Appender) why() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause
}

func (a *Appender) notify() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// take moves groups from send to sent and appends their bytes to b: those of the
// next message, none if nothing waits.
func (a *Appender) take(b []byte) (groups []byte, closed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for n < len(a.send) && (n == 0 || len(b)+len(a.send[n].group) <= maxStreamMessage) {
		b = append(b, a.send[n].group...)
		a.send[n].group = nil
		n++
	}
	a.sent = append(a.sent, a.send[:n]...)
	left := copy(a.send, a.send[n:])
	clear(a.send[left:])
	a.send = a.send[:left]
	return b, a.closed
}

// write sends until Close or until the stream breaks, which read finds out.
func (a *Appender) write() {
	var groups []byte
	for {
		var closed bool
		if groups, closed = a.take(groups[:0]); len(groups) == 0 {
			if closed {
				_ = a.stream.CloseRequest()
				return
			}
			select {
			case <-a.wake:
			case <-a.ended:
				return
			}
			// An answer wakes many callers at once. Without this the first of them
			// would wake this goroutine, which runs next, and each group would have a
			// message of its own.
			runtime.Gosched()
			continue
		}
		msg := new(varvev1.AppendStreamRequest)
		msg.ProtoReflect().SetUnknown(groups) // encoded as they are: what is sent is the field
		if a.stream.Send(msg) != nil {
			return
		}
	}
}

// read gives the answers to their groups.
func (a *Appender) read() {
	var cause error
	for cause == nil {
		resp, err := a.stream.Receive()
		if err != nil {
			cause = err
			break
		}
		for _, answer := range resp.Answers {
			if cause = a.answered(answer); cause != nil {
				break
			}
		}
	}
	a.end(cause)
	a.cancel()
	_ = a.stream.CloseResponse()
}

func (a *Appender) answered(answer *varvev1.AppendAnswer) error {
	a.mu.Lock()
	if len(a.sent) == 0 {
		a.mu.Unlock()
		return connect.NewError(connect.CodeInternal, errors.New("append stream: an answer to no group"))
	}
	p := a.sent[0]
	a.sent[0] = nil
	a.sent = a.sent[1:]
	a.mu.Unlock()
	if e := answer.Error; e != nil {
		p.err = answerError(e)
	} else {
		p.answer = answer
	}
	close(p.done)
	<-a.window
	return nil
}

// end fails every group that has no answer.
func (a *Appender) end(cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cause = cause
	for _, p := range a.sent {
		p.err = fmt.Errorf("append stream ended before the answer: %w", cause)
		close(p.done)
	}
	for _, p := range a.send {
		p.err = fmt.Errorf("append stream ended: %w: %w", errNotSent, cause)
		close(p.done)
	}
	a.sent, a.send = nil, nil
	close(a.ended)
}

// answerError is the error that Append would have returned.
func answerError(e *varvev1.AppendError) error {
	err := connect.NewError(connect.Code(e.Code), errors.New(e.Message))
	for _, pe := range e.PolicyErrors {
		if d, derr := connect.NewErrorDetail(pe); derr == nil {
			err.AddDetail(d)
		}
	}
	return err
}
