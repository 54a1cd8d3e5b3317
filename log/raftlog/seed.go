package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/durable"
)

// Seed makes a log in a directory that does not exist, or is empty, which goes on
// from a state: its first event will have the revision after the state's, and
// continue its chain. The directory appears whole or not at all. The state is the
// log's from then on.
func Seed(ctx context.Context, config Config, state *fsm.State) error {
	view := state.View()
	switch entries, err := os.ReadDir(config.Dir); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case len(entries) > 0:
		return fmt.Errorf("log %s: is not empty; choose another directory, or move this one away", config.Dir)
	case view.Revision() == 0:
		return fmt.Errorf("log %s: the state is of revision 0: there is nothing to go on from", config.Dir)
	case view.Cluster() != config.Cluster:
		return fmt.Errorf("log %s: the state is of cluster %q, the log of %q", config.Dir, view.Cluster(), config.Cluster)
	}
	whole := config.Dir
	config.Dir = filepath.Clean(config.Dir) + ".new"
	if err := os.RemoveAll(config.Dir); err != nil {
		return err
	}
	if err := seed(ctx, config, state, view); err != nil {
		return errors.Join(err, os.RemoveAll(config.Dir))
	}
	if err := os.Remove(whole); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(config.Dir, whole); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(whole))
}

func seed(ctx context.Context, config Config, state *fsm.State, view fsm.View) error {
	config, err := config.withDefaults()
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	l := newLog(config)
	l.seed = state
	if err := l.open(ctx); err != nil {
		l.stop(err)
		return fmt.Errorf("log %s: %w", config.Dir, errors.Join(classify(err), l.release()))
	}
	err = l.history.WriteCheckpoint(view.Revision(), view.WriteSnapshot)
	if err == nil {
		err = l.Snapshot(ctx)
	}
	return errors.Join(err, l.Close(ctx))
}
