package raftlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/log"
)

const (
	storeFile = "raft.db"
	// lockTimeout bounds the wait for bbolt's own lock. The directory's lock is
	// held by then, so no varve has it.
	lockTimeout = time.Second
)

// store is Raft's log and stable store. Raft panics when it cannot read an entry
// or save its term; store stops the node with the cause instead.
type store struct {
	*raftboltdb.BoltStore
	stop func(error)
	// running: Raft's goroutines have started. Before, a panic of NewRaft reaches
	// Open, which recovers it.
	running atomic.Bool
}

var (
	_ raft.LogStore    = (*store)(nil)
	_ raft.StableStore = (*store)(nil)
)

// boltOptions were measured: the kind of freelist makes no difference to a
// database that compaction keeps small, and not writing it saves one page a
// commit but costs a scan of the file at open.
func boltOptions() *bbolt.Options {
	o := *bbolt.DefaultOptions
	o.Timeout = lockTimeout
	o.FreelistType = bbolt.FreelistMapType
	return &o
}

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	s, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: boltOptions()})
	if errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) || errors.Is(err, berrors.ErrVersionMismatch) {
		return nil, &log.CorruptError{What: fmt.Sprintf("%s: %v; restore the directory from a copy", path, err)}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, classify(err))
	}
	return s, nil
}

// openStore opens raft.db. If it is missing and fresh is true, it is created
// with this server as the only member, under another name first: a raft.db that
// exists is whole.
func openStore(c *Config, fresh bool, snapshots raft.SnapshotStore, transport raft.Transport) (*raftboltdb.BoltStore, error) {
	path := filepath.Join(c.Dir, storeFile)
	_, err := os.Stat(path)
	if err == nil {
		return openBolt(path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !fresh {
		return nil, &log.CorruptError{What: fmt.Sprintf(
			"%s is missing, but history or snapshots exist beside it; restore it from a copy of the directory", path)}
	}
	if err := bootstrap(c, path+".new", snapshots, transport); err != nil {
		return nil, err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return nil, err
	}
	// The directory's own name in its parent, and every name in it.
	if err := errors.Join(syncDir(filepath.Dir(c.Dir)), syncDir(c.Dir)); err != nil {
		return nil, err
	}
	return openBolt(path)
}

func bootstrap(c *Config, path string, snapshots raft.SnapshotStore, transport raft.Transport) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s, err := openBolt(path)
	if err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: c.Raft.LocalID, Address: transport.LocalAddr(),
	}}}
	err = raft.BootstrapCluster(c.Raft, s, s, snapshots, transport, alone)
	if err != nil {
		err = fmt.Errorf("bootstrap %s: %w", path, classify(err))
	}
	return errors.Join(err, s.Close())
}

// checkContinuity refuses a Raft log that begins after what the newest snapshot
// covers. index is the snapshot's, 0 if there is none.
func checkContinuity(s *raftboltdb.BoltStore, path string, index uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	if last > index && first > index+1 {
		return &log.CorruptError{What: fmt.Sprintf(
			"%s begins at entry %d, but the newest readable snapshot ends at entry %d; restore the directory from a copy", path, first, index)}
	}
	if last == 0 && index == 0 {
		return &log.CorruptError{What: fmt.Sprintf("%s is empty and there is no snapshot; restore the directory from a copy", path)}
	}
	return nil
}

// GetLog reads one entry.
func (s *store) GetLog(index uint64, entry *raft.Log) error {
	err := s.BoltStore.GetLog(index, entry)
	switch {
	case errors.Is(err, raft.ErrLogNotFound):
		return err
	case err != nil:
		err = &log.CorruptError{What: fmt.Sprintf("entry %d of the Raft log does not decode (%v); restore the directory from a copy", index, err)}
	case entry.Index != index:
		err = &log.CorruptError{What: fmt.Sprintf("entry %d of the Raft log says it is entry %d; restore the directory from a copy", index, entry.Index)}
	default:
		return nil
	}
	s.fatal(err)
	return err
}

// StoreLog makes one entry durable.
func (s *store) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs makes entries durable. If it cannot, the node stops: Raft would step
// down, elect itself again and fail to save its term.
func (s *store) StoreLogs(entries []*raft.Log) error {
	err := s.BoltStore.StoreLogs(entries)
	if err != nil {
		err = fmt.Errorf("store Raft entry %d: %w", entries[0].Index, classify(err))
		s.stop(err)
	}
	return err
}

// Set makes a value of Raft's own durable.
func (s *store) Set(key, value []byte) error {
	err := s.BoltStore.Set(key, value)
	if err != nil {
		err = fmt.Errorf("store Raft's %s: %w", key, classify(err))
		s.fatal(err)
	}
	return err
}

// SetUint64 makes a number of Raft's own durable, e.g. its term.
func (s *store) SetUint64(key []byte, value uint64) error {
	err := s.BoltStore.SetUint64(key, value)
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

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
