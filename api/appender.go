package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

// appenderWindow is how many groups of an Appender wait for their answers at most.
// With 256 bytes an event that fills a Raft entry and the one gathering behind it.
const appenderWindow = 4096

// maxStreamMessage bounds the bytes of events that share one message of a stream.
const maxStreamMessage = 1 << 20

// ErrAppenderClosed is returned for a group given to an Appender after Close.
var ErrAppenderClosed = errors.New("appender is closed")

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
	group  *varvev1.AppendRequest
	size   int
	done   chan struct{}
	answer *varvev1.AppendAnswer
	err    error
}

// NewAppender opens a stream. It lives until Close, or until ctx ends.
func (c *Client) NewAppender(ctx context.Context) *Appender {
	ctx, cancel := context.WithCancel(ctx)
	a := &Appender{
		stream: c.Log.AppendStream(ctx),
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
// while too many groups have none. The events must not be changed until the
// answer is there.
func (a *Appender) Begin(ctx context.Context, events ...*eventpb.Event) (*PendingAppend, error) {
	select {
	case a.window <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-a.ended:
	}
	p := &PendingAppend{group: &varvev1.AppendRequest{Events: events}, done: make(chan struct{})}
	p.size = p.group.SizeVT()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return nil, ErrAppenderClosed
	case a.cause != nil:
		return nil, fmt.Errorf("append stream ended: %w", a.cause)
	}
	a.send = append(a.send, p)
	a.notify()
	return p, nil
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

// take moves groups from send to sent: those of the next message.
func (a *Appender) take() (msg *varvev1.AppendStreamRequest, closed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.send) == 0 {
		return nil, a.closed
	}
	n, size := 0, 0
	for n < len(a.send) && (n == 0 || size+a.send[n].size <= maxStreamMessage) {
		size += a.send[n].size
		n++
	}
	msg = &varvev1.AppendStreamRequest{Groups: make([]*varvev1.AppendRequest, n)}
	for i, p := range a.send[:n] {
		msg.Groups[i] = p.group
	}
	a.sent = append(a.sent, a.send[:n]...)
	left := copy(a.send, a.send[n:])
	clear(a.send[left:])
	a.send = a.send[:left]
	return msg, false
}

// write sends until Close or until the stream breaks, which read finds out.
func (a *Appender) write() {
	for {
		msg, closed := a.take()
		if msg == nil {
			if closed {
				_ = a.stream.CloseRequest()
				return
			}
			select {
			case <-a.wake:
			case <-a.ended:
				return
			}
			continue
		}
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
	for _, p := range append(a.sent, a.send...) {
		p.err = fmt.Errorf("append stream ended before the answer: %w", cause)
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
