package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/replay"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// Replay is what a process that replayed measured.
type Replay struct {
	VerifySeconds float64 `json:"verify_seconds"`
	ReplaySeconds float64 `json:"replay_seconds"`
	Bytes         int64   `json:"bytes"`
}

// runReplay writes a history of the standard mix and lets processes of their own
// verify it (CRC, revisions, hash chain) and replay it: from the file, decoded,
// to the state and its digest.
func runReplay(ctx context.Context, p *plan, out sink) error {
	dir := filepath.Join(p.dir, "replay")
	defer os.RemoveAll(dir)
	digest, err := writeHistory(dir, mix.Standard(p.replay))
	if err != nil {
		return err
	}
	of := fmt.Sprintf("%d events", p.replay)
	for round := range p.rounds {
		var r Replay
		if err := runSelf(ctx, &r, "replay", "-dir", dir, "-events", fmt.Sprint(p.replay), "-digest", digest.String()); err != nil {
			return err
		}
		out.add("events/s", of, "verify", float64(p.replay)/r.VerifySeconds)
		out.add("events/s", of, "replay to state", float64(p.replay)/r.ReplaySeconds)
		p.say("replay: round %d of %d", round+1, p.rounds)
	}
	return nil
}

// writeHistory keeps a mix's records, and returns the digest of its state.
func writeHistory(dir string, m mix.Mix) (log.Hash, error) {
	h, err := history.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return log.Hash{}, err
	}
	s := fsm.New(m.Cluster)
	var records []log.Record
	for event, err := range m.All() {
		if err != nil {
			return log.Hash{}, errors.Join(err, h.Close())
		}
		r, result, err := s.Apply(event)
		if err == nil && result.Outcome != log.OutcomeApplied {
			err = fmt.Errorf("revision %d: %+v, want it applied", r.Revision, result)
		}
		if records = append(records, r); err == nil && len(records) == 1024 {
			err = h.Append(records)
			records = records[:0]
		}
		if err != nil {
			return log.Hash{}, errors.Join(err, h.Close())
		}
	}
	return s.View().Digest(), errors.Join(h.Append(records), h.Close())
}

func replayCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("replay", flag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("dir", "", "history")
	events := fs.Int("events", 0, "events in it")
	digest := fs.String("digest", "", "of the state that they lead to")
	if err := fs.Parse(args); err != nil {
		return err
	}
	h, err := history.Open(*dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	var r Replay
	began := time.Now()
	err = h.Verify(ctx, 1)
	r.VerifySeconds = time.Since(began).Seconds()
	if err != nil {
		return errors.Join(err, h.Close())
	}
	began = time.Now()
	state := fsm.New(mix.Standard(0).Cluster)
	err = replay.Run(ctx, h, log.Revision(*events), state)
	r.ReplaySeconds = time.Since(began).Seconds()
	if err = errors.Join(err, h.Close()); err != nil {
		return err
	}
	if got := state.View().Digest(); got.String() != *digest {
		return fmt.Errorf("the replay leads to digest %s, the events did to %s", got, *digest)
	}
	return json.NewEncoder(stdout).Encode(r)
}
