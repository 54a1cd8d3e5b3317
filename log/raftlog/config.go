package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"github.com/varve-net/varve/log"
)

// Config says where a Log lives and how it behaves. The zero value of an
// optional field means its default.
type Config struct {
	// Dir holds everything: raft.db, wal/, snapshots/, history/ and LOCK. It is created
	// if need be.
	Dir string
	// Cluster is the cluster's name; the state's digests and snapshots carry it.
	Cluster string
	// Raft says who this server is (LocalID) and how long it waits for others;
	// cluster.RaftConfig makes it. Its logger and what it says of snapshots are
	// replaced by the fields below.
	Raft *raft.Config
	// Logger takes what this package and Raft have to say; optional.
	Logger *slog.Logger

	// SnapshotThreshold is how many Raft entries there must be since the last
	// snapshot for the next one to be made; default 8192. An entry holds up to
	// MaxBatchEvents events.
	SnapshotThreshold uint64
	// SnapshotInterval is how often that is looked at; default 30 s. Raft waits
	// for one to two times as long.
	SnapshotInterval time.Duration
	// TrailingLogs is how many entries before a snapshot are kept; default 1024.
	// NoTrailingLogs keeps none.
	TrailingLogs   uint64
	NoTrailingLogs bool

	// Linger is how long a proposal waits for others, and only if the one before
	// it held several or several wait already; default 100 us. Negative: never.
	Linger time.Duration
	// MaxBatchEvents and MaxBatchBytes bound one Raft entry, and so what one
	// Append may be given; defaults 4096 events and log.MaxBatchBytes.
	MaxBatchEvents int
	MaxBatchBytes  int

	// SegmentBytes is when a segment of history is sealed and the next one begun;
	// default 64 MiB.
	SegmentBytes int64

	// ReserveBytes of free disk space are left alone: below it, appends are
	// refused with log.ErrNoSpace, so that Raft itself can always write. Default
	// 64 MiB.
	ReserveBytes uint64
	// FreeBytes is the free space of the directory's file system; default: ask
	// statfs.
	FreeBytes func() (uint64, error)
	// Observe, if set, is told of every entry, one after the other, just before its
	// requests are answered. Entries wait for it.
	Observe func(Commit)
	// Clock gives nanoseconds since the Unix epoch: the only clock that enters the
	// log. Default: the system's.
	Clock func() int64
}

// Commit is what became of one Raft entry.
type Commit struct {
	Events int
	// Took is the time from proposing it to its being durable and applied.
	Took time.Duration
	// Results are those of its events, in order; nil with an error. Read only.
	Results []log.Result
	Err     error
}

const (
	defaultSnapshotThreshold = 8192
	defaultSnapshotInterval  = 30 * time.Second
	defaultTrailingLogs      = 1024
	defaultLinger            = 100 * time.Microsecond
	defaultMaxBatchEvents    = 4096
	// defaultReserve is many times what the largest batch takes in wal/ and in history
	// together, and room for the next segments of both.
	defaultReserve = 64 << 20
)

// withDefaults checks a Config and fills in what it leaves open.
func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Dir == "":
		return c, errors.New("Dir: empty; name a directory")
	case c.Cluster == "":
		return c, errors.New("Cluster: empty; name the cluster")
	case c.Raft == nil:
		return c, errors.New("Raft: nil; use cluster.RaftConfig")
	case c.MaxBatchEvents < 0:
		return c, fmt.Errorf("MaxBatchEvents: %d; must not be negative", c.MaxBatchEvents)
	case c.MaxBatchBytes < 0 || c.MaxBatchBytes > log.MaxBatchBytes:
		return c, fmt.Errorf("MaxBatchBytes: %d; must be from 1 to %d", c.MaxBatchBytes, log.MaxBatchBytes)
	}
	setDefault(&c.SnapshotThreshold, defaultSnapshotThreshold)
	setDefault(&c.SnapshotInterval, defaultSnapshotInterval)
	setDefault(&c.TrailingLogs, defaultTrailingLogs)
	setDefault(&c.Linger, defaultLinger)
	setDefault(&c.MaxBatchEvents, defaultMaxBatchEvents)
	setDefault(&c.MaxBatchBytes, log.MaxBatchBytes)
	setDefault(&c.ReserveBytes, defaultReserve)
	if c.NoTrailingLogs {
		c.TrailingLogs = 0
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = func() int64 { return time.Now().UnixNano() }
	}
	if c.FreeBytes == nil {
		dir := c.Dir
		c.FreeBytes = func() (uint64, error) { return freeBytes(dir) }
	}
	rc := *c.Raft
	rc.Logger = newLogger(c.Logger)
	rc.SnapshotThreshold = c.SnapshotThreshold
	rc.SnapshotInterval = c.SnapshotInterval
	rc.TrailingLogs = c.TrailingLogs
	c.Raft = &rc
	if err := raft.ValidateConfig(c.Raft); err != nil {
		return c, fmt.Errorf("Raft: %w", err)
	}
	return c, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
