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

	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// History is what a process that kept a history and asked it measured.
type History struct {
	PlainBytes, PackedBytes, CheckpointBytes float64 // an event
	AppendMicros, KeepMicros, ApplyMicros    float64 // an event
	LogMicros                                float64 // an event, appended to a log of its own in the same batches
	ChainSeconds                             float64 // to verify the records: checksums, density, chain
	VerifySeconds                            float64 // the same, checkpoints and replay
	Bytes                                    int64   // that were verified
	ColdMillis, NearMillis, ColdMost         float64
}

// histories is how many are made: each takes minutes, and tells much.
func histories(p *plan) int { return (p.rounds + 3) / 4 }

// askedRevisions is how many moments of each are asked for.
const askedRevisions = 20

// runHistory lets processes of their own keep a history of the standard mix as an
// agent does, and ask it for revisions here and there.
func runHistory(ctx context.Context, p *plan, out sink) error {
	of := fmt.Sprintf("%d events", p.replay)
	for round := range histories(p) {
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
		out.add("us an event", of, "append to the log, all in all", h.LogMicros)
		out.add("share of an append, %", of, "append to history", 100*h.AppendMicros/h.LogMicros)
		out.add("a moment of the past, ms", of, "cold", h.ColdMillis)
		out.add("a moment of the past, ms", of, "cold, the slowest of 20", h.ColdMost)
		out.add("a moment of the past, ms", of, "a neighbour", h.NearMillis)
		n := float64(p.replay)
		out.add("verify", of, "records and chain, events/s", n/h.ChainSeconds)
		out.add("verify", of, "records and chain, MB/s as appended", n*h.PlainBytes/1e6/h.ChainSeconds)
		out.add("verify", of, "all, events/s", n/h.VerifySeconds)
		out.add("verify", of, "all, MB/s as appended", n*h.PlainBytes/1e6/h.VerifySeconds)
		out.add("verify", of, "all, MB/s of files", float64(h.Bytes)/1e6/h.VerifySeconds)
		p.say("history: round %d of %d", round+1, histories(p))
	}
	return nil
}

func historyCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("history", flag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("dir", "", "directory to make")
	events := fs.Int("events", 0, "events in it")
	seed := fs.Uint64("seed", 0, "of the revisions asked for")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var r *History
	err := inHistory(*dir, func(h *history.History) (err error) {
		r, err = measureHistory(ctx, h, *dir, *events, *seed)
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(r)
}

// inHistory opens the history in a folder, new or not, for something to be done with it.
func inHistory(dir string, do func(*history.History) error) error {
	h, err := history.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return errors.Join(do(h), h.Close())
}

func measureHistory(ctx context.Context, h *history.History, dir string, events int, seed uint64) (*History, error) {
	r := &History{}
	m := mix.Whole(events)
	of := func() *past.Past {
		return past.New(past.Config{Log: past.Kept{History: h}, Cluster: m.Cluster, Checkpoints: h})
	}
	digests := map[log.Revision]log.Hash{}
	random := rand.New(rand.NewPCG(seed, 1))
	for range askedRevisions {
		digests[log.Revision(1+random.IntN(events))] = log.Hash{}
	}
	made, err := makeHistory(ctx, h, m, digests)
	if err != nil {
		return nil, err
	}
	n := float64(events)
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) / n }
	r.ApplyMicros, r.AppendMicros, r.KeepMicros = micros(made.apply), micros(made.write), micros(made.keep)
	if err := sizes(h, r, n); err != nil {
		return nil, err
	}
	r.PlainBytes = float64(made.plain) / n
	if r.LogMicros, err = appendAll(ctx, dir+".log", mix.Whole(min(events, logEvents))); err != nil {
		return nil, err
	}
	if err := ask(ctx, of, digests, r); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := h.Verify(ctx, 1); err != nil {
		return nil, err
	}
	r.ChainSeconds = time.Since(began).Seconds()
	began = time.Now()
	v, err := of().Verify(ctx, h, log.Revision(events))
	r.VerifySeconds = time.Since(began).Seconds()
	if err == nil && v.Digest != made.state.View().Digest() {
		err = fmt.Errorf("verify leads to digest %s, the events did to %s", v.Digest, made.state.View().Digest())
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
