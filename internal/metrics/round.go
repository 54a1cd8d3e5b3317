package metrics

import (
	"time"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// Round is one attempt to bring the kernel to a revision.
type Round struct {
	Revision log.Revision
	// JournalSeq is that of the newest fact of the node's own in it.
	JournalSeq uint64
	// Build is the time the tables took; Sync that of writing the difference,
	// which does not happen (0) if the tables could not be built.
	Build, Sync time.Duration
	Ended       time.Time
	Tables      *projections.Tables // nil if they could not be built; valid during the call
	Stats       dataplane.Stats
	Err         error // why Revision is not in force
}
