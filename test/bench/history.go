package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/keeper"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// History is what a process that kept a history and asked it measured.
type History struct {
	PlainBytes, PackedBytes, CheckpointBytes float64 // an event
	AppendMicros, KeepMicros, ApplyMicros    float64 // an event
	VerifySeconds                            float64 // records, checkpoints and replay
	Bytes                                    int64   // that were verified
	ColdMillis, NearMillis, ColdMost         float64
}

// runHistory lets processes of their own keep a history of the standard mix as an
// agent does, and ask it for revisions here and there.
func runHistory(ctx context.Context, p *plan, out sink) error {
	of := fmt.Sprintf("%d events", p.replay)
	for round := range p.rounds {
		var h History
		dir := filepath.Join(p.dir, "history")
		if err := runSelf(ctx, &h, "history", "-dir", dir, "-events", fmt.Sprint(p.replay), "-seed", fmt.Sprint(round)); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		out.add("bytes an event", of, "as appended", h.PlainBytes)
		out.add("bytes an event", of, "packed", h.PackedBytes)
		out.add("bytes an event", of, "checkpoints", h.CheckpointBytes)
		out.add("us an event", of, "apply to the state", h.ApplyMicros)
		out.add("us an event", of, "append to history", h.AppendMicros)
		out.add("us an event", of, "pack and checkpoint, beside appends", h.KeepMicros)
		out.add("a moment of the past, ms", of, "cold", h.ColdMillis)
		out.add("a moment of the past, ms", of, "cold, the slowest of 10", h.ColdMost)
		out.add("a moment of the past, ms", of, "a neighbour", h.NearMillis)
		out.add("verify", of, "events/s", float64(p.replay)/h.VerifySeconds)
		out.add("verify", of, "MB/s of files", float64(h.Bytes)/1e6/h.VerifySeconds)
		p.say("history: round %d of %d", round+1, p.rounds)
	}
	return nil
}

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

func historyCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("history", flag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("dir", "", "directory to make")
	events := fs.Int("events", 0, "events in it")
	seed := fs.Uint64("seed", 0, "of the revisions asked for")
	if err := fs.Parse(args); err != nil {
		return err
	}
	h, err := history.Open(*dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	r, err := measureHistory(ctx, h, *events, *seed)
	if err = errors.Join(err, h.Close()); err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(r)
}

func measureHistory(ctx context.Context, h *history.History, events int, seed uint64) (*History, error) {
	r := &History{}
	m := mix.Whole(events)
	log0 := keptLog{&kept{History: h}}
	of := func() *past.Past {
		return past.New(past.Config{Log: past.Kept{History: h}, Cluster: m.Cluster, Checkpoints: h})
	}
	k := keeper.New(keeper.Config{Log: log0, Past: of(), Logger: slog.New(slog.DiscardHandler)})

	state := fsm.New(m.Cluster)
	var apply, write, keep time.Duration
	var plain int64
	digests := map[log.Revision]log.Hash{}
	random := rand.New(rand.NewPCG(seed, 1))
	for range 10 {
		digests[log.Revision(1+random.IntN(events))] = log.Hash{}
	}
	var batch []log.Record
	for event, err := range m.All() {
		if err != nil {
			return nil, err
		}
		began := time.Now()
		record, _, err := state.Apply(event)
		apply += time.Since(began)
		if err != nil {
			return nil, err
		}
		plain += int64(61 + len(record.Event) + len(record.Chain))
		if _, asked := digests[record.Revision]; asked {
			digests[record.Revision] = state.View().Digest()
		}
		if batch = append(batch, record); len(batch) < 256 && int(record.Revision) < events {
			continue
		}
		began = time.Now()
		if err := h.Append(batch); err != nil {
			return nil, err
		}
		write += time.Since(began)
		batch = batch[:0]
		log0.view = state.View()
		began = time.Now()
		if err := k.Due(ctx); err != nil {
			return nil, err
		}
		keep += time.Since(began)
	}
	began := time.Now()
	if err := h.Sync(); err != nil {
		return nil, err
	}
	write += time.Since(began)
	n := float64(events)
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) / n }
	r.ApplyMicros, r.AppendMicros, r.KeepMicros = micros(apply), micros(write), micros(keep)
	if err := sizes(h, r, n); err != nil {
		return nil, err
	}
	r.PlainBytes = float64(plain) / n
	if err := ask(ctx, of, digests, r); err != nil {
		return nil, err
	}
	began = time.Now()
	v, err := of().Verify(ctx, h, log.Revision(events))
	r.VerifySeconds = time.Since(began).Seconds()
	if err == nil && v.Digest != state.View().Digest() {
		err = fmt.Errorf("verify leads to digest %s, the events did to %s", v.Digest, state.View().Digest())
	}
	return r, err
}

// sizes adds up the files. The last segment, which is not packed yet, counts in no
// figure of packed ones.
func sizes(h *history.History, r *History, n float64) error {
	segments, err := h.Segments()
	if err != nil {
		return err
	}
	var packed int64
	var records float64
	for _, s := range segments {
		r.Bytes += s.Bytes
		if s.Packed {
			packed += s.Bytes
			records += float64(s.Last - s.First + 1)
		}
	}
	if records > 0 {
		r.PackedBytes = float64(packed) / records
	}
	var checkpoints int64
	for _, at := range h.Checkpoints() {
		size, err := h.CheckpointBytes(at)
		if err != nil {
			return err
		}
		checkpoints += size
	}
	r.Bytes += checkpoints
	r.CheckpointBytes = float64(checkpoints) / n
	return nil
}

// ask asks for revisions, each of a past that knows nothing yet, and for neighbours.
func ask(ctx context.Context, of func() *past.Past, digests map[log.Revision]log.Hash, r *History) error {
	var cold, near time.Duration
	neighbours := 0
	for at, want := range digests {
		p := of()
		began := time.Now()
		v, err := p.View(ctx, at)
		took := time.Since(began)
		if err != nil {
			return err
		}
		if v.Digest() != want {
			return fmt.Errorf("revision %d has digest %s, and had %s", at, v.Digest(), want)
		}
		cold += took
		r.ColdMost = max(r.ColdMost, took.Seconds()*1e3)
		for _, back := range []log.Revision{1, 40, 700} {
			if back >= at {
				continue
			}
			began = time.Now()
			if _, err := p.View(ctx, at-back); err != nil {
				return err
			}
			near += time.Since(began)
			neighbours++
		}
	}
	r.ColdMillis = cold.Seconds() * 1e3 / float64(len(digests))
	r.NearMillis = near.Seconds() * 1e3 / float64(max(1, neighbours))
	return nil
}
