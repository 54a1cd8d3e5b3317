package past

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// Archive is a history without an agent: an exported file, or the directory of an
// agent, which may run meanwhile.
type Archive struct {
	*Past
	History *history.History
	Path    string
}

// Kept is a history as a Past reads it.
type Kept struct{ *history.History }

// Head implements Log.
func (k Kept) Head() (log.Revision, log.Hash) { return k.Last() }

var (
	_ Log         = Kept{}
	_ Checkpoints = Kept{}
)

// OpenArchive opens an exported file, an agent's state directory, or the log or the
// history in it. In an archive, "-2h" counts back from its newest record.
func OpenArchive(ctx context.Context, path string, logger *slog.Logger) (*Archive, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	a := &Archive{Path: path}
	if info.IsDir() {
		a.History, err = history.OpenReadOnly(historyIn(path), logger)
	} else {
		a.History, err = history.OpenFile(path, logger)
	}
	if err != nil {
		return nil, err
	}
	kept := Kept{a.History}
	cluster, err := clusterOf(ctx, kept)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	a.Past = New(Config{Log: kept, Cluster: cluster, Checkpoints: kept, Logger: logger})
	if head, _ := kept.Head(); head >= a.First() {
		newest, err := a.Record(ctx, head)
		if err != nil && !errors.Is(err, history.ErrLeftOut) {
			return nil, err
		}
		if err == nil {
			a.Now = func() time.Time { return time.Unix(0, newest.TimeNS) }
		}
	}
	return a, nil
}

// First is the oldest revision kept.
func (a *Archive) First() log.Revision { return a.History.First() }

// historyIn finds the history in a directory: below it, or itself.
func historyIn(dir string) string {
	for _, below := range []string{filepath.Join("log", "history"), "history"} {
		if info, err := os.Stat(filepath.Join(dir, below)); err == nil && info.IsDir() {
			return filepath.Join(dir, below)
		}
	}
	return dir
}

// clusterOf finds the name of the cluster that a history is of.
func clusterOf(ctx context.Context, h Kept) (string, error) {
	if meta := h.Exported(); meta != nil {
		return meta.Cluster, nil
	}
	head, _ := h.Head()
	if head == 0 {
		return "", errors.New("it holds no records; name an exported file or the state directory of an agent")
	}
	for _, at := range h.Checkpoints() {
		if cluster, err := clusterOfCheckpoint(h, at); err == nil {
			return cluster, nil // a damaged one is for Verify to report
		}
	}
	found := ""
	err := h.Read(ctx, h.First(), head, func(r log.Record) error {
		if r.Outcome != log.OutcomeApplied {
			return nil
		}
		e, err := log.Unmarshal(r.Event)
		if err != nil {
			return fmt.Errorf("revision %d: %w", r.Revision, err)
		}
		found = e.GetOrigin().GetCluster()
		return errFound
	})
	if errors.Is(err, errFound) {
		return found, nil
	}
	if err != nil {
		return "", err
	}
	return "", errors.New("none of its records was applied, so its cluster is not known")
}

var errFound = errors.New("found")

func clusterOfCheckpoint(h Kept, at log.Revision) (string, error) {
	r, err := h.OpenCheckpoint(at)
	if err != nil {
		return "", err
	}
	defer r.Close()
	header, err := fsm.ReadSnapshotHeader(r)
	if err != nil {
		return "", err
	}
	return header.Cluster, nil
}
