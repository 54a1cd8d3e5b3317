package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/keeper"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/history"
	"github.com/varve-net/varve/log/raftlog"
)

// kept is a log without Raft: the keeper's view of a history.
type kept struct {
	*history.History
	view fsm.View
}

func (k *kept) View() fsm.View                 { return k.view }
func (k *kept) Changed() <-chan struct{}       { return nil }
func (k *kept) Snapshot(context.Context) error { return nil }
func (k *kept) CheckSpace() error              { return nil }
func (k *kept) Sparing(w io.Writer) io.Writer  { return w }

// keptLog names the history as keeper.Log wants it.
type keptLog struct{ *kept }

func (k keptLog) History() *history.History { return k.kept.History }

// madeHistory is what it took to make one.
type madeHistory struct {
	state              *fsm.State
	apply, write, keep time.Duration
	plain              int64 // bytes, as appended
}

// batchEvents are appended together, logEvents to measure what an append costs.
const (
	batchEvents = 256
	logEvents   = 100_000
)

// makeHistory appends a mix as an agent does, in batches and with a keeper beside, and
// notes the state's digests at the revisions that are asked for.
func makeHistory(ctx context.Context, h *history.History, m mix.Mix, digests map[log.Revision]log.Hash) (*madeHistory, error) {
	r := &madeHistory{state: fsm.New(m.Cluster)}
	log0 := keptLog{&kept{History: h}}
	k := keeper.New(keeper.Config{
		Log: log0, Past: past.New(past.Config{Log: past.Kept{History: h}, Cluster: m.Cluster, Checkpoints: h}), Logger: slog.New(slog.DiscardHandler),
	})
	var batch []log.Record
	for event, err := range m.All() {
		if err != nil {
			return nil, err
		}
		began := time.Now()
		record, _, err := r.state.Apply(event)
		r.apply += time.Since(began)
		if err != nil {
			return nil, err
		}
		r.plain += int64(61 + len(record.Event) + len(record.Chain))
		if _, asked := digests[record.Revision]; asked {
			digests[record.Revision] = r.state.View().Digest()
		}
		if batch = append(batch, record); len(batch) < batchEvents && int(record.Revision) < m.Events {
			continue
		}
		began = time.Now()
		if err := h.Append(batch); err != nil {
			return nil, err
		}
		r.write += time.Since(began)
		batch = batch[:0]
		log0.view = r.state.View()
		began = time.Now()
		if err := k.Due(ctx); err != nil {
			return nil, err
		}
		r.keep += time.Since(began)
	}
	began := time.Now()
	err := h.Sync()
	r.write += time.Since(began)
	return r, err
}

// appendAll appends a mix to a log of its own, all of which an agent's appends go
// through but the API, and returns microseconds an event.
func appendAll(ctx context.Context, dir string, m mix.Mix) (float64, error) {
	id := cluster.Identity{Cluster: m.Cluster, Node: mix.Node(0), ServerID: "bench"}
	l, err := raftlog.Open(ctx, raftlog.Config{Dir: dir, Cluster: m.Cluster, Raft: cluster.RaftConfig(id)})
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	var took time.Duration
	var batch []*eventpb.Event
	n := 0
	for event, err := range m.From(0) {
		if err != nil {
			return 0, err
		}
		if n++; len(batch) < batchEvents-1 && n < m.Events {
			batch = append(batch, event)
			continue
		}
		began := time.Now()
		_, err := l.Append(ctx, append(batch, event)...)
		took += time.Since(began)
		if err != nil {
			return 0, errors.Join(err, l.Close(ctx))
		}
		batch = batch[:0]
	}
	return float64(took.Microseconds()) / float64(m.Events), l.Close(ctx)
}
