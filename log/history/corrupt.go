package history

import (
	"fmt"

	"github.com/varve-net/varve/log"
)

// remedy is what an operator can do about damage. A history is not rebuilt from
// the Raft log: that has been compacted.
const remedy = "restore this file from a copy of the directory; do not delete it, revisions after it need its chain"

// corrupt names what is wrong at an offset of a segment, and the revision that
// should be there.
func (s *segment) corrupt(offset int64, revision log.Revision, problem string) error {
	what, remedy := "history segment", remedy
	if s.exported {
		what, remedy = "exported file", "take another copy of it"
	}
	return &log.CorruptError{
		Revision: revision,
		What:     fmt.Sprintf("%s %s at offset %d: %s; %s", what, s.path, offset, problem, remedy),
	}
}
