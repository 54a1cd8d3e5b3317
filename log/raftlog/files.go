package raftlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/raftlog/wal"
)

const (
	// stableFile holds Raft's term and vote. In directories that an older version
	// made it holds the entries, too, until they are moved to walDir.
	stableFile = "raft.db"
	walDir     = "wal"
	// underWay marks a file or folder that is being made.
	underWay = ".new"
	// lockTimeout bounds the wait for bbolt's own lock. The directory's lock is
	// held by then, so no varve has it.
	lockTimeout = time.Second
)

// files are what Raft's state is in.
type files struct {
	stable  *raftboltdb.BoltStore
	entries *wal.Store
}

// close lets go of what was opened.
func (f files) close() error {
	var errs []error
	if f.entries != nil {
		errs = append(errs, f.entries.Close())
	}
	if f.stable != nil {
		errs = append(errs, f.stable.Close())
	}
	return errors.Join(errs...)
}

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	o := *bbolt.DefaultOptions
	o.Timeout = lockTimeout
	o.FreelistType = bbolt.FreelistMapType
	s, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &o})
	if errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) || errors.Is(err, berrors.ErrVersionMismatch) {
		return nil, &log.CorruptError{What: fmt.Sprintf("%s: %v; restore the directory from a copy", path, err)}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, classify(err))
	}
	return s, nil
}

// openFiles opens raft.db and wal/. If raft.db is missing and fresh is true, both
// are created with this server as the only member, under other names first, and
// raft.db gets its name last: if it exists, both are whole.
func (l *Log) openFiles(fresh bool, snapshots raft.SnapshotStore) error {
	c := &l.config
	path := filepath.Join(c.Dir, stableFile)
	_, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !fresh:
		return &log.CorruptError{What: fmt.Sprintf(
			"%s is missing, but history or snapshots exist beside it; restore it from a copy of the directory", path)}
	case errors.Is(err, fs.ErrNotExist):
		if err := l.bootstrap(path, snapshots); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if l.files.stable, err = openBolt(path); err != nil {
		return err
	}
	if err := l.moveEntries(); err != nil {
		return err
	}
	l.files.entries, err = wal.Open(filepath.Join(c.Dir, walDir), c.Logger)
	return err
}

func (l *Log) bootstrap(path string, snapshots raft.SnapshotStore) (err error) {
	c := &l.config
	dir := filepath.Join(c.Dir, walDir)
	// What a start left that was cut off before raft.db had its name.
	if err := errors.Join(os.RemoveAll(path+underWay), os.RemoveAll(dir+underWay), l.removeUnused(dir)); err != nil {
		return err
	}
	var made files
	defer func() {
		if err != nil {
			err = errors.Join(err, made.close())
		}
	}()
	if made.stable, err = openBolt(path + underWay); err != nil {
		return err
	}
	if made.entries, err = wal.Open(dir+underWay, c.Logger); err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: c.Raft.LocalID, Address: l.transport.LocalAddr(),
	}}}
	if err := raft.BootstrapCluster(c.Raft, made.entries, made.stable, snapshots, l.transport, alone); err != nil {
		return fmt.Errorf("bootstrap %s: %w", c.Dir, classify(err))
	}
	err = made.close()
	if made = (files{}); err != nil {
		return err
	}
	if err := os.Rename(dir+underWay, dir); err != nil {
		return err
	}
	if err := durable.SyncDir(c.Dir); err != nil {
		return err
	}
	if err := os.Rename(path+underWay, path); err != nil {
		return err
	}
	// The directory's own name in its parent, and every name in it.
	return errors.Join(durable.SyncDir(filepath.Dir(c.Dir)), durable.SyncDir(c.Dir))
}

// removeUnused removes a folder of entries that holds no event yet.
func (l *Log) removeUnused(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s, err := wal.Open(dir, l.config.Logger)
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	if last > 1 { // the first entry is the membership
		return &log.CorruptError{What: fmt.Sprintf(
			"%s is missing beside %s, which holds %d entries; restore it from a copy of the directory", stableFile, dir, last)}
	}
	return os.RemoveAll(dir)
}

// moveEntries moves the entries that an older version kept in raft.db to wal/,
// which gets its name once it holds all of them.
func (l *Log) moveEntries() error {
	bolt, dir := l.files.stable, filepath.Join(l.config.Dir, walDir)
	first, err := bolt.FirstIndex()
	if err != nil {
		return err
	}
	last, err := bolt.LastIndex()
	if err != nil {
		return err
	}
	_, err = os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && last == 0:
		return &log.CorruptError{What: fmt.Sprintf("%s is missing, but %s exists beside it; restore the directory from a copy", dir, stableFile)}
	case errors.Is(err, fs.ErrNotExist):
		l.config.Logger.Info("moving the Raft log out of raft.db; versions before this one cannot open it any more", "to", dir, "entries", last-first+1)
		if err := l.copyEntries(bolt, dir+underWay, first, last); err != nil {
			return err
		}
		if err := os.Rename(dir+underWay, dir); err != nil {
			return err
		}
		if err := durable.SyncDir(l.config.Dir); err != nil {
			return err
		}
	case err != nil || last == 0:
		return err
	}
	return bolt.DeleteRange(first, last)
}

func (l *Log) copyEntries(bolt *raftboltdb.BoltStore, dir string, first, last uint64) (err error) {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	to, err := wal.Open(dir, l.config.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	var batch []*raft.Log
	for index := first; index <= last; index++ {
		e := new(raft.Log)
		if err := bolt.GetLog(index, e); err != nil {
			return &log.CorruptError{What: fmt.Sprintf("entry %d of %s does not decode (%v); restore the directory from a copy", index, stableFile, err)}
		}
		if e.Index != index {
			return &log.CorruptError{What: fmt.Sprintf("entry %d of %s says it is entry %d; restore the directory from a copy", index, stableFile, e.Index)}
		}
		if batch = append(batch, e); len(batch) == 64 || index == last {
			if err := to.StoreLogs(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return nil
}

// checkContinuity refuses entries that begin after what the newest snapshot covers,
// or that are of a later term than raft.db has seen. index is the snapshot's, 0 if
// there is none.
func (l *Log) checkContinuity(index uint64) error {
	s, dir := l.files.entries, filepath.Join(l.config.Dir, walDir)
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
			"%s begins at entry %d, but the newest readable snapshot ends at entry %d; restore the directory from a copy", dir, first, index)}
	}
	if last == 0 {
		if index == 0 {
			return &log.CorruptError{What: fmt.Sprintf("%s is empty and there is no snapshot; restore the directory from a copy", dir)}
		}
		return nil
	}
	var entry raft.Log
	if err := s.GetLog(last, &entry); err != nil {
		return err
	}
	term, err := l.files.stable.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		return err
	}
	if entry.Term > term {
		return &log.CorruptError{What: fmt.Sprintf(
			"%s is at term %d, but entry %d of %s is of term %d: they do not belong together; restore both from one copy",
			stableFile, term, last, walDir, entry.Term)}
	}
	return nil
}
