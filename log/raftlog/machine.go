package raftlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// machine hands committed entries to the state and their records to history and
// readers; it decides nothing. Raft calls all of it from one goroutine, but for
// Persist.
type machine struct {
	log   *Log
	state *fsm.State

	records []log.Record    // of the entries being applied
	landed  []landed        // the same entries, and their results
	replay  *history.Cursor // at what history already holds of a replay, or nil

	missed      []log.Record // of a replay, which history cannot read; with bytes of their own
	missedBytes int
}

// maxMissed bounds the bytes of what one start puts back into history; the next one
// does the rest.
const maxMissed = 256 << 20

// landed is an entry of this node's flight, or nil, and what its events have become.
type landed struct {
	entry   *entry
	results []log.Result
}

var _ raft.BatchingFSM = (*machine)(nil)

// Apply is ApplyBatch of one entry.
func (m *machine) Apply(entry *raft.Log) any { return m.ApplyBatch([]*raft.Log{entry})[0] }

// ApplyBatch applies entries and answers those that were proposed here. They are
// durable: the next one may be proposed. After an error nothing is ever applied
// again: the node stops.
func (m *machine) ApplyBatch(entries []*raft.Log) []any {
	m.landed = m.landed[:0]
	for _, entry := range entries {
		m.landed = append(m.landed, landed{m.log.flight.land(entry.Data), nil})
	}
	err := m.applyAll(entries)
	if err != nil {
		m.log.fail(err)
	}
	for i := range m.landed {
		if l := &m.landed[i]; l.entry != nil {
			m.log.settle(l.entry, l.results, err)
		}
	}
	clear(m.landed)
	return make([]any, len(entries))
}

// applyAll applies entries, notes their results in landed, and shows readers what
// there is then.
func (m *machine) applyAll(entries []*raft.Log) error {
	if err := m.log.Err(); err != nil {
		return err
	}
	m.records = m.records[:0]
	for i, entry := range entries {
		if entry.Type != raft.LogCommand {
			continue
		}
		results, err := m.apply(entry.Data)
		if err != nil {
			return m.entryError(entry.Index, err)
		}
		m.landed[i].results = results
	}
	if len(m.records) == 0 {
		return nil
	}
	if err := m.keep(m.records); err != nil {
		return err
	}
	view := m.state.View()
	m.log.view.Store(&view)
	m.log.feed.publish(m.records)
	return nil
}

// entryError names the entry and, if it is damaged, the file and the remedy.
func (m *machine) entryError(index uint64, err error) error {
	if errors.Is(err, log.ErrCorrupt) {
		return fmt.Errorf("apply Raft entry %d of %s: %w; restore the directory from a copy", index, filepath.Join(m.log.config.Dir, walDir), err)
	}
	return fmt.Errorf("apply Raft entry %d: %w", index, err)
}

// apply applies the events of one entry.
func (m *machine) apply(data []byte) ([]log.Result, error) {
	events, err := log.DecodeBatch(data)
	if err != nil {
		return nil, err
	}
	results := make([]log.Result, len(events))
	for i, event := range events {
		record, result, err := m.state.Apply(event)
		if err != nil {
			return nil, err
		}
		if record.Revision != 0 {
			m.records = append(m.records, record)
		}
		results[i] = result
	}
	return results, nil
}

// keep appends records to history. What a replay brings again must be what
// history holds.
//
//	snapshot       history's last        Raft's last
//	    |---- compared ----|---- appended ----|
func (m *machine) keep(records []log.Record) error {
	last, _ := m.log.history.Last()
	known := 0
	for known < len(records) && records[known].Revision <= last {
		if err := m.compare(&records[known]); err != nil {
			return err
		}
		known++
	}
	if known == len(records) {
		return nil
	}
	if err := m.endReplay(); err != nil {
		return err
	}
	return classify(m.log.history.Append(records[known:]))
}

// compare holds a replayed record to the one that history has. If that is lost, the
// Raft log's, which has a checksum of its own, is taken as it stands, and kept for heal.
func (m *machine) compare(replayed *log.Record) (err error) {
	if m.replay == nil {
		m.replay, err = m.log.history.Cursor(replayed.Revision)
		if errors.Is(err, log.ErrCompacted) {
			return nil // the files before are gone: history.Open said so
		}
		if err != nil {
			return err
		}
	}
	kept, err := m.replay.Next()
	if errors.Is(err, log.ErrCorrupt) {
		m.miss(replayed)
		return m.endReplay()
	}
	if err != nil {
		return err
	}
	return m.log.same(&kept, replayed.Revision, replayed.Chain, replayed.TimeNS, "replay of the Raft log")
}

func (m *machine) miss(r *log.Record) {
	if m.missedBytes += len(r.Event); m.missedBytes > maxMissed {
		return
	}
	kept := *r
	kept.Event = bytes.Clone(r.Event)
	m.missed = append(m.missed, kept)
}

// heal puts back into history what a replay had and it could not read. What cannot be
// put back stays lost, which history tells.
func (l *Log) heal() {
	missed := l.machine.missed
	if l.machine.missed = nil; len(missed) == 0 {
		return
	}
	err := l.CheckSpace()
	if err == nil {
		var healed []history.Lost
		healed, err = l.history.Heal(missed)
		for _, r := range healed {
			l.config.Logger.Info("put back into the history what was damaged, from the Raft log; the damaged file is kept beside it", "first", r.First, "last", r.Last)
		}
	}
	if err != nil {
		l.config.Logger.Warn("what the history lost is not put back, though the Raft log has it; the next start tries again", "error", err)
	}
}

func (m *machine) endReplay() error {
	if m.replay == nil {
		return nil
	}
	err := m.replay.Close()
	m.replay = nil
	return err
}

// same compares a kept record with what another source says of it.
func (l *Log) same(kept *log.Record, revision log.Revision, chain log.Hash, timeNS int64, source string) error {
	var problem string
	switch {
	case kept.Revision != revision:
		problem = fmt.Sprintf("is revision %d", kept.Revision)
	case kept.Chain != chain:
		problem = fmt.Sprintf("has chain value %s, the %s gives %s", kept.Chain, source, chain)
	case kept.TimeNS != timeNS:
		problem = fmt.Sprintf("has effective time %d, the %s gives %d", kept.TimeNS, source, timeNS)
	default:
		return nil
	}
	return &log.CorruptError{Revision: revision, What: fmt.Sprintf(
		"the record in history %s; history and Raft log of %s do not belong together, restore both from one copy", problem, l.config.Dir)}
}

// Restore replaces the state by a snapshot. Where history does not reach up to it, or
// is damaged, what is lost is noted, and the log goes on.
func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	err := m.restore(r)
	if err != nil {
		m.log.fail(fmt.Errorf("restore the newest snapshot in %s: %w", m.log.config.Dir, err))
	}
	return err
}

func (m *machine) restore(r io.Reader) error {
	state, err := fsm.ReadSnapshot(r)
	if err != nil {
		return err
	}
	view := state.View()
	if view.Cluster() != m.log.config.Cluster {
		return fmt.Errorf("it is of cluster %q, this node is of cluster %q; choose another directory or correct the name", view.Cluster(), m.log.config.Cluster)
	}
	if err := m.log.reaches(view); err != nil {
		return err
	}
	if err := m.log.beyond(view); err != nil {
		return err
	}
	m.state = state
	m.log.restored = view.Revision()
	m.log.view.Store(&view)
	m.log.feed.reset(view.Revision(), view.Chain())
	return m.endReplay()
}

// reaches checks that history agrees with a state. If it does not go up to it, it goes
// on after it from here.
func (l *Log) reaches(view fsm.View) error {
	if last, _ := l.history.Last(); view.Revision() > last {
		return l.history.Skip(view.Revision(), view.Chain())
	}
	if view.Revision()+1 < l.history.First() || view.Revision() == 0 {
		return nil
	}
	if view.Revision()+1 == l.history.First() {
		if before := l.history.Before(); before != view.Chain() {
			return l.same(&log.Record{Revision: view.Revision(), TimeNS: view.TimeNS(), Chain: before}, view.Revision(), view.Chain(), view.TimeNS(), "snapshot")
		}
		return nil
	}
	kept, err := l.history.Record(context.Background(), view.Revision())
	if errors.Is(err, log.ErrCorrupt) {
		return nil // it is lost, and what is around it tells whose history it is
	}
	if err != nil {
		return err
	}
	return l.same(&kept, view.Revision(), view.Chain(), view.TimeNS(), "snapshot")
}

// beyond keeps a checkpoint of a state after what history has lost: nothing else leads
// over it. On a full disk it is left to whoever looks after the history.
func (l *Log) beyond(view fsm.View) error {
	lost := l.history.Lost()
	if len(lost) == 0 || lost[len(lost)-1].Last > view.Revision() {
		return nil
	}
	for _, at := range l.history.Checkpoints() {
		if at >= lost[len(lost)-1].Last {
			return nil
		}
	}
	if err := l.CheckSpace(); err != nil {
		l.config.Logger.Warn("no checkpoint is kept after what the history lost", "error", err)
		return nil
	}
	return l.history.WriteCheckpoint(view.Revision(), view.WriteSnapshot)
}

// Snapshot grabs the state.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	// Raft counts entries as applied that came after an error: a snapshot would
	// skip them for ever.
	if err := m.log.Err(); err != nil {
		return nil, err
	}
	return &snapshot{m.log, m.state.View()}, nil
}

// snapshot writes a state out. Raft may compact its log after that.
type snapshot struct {
	log  *Log
	view fsm.View
}

// Persist makes history durable up to the state before anything else.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	err := s.log.config.checkSpace(s.log.config.ReserveBytes)
	if err == nil {
		err = s.log.history.Sync()
	}
	if synced := s.log.history.Synced(); err == nil && synced < s.view.Revision() {
		err = fmt.Errorf("history is durable up to revision %d, the snapshot is of %d", synced, s.view.Revision())
	}
	if err == nil {
		err = s.view.WriteSnapshot(&sparing{w: sink, c: &s.log.config})
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release has nothing to release: a view is garbage when no one holds it.
func (s *snapshot) Release() {}
