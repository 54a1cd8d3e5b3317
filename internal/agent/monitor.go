package agent

import (
	"context"
	"sync"

	"github.com/varve-net/varve/dataplane"
)

// monitorBuffer is how many events a caller of Monitor may fall behind.
const monitorBuffer = 4096

// monitor hands the events of the ring buffer to whoever listens. The reader of
// the ring buffer never waits for a listener: one that is too slow loses events
// and is told how many.
type monitor struct {
	mu        sync.Mutex
	listeners map[*listener]struct{}
}

type listener struct {
	events chan dataplane.Event
	lost   uint64 // guarded by monitor.mu
}

func newMonitor() *monitor {
	return &monitor{listeners: map[*listener]struct{}{}}
}

// publish gives one event to all listeners.
func (m *monitor) publish(e dataplane.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for l := range m.listeners {
		select {
		case l.events <- e:
		default:
			l.lost++
		}
	}
	return nil
}

// Subscribe implements apiserver.Monitor.
func (m *monitor) Subscribe(ctx context.Context, fn func(dataplane.Event, uint64) error) error {
	l := &listener{events: make(chan dataplane.Event, monitorBuffer)}
	m.mu.Lock()
	m.listeners[l] = struct{}{}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.listeners, l)
		m.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-l.events:
			m.mu.Lock()
			lost := l.lost
			l.lost = 0
			m.mu.Unlock()
			if err := fn(e, lost); err != nil {
				return err
			}
		}
	}
}
