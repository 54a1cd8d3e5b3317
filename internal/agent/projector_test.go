package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/projections"
)

func TestProjectorFollowsTheLog(t *testing.T) {
	n := newNode(t)
	var broken atomic.Bool
	p := newProjector(n.cfg.Node, n.log, func(context.Context, *projections.Tables, projections.Delta) (dataplane.Stats, error) {
		if broken.Load() {
			return dataplane.Stats{}, errors.New("map policy is full")
		}
		return dataplane.Stats{}, nil
	}, n.cfg.Logger)
	n.eps.wait = p.Wait
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- p.run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()

	ep, _ := n.add(t, request("web"))
	if p.Current().Revision < ep.Revision || p.Err() != nil {
		t.Fatalf("in force: %d, %v", p.Current().Revision, p.Err())
	}

	broken.Store(true)
	rev, err := n.facts.append(t.Context(), tester, joined("192.0.2.9"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context(), rev); err == nil || p.Err() == nil {
		t.Fatal("a failed round is not told to who waits for it")
	}
	before := p.Current()
	if before.Revision >= rev {
		t.Error("tables that were not written are said to be in force")
	}
	broken.Store(false)
	ctx2, cancel2 := context.WithTimeout(t.Context(), time.Minute)
	defer cancel2()
	for p.Current().Revision < rev {
		select {
		case <-ctx2.Done():
			t.Fatal("a failed round was not tried again")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestHoldKeepsRoundsAway(t *testing.T) {
	n := newNode(t)
	p := newProjector(n.cfg.Node, n.log, func(context.Context, *projections.Tables, projections.Delta) (dataplane.Stats, error) {
		return dataplane.Stats{}, nil
	}, n.cfg.Logger)
	if _, err := p.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	if err := p.Hold(t.Context(), func(view fsm.View, tables *projections.Tables) error {
		if view.Revision() != tables.Revision {
			t.Errorf("view of revision %d with tables of %d", view.Revision(), tables.Revision)
		}
		if _, err := n.facts.append(t.Context(), tester, joined("192.0.2.9")); err != nil {
			return err
		}
		go func() {
			defer close(done)
			_, _ = p.round(context.Background())
		}()
		if p.Current() != tables {
			t.Error("a round ran while held")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	<-done
	if p.Current().Revision != n.log.View().Revision() {
		t.Error("the round did not run afterwards")
	}
}

func TestMonitorTellsWhatAListenerMissed(t *testing.T) {
	m := newMonitor()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	entered, proceed := make(chan struct{}), make(chan struct{})
	var got int
	var lost uint64
	ended := make(chan error, 1)
	go func() {
		ended <- m.Subscribe(ctx, func(_ dataplane.Event, l uint64) error {
			if got++; got == 1 {
				close(entered)
				<-proceed
			}
			if lost += l; got == monitorBuffer+1 {
				return errors.New("enough")
			}
			return nil
		})
	}()
	listening := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.listeners) > 0
	}
	for !listening() {
		<-time.After(time.Millisecond)
	}
	publish := func(count int) {
		for range count {
			if err := m.publish(dataplane.Event{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(1)
	<-entered
	publish(monitorBuffer + 5) // the listener is busy: five do not fit
	close(proceed)
	if err := <-ended; err == nil || err.Error() != "enough" {
		t.Fatal(err)
	}
	if lost != 5 {
		t.Errorf("told of %d lost events, want 5", lost)
	}
	publish(1) // nobody listens any more
}
