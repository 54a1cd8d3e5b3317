package raftlog

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/raftlog/wal"
)

// store is Raft's log and stable store. Raft panics when it cannot read an entry
// or save its term; store stops the node with the cause instead.
type store struct {
	*wal.Store       // entries
	raft.StableStore // term and vote
	stop             func(error)
	// running: Raft's goroutines have started. Before, a panic of NewRaft reaches
	// Open, which recovers it.
	running atomic.Bool
}

var (
	_ raft.MonotonicLogStore = (*store)(nil)
	_ raft.LogStore          = (*store)(nil)
	_ raft.StableStore       = (*store)(nil)
)

// GetLog reads one entry.
func (s *store) GetLog(index uint64, entry *raft.Log) error {
	err := s.Store.GetLog(index, entry)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		err = fmt.Errorf("read Raft entry %d: %w", index, err)
		s.fatal(err)
	}
	return err
}

// StoreLog makes one entry durable.
func (s *store) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs makes entries durable. If it cannot, the node stops: Raft would step
// down, elect itself again and fail to save its term.
func (s *store) StoreLogs(entries []*raft.Log) error {
	err := s.Store.StoreLogs(entries)
	if err != nil {
		err = fmt.Errorf("store Raft entry %d: %w", entries[0].Index, classify(err))
		s.stop(err)
	}
	return err
}

// Set makes a value of Raft's own durable.
func (s *store) Set(key, value []byte) error {
	err := s.StableStore.Set(key, value)
	if err != nil {
		err = fmt.Errorf("store Raft's %s: %w", key, classify(err))
		s.fatal(err)
	}
	return err
}

// SetUint64 makes a number of Raft's own durable, e.g. its term.
func (s *store) SetUint64(key []byte, value uint64) error {
	err := s.StableStore.SetUint64(key, value)
	if err != nil {
		err = fmt.Errorf("store Raft's %s: %w", key, classify(err))
		s.fatal(err)
	}
	return err
}

// fatal stops the node and, if one of Raft's goroutines calls, ends that: it
// would panic with the error.
func (s *store) fatal(err error) {
	s.stop(err)
	if s.running.Load() {
		runtime.Goexit()
	}
}

// classify gives errors of the disk the name by which callers know them.
func classify(err error) error {
	if (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, log.ErrNoSpace) {
		return fmt.Errorf("%w: %w", log.ErrNoSpace, err)
	}
	return err
}

// newestSnapshot knows the newest snapshot alone: falling back to an older one
// in silence would replay from where the Raft log no longer reaches.
type newestSnapshot struct {
	raft.SnapshotStore
	stop func(error)
}

func (s newestSnapshot) List() ([]*raft.SnapshotMeta, error) {
	all, err := s.SnapshotStore.List()
	return all[:min(len(all), 1)], err
}

// Open checks the snapshot's checksum. Raft only logs the error.
func (s newestSnapshot) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		s.stop(&log.CorruptError{What: fmt.Sprintf("snapshot %s cannot be read (%v); restore the directory from a copy", id, err)})
	}
	return meta, r, err
}
