package demo

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// watcher keeps what the agent's Monitor says, so that every verdict seen in the
// traffic can be put beside the datapath's own word for it.
type watcher struct {
	mu      sync.Mutex
	events  []*varvev1.DatapathEvent
	changed chan struct{} // closed and replaced at each event
	err     error
}

// startWatch follows the Monitor stream until ctx or the agent ends.
func (s *stage) startWatch(ctx context.Context) error {
	w := &watcher{changed: make(chan struct{})}
	s.watch = w
	s.spawn(func() {
		stream, err := s.client.Datapath.Monitor(ctx, connect.NewRequest(&varvev1.MonitorRequest{}))
		if err != nil {
			w.end(err)
			return
		}
		defer stream.Close()
		for stream.Receive() {
			w.add(stream.Msg())
		}
		w.end(stream.Err())
	})
	return w.awaitFirst(ctx, s)
}

// awaitFirst sends packets until the stream shows one: only then does nothing
// that follows escape it.
func (w *watcher) awaitFirst(ctx context.Context, s *stage) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	from, to := s.actors["intruder"], netip.AddrPortFrom(s.actors["batch"].addr[v4], 9)
	for {
		conn, err := from.space.DialUDP(ctx, to)
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte("are you watching?"))
		conn.Close()
		if err != nil {
			return err
		}
		w.mu.Lock()
		n, changed, ended := len(w.events), w.changed, w.err
		w.mu.Unlock()
		if n > 0 {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("monitor: no event of a packet that was sent: %w", cmp.Or(ended, ctx.Err()))
		}
	}
}

func (w *watcher) add(e *varvev1.DatapathEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *watcher) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = cmp.Or(err, fmt.Errorf("monitor: the stream ended"))
	close(w.changed)
	w.changed = make(chan struct{})
}

// now is a position in the stream, for find.
func (w *watcher) now() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.events)
}

// tuple is the packet that a verdict is about. A zero port is any.
type tuple struct {
	protocol string // TCP, UDP, ICMP, ICMPv6
	from, to netip.Addr
	fromPort uint16
	toPort   uint16
}

func (t tuple) matches(e *varvev1.DatapathEvent) bool {
	return strings.EqualFold(e.Protocol, t.protocol) &&
		sameAddr(e.Source, t.from) && sameAddr(e.Destination, t.to) &&
		(t.fromPort == 0 || e.SourcePort == uint32(t.fromPort)) &&
		(t.toPort == 0 || e.DestinationPort == uint32(t.toPort))
}

func sameAddr(text string, a netip.Addr) bool {
	b, err := netip.ParseAddr(text)
	return err == nil && b.Unmap() == a
}

// find waits up to limit for an event of a type about a tuple, at or after a
// position; nil if there is none.
func (w *watcher) find(ctx context.Context, after int, kind string, t tuple, limit time.Duration) *varvev1.DatapathEvent {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		w.mu.Lock()
		for _, e := range w.events[after:] {
			if e.Type == kind && t.matches(e) {
				w.mu.Unlock()
				return e
			}
		}
		after = len(w.events)
		changed := w.changed
		ended := w.err != nil
		w.mu.Unlock()
		if ended {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// why says in words what the datapath decided.
func why(e *varvev1.DatapathEvent) string {
	if e == nil {
		return "the datapath reported nothing"
	}
	by := strings.Join(e.Rules, ", ")
	switch {
	case e.Type == "drop" && by != "":
		return fmt.Sprintf("%s by %s", e.Reason, by)
	case e.Type == "drop":
		return fmt.Sprintf("%s at %s %s", e.Reason, cmp.Or(e.Endpoint, "an unknown endpoint"), e.Direction)
	case by != "":
		return "allowed by " + by
	default:
		return "no policy selects it"
	}
}
