package metrics

import (
	"bytes"
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

// keepRounds is how many ends of rounds are remembered for a follower that is
// behind. One that is further behind takes the oldest.
const keepRounds = 1024

// rounds remembers when revisions came into force.
type rounds struct {
	mu      sync.Mutex
	recent  []roundEnd    // ascending in both
	policy  log.Revision  // of the last policy change known to be in force
	changed chan struct{} // closed at the next end; nil if no one waits
}

type roundEnd struct {
	revision log.Revision
	at       time.Time
}

// ended notes that a revision is in force.
func (r *rounds) ended(revision log.Revision, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.recent); n > 0 && revision <= r.recent[n-1].revision {
		return
	}
	if len(r.recent) == keepRounds {
		copy(r.recent, r.recent[1:])
		r.recent = r.recent[:keepRounds-1]
	}
	r.recent = append(r.recent, roundEnd{revision, at})
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// wait returns when a revision came into force, once it has.
func (r *rounds) wait(ctx context.Context, revision log.Revision) (time.Time, error) {
	for {
		r.mu.Lock()
		if n := len(r.recent); n > 0 && r.recent[n-1].revision >= revision {
			i := n - 1
			for i > 0 && r.recent[i-1].revision >= revision {
				i--
			}
			at := r.recent[i].at
			r.mu.Unlock()
			return at, nil
		}
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}

func (r *rounds) notePolicy(revision log.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.policy = max(r.policy, revision)
}

func (r *rounds) policyRevision() log.Revision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.policy
}

// Subscriber is the log as Follow reads it; see log.Reader.
type Subscriber interface {
	Subscribe(ctx context.Context, after log.Revision, fn func(log.Record) error) error
}

// Follow observes the delay of every policy change until ctx ends, or the log
// does. view is any that holds the revision in force. It has a place of its own
// in the log and holds up nobody.
func (m *Metrics) Follow(ctx context.Context, l Subscriber, view fsm.View, inForce log.Revision) error {
	for p := range view.Policies() {
		if p.Revision <= inForce {
			m.rounds.notePolicy(p.Revision)
		}
	}
	return l.Subscribe(ctx, inForce, func(r log.Record) error {
		if r.Outcome != log.OutcomeApplied || !isPolicy(r.Event) {
			return nil
		}
		at, err := m.rounds.wait(ctx, r.Revision)
		if err != nil {
			return err
		}
		// Below 0 if the clock was set back since.
		m.policyDelay.Observe(max(at.Sub(time.Unix(0, r.TimeNS)).Seconds(), 0))
		m.rounds.notePolicy(r.Revision)
		return nil
	})
}

// streamField is the number of Event.stream.
const streamField = 5

// policyStream begins the name of every policy's stream.
var policyStream = []byte("policy/")

// isPolicy tells whether a stored event is about a policy, by its stream. It does
// not decode the rest, since Follow sees every event.
func isPolicy(event []byte) bool {
	for len(event) > 0 {
		field, kind, n := protowire.ConsumeTag(event)
		if n < 0 {
			return false
		}
		event = event[n:]
		if field == streamField && kind == protowire.BytesType {
			stream, n := protowire.ConsumeBytes(event)
			return n >= 0 && bytes.HasPrefix(stream, policyStream)
		}
		if n = protowire.ConsumeFieldValue(field, kind, event); n < 0 {
			return false
		}
		event = event[n:]
	}
	return false
}
