package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// factTimeout bounds the append of one fact. It does not end with the request
// that caused it: what was done to the machine is to be in the log.
const factTimeout = 30 * time.Second

// facts appends what this node, and nobody else, knows: its own address ranges
// and its endpoints. Facts have one writer and are numbered; Apply ignores a
// number it has seen. So they go one at a time: were two on their way at once,
// the later number could arrive first and the other be ignored.
type facts struct {
	log     log.Appender
	view    func() fsm.View
	cluster string
	node    string

	mu sync.Mutex
}

// append adds one fact, and says at which revision it was applied. The error
// tells why the state refused it.
func (f *facts) append(ctx context.Context, actor apiserver.Actor, e *eventpb.Event) (log.Revision, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), factTimeout)
	defer cancel()
	e.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: actor.Name}
	e.Origin = &eventpb.Origin{Cluster: f.cluster, Node: f.node}
	stream, err := log.StreamOf(e)
	if err != nil {
		return 0, err
	}
	e.Stream = stream

	f.mu.Lock()
	defer f.mu.Unlock()
	seq := f.seen()
	for {
		seq = max(seq, f.seen()) + 1
		e.JournalSeq = seq
		results, err := f.log.Append(ctx, e)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", stream, err)
		}
		switch r := results[0]; r.Outcome {
		case log.OutcomeApplied:
			return r.Revision, nil
		case log.OutcomeRepeat:
			// An append that had been given up on was committed after all and
			// took the number; this fact had no effect and gets the next one.
			continue
		default:
			return 0, fmt.Errorf("%s: %s", stream, r.Reason)
		}
	}
}

// seen is the highest number of this node's facts in the state.
func (f *facts) seen() uint64 {
	if n, ok := f.view().Node(f.node); ok {
		return n.JournalSeq
	}
	return 0
}
