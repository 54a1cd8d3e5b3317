package cluster

import (
	"time"

	"github.com/hashicorp/raft"
)

// A cluster of one has no one to wait for: these are the intervals in which a
// lone server notices that nobody leads and elects itself. It is asked to at its
// start, so they only matter if that request is lost.
const (
	loneElection = 50 * time.Millisecond
	// loneCommit is how long an idle leader waits before it tells followers of its
	// commit index; there are none.
	loneCommit = time.Second
)

// RaftConfig is the Raft configuration of a cluster of one. Logger and the
// settings of snapshots are left to log/raftlog.
func RaftConfig(id Identity) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(id.ServerID)
	c.HeartbeatTimeout = loneElection
	c.ElectionTimeout = loneElection
	c.LeaderLeaseTimeout = loneElection
	c.CommitTimeout = loneCommit
	// A batch of entries to apply at restart; at run time one is in flight.
	c.MaxAppendEntries = 64
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	return c
}
