package history

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/varve-net/varve/log"
)

// markEvery is the distance in bytes between two entries of a plain segment's
// index: a seek reads at most this much in vain, and 64 MiB need 16 KiB of memory.
const markEvery = 64 << 10

// mark says where a record lies, or in a packed segment the block that it begins.
type mark struct {
	revision log.Revision
	offset   int64
}

// segment is one file. A sealed segment does not change, but is replaced by
// another with the same records when it is packed.
type segment struct {
	path string
	header
	// next is the first revision that is not in it, end the offset after its last
	// record. History.mu guards both while this is the last segment. end is 0 in
	// a sealed segment that no one has read yet.
	next log.Revision
	end  int64
	// bad says why nothing can be read from it: its header is damaged.
	bad error
	// exported: it is a file of its own.
	exported bool

	mu      sync.Mutex
	indexed bool   // marks cover the whole segment, or as much as has been appended
	marks   []mark // ascending; in a plain segment at least markEvery bytes apart
}

func (s *segment) name() string { return filepath.Base(s.path) }

// note adds a record to the index if it is far enough from the last mark.
func (s *segment) note(revision log.Revision, offset int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(revision, offset)
}

func (s *segment) noteLocked(revision log.Revision, offset int64) {
	if n := len(s.marks); n == 0 || offset-s.marks[n-1].offset >= markEvery {
		s.marks = append(s.marks, mark{revision, offset})
	}
}

// seek returns a mark at or before the revision, building the index of a sealed
// segment on its first use.
func (s *segment) seek(f *os.File, revision log.Revision) (mark, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.indexed {
		if err := s.buildIndex(f); err != nil {
			return mark{}, err
		}
	}
	i, exact := slices.BinarySearchFunc(s.marks, revision, func(m mark, r log.Revision) int {
		return int(int64(m.revision) - int64(r))
	})
	if !exact {
		i--
	}
	if i < 0 {
		return mark{s.first, headerSize}, nil
	}
	return s.marks[i], nil
}

// buildIndex walks the frames or blocks of a sealed segment. Contents are checked
// when they are read. Where the walk meets damage it goes on with what is whole
// after it: reads of what lies between fail, reads of the rest do not.
func (s *segment) buildIndex(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if s.version == versionPacked {
		err = walkBlocks(f, info.Size(), func(h *blockHeader, offset int64) bool {
			if n := len(s.marks); h.kind == blockRecords && (n == 0 || h.first > s.marks[n-1].revision) {
				s.marks = append(s.marks, mark{h.first, offset})
			}
			return h.kind != blockEnd
		})
	} else {
		err = s.walkFrames(f, info.Size())
	}
	if err != nil {
		return fmt.Errorf("segment %s: %w", s.name(), err)
	}
	s.indexed = true
	return nil
}

func (s *segment) walkFrames(f *os.File, size int64) error {
	return walkWhole(f, headerSize, size, s.first, func(r *log.Record, offset int64, after bool) {
		if after {
			s.marks = append(s.marks, mark{r.Revision, offset})
		} else {
			s.noteLocked(r.Revision, offset)
		}
	})
}

// walkWhole calls fn for each whole record of a plain segment from an offset on whose
// revision is at least next and ascends. after: something lies before it, or is
// missing there, that is none.
func walkWhole(f io.ReaderAt, offset, size int64, next log.Revision, fn func(r *log.Record, offset int64, after bool)) error {
	r := frames{f: f, offset: offset, end: size}
	for {
		offset = r.offset
		frame, problem, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var rec log.Record
		if problem == "" {
			rec, problem = parseRecord(frame)
		}
		switch {
		case problem == "" && rec.Revision >= next:
			fn(&rec, offset, rec.Revision > next)
			next = rec.Revision + 1
			continue
		case problem == "": // one of before, once more
			continue
		}
		rest := make([]byte, size-offset)
		if _, err := f.ReadAt(rest, offset); err != nil {
			return err
		}
		_, at := findRecord(rest, next)
		if at < 0 {
			return nil
		}
		r = frames{f: f, offset: offset + int64(at), end: size}
	}
}
