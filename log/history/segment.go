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

// markEvery is the distance in bytes between two entries of a segment's index:
// a seek reads at most this much in vain, and 64 MiB need 16 KiB of memory.
const markEvery = 64 << 10

// mark says where a record lies.
type mark struct {
	revision log.Revision
	offset   int64
}

// segment is one file. A sealed segment does not change.
type segment struct {
	path string
	header
	// next is the first revision that is not in it, end the offset after its last
	// record. History.mu guards both while this is the last segment. end is 0 in
	// a sealed segment that no one has read yet.
	next log.Revision
	end  int64

	mu      sync.Mutex
	indexed bool   // marks cover the whole segment, or as much as has been appended
	marks   []mark // ascending, at least markEvery bytes apart
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

// seek returns the offset of a record at or before the revision, building the
// index of a sealed segment on its first use.
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

// buildIndex walks the frames of a sealed segment. Contents are checked when
// they are read.
func (s *segment) buildIndex(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r := frames{f: f, offset: headerSize, end: info.Size()}
	revision := s.first
	for ; ; revision++ {
		offset := r.offset
		_, problem, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("segment %s: %w", s.name(), err)
		}
		if problem != "" {
			return s.corrupt(offset, revision, problem)
		}
		s.noteLocked(revision, offset)
	}
	if revision != s.next {
		return s.corrupt(r.end, revision, fmt.Sprintf("segment ends before revision %d, the next segment begins at %d", revision, s.next))
	}
	s.indexed = true
	return nil
}

// frames reads a segment's records in large pieces.
type frames struct {
	f      *os.File
	offset int64 // of the next frame
	end    int64 // no frame begins here or later
	buf    []byte
	unread []byte // part of buf, what lies at offset
}

// readAhead is how much a cursor reads at once.
const readAhead = 256 << 10

// fill makes at least n bytes available in unread, if the segment has them.
func (r *frames) fill(n int) error {
	if len(r.unread) >= n {
		return nil
	}
	want := max(n, readAhead)
	if left := r.end - r.offset; int64(want) > left {
		want = int(left)
	}
	if cap(r.buf) < want {
		grown := make([]byte, want)
		copy(grown, r.unread)
		r.buf = grown
	} else {
		r.buf = r.buf[:cap(r.buf)][:want]
		copy(r.buf, r.unread)
	}
	have := len(r.unread)
	r.buf = r.buf[:want]
	got, err := r.f.ReadAt(r.buf[have:], r.offset+int64(have))
	r.unread = r.buf[:have+got]
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// next returns a whole frame, valid until the following call. io.EOF at the end;
// a problem, in words, if no frame lies there.
func (r *frames) next() (frame []byte, problem string, err error) {
	left := r.end - r.offset
	if left == 0 {
		return nil, "", io.EOF
	}
	if left < frameSize {
		return nil, fmt.Sprintf("%d bytes where a record begins", left), nil
	}
	if err := r.fill(frameSize); err != nil {
		return nil, "", err
	}
	if len(r.unread) < frameSize {
		return nil, "the file ends within a record", nil
	}
	n, ok := bodyLength(r.unread)
	if !ok {
		return nil, fmt.Sprintf("no record has a length of %d bytes", n), nil
	}
	size := frameSize + n
	if int64(size) > left {
		return nil, fmt.Sprintf("a record of %d bytes where %d are left", size, left), nil
	}
	if err := r.fill(size); err != nil {
		return nil, "", err
	}
	if len(r.unread) < size {
		return nil, "the file ends within a record", nil
	}
	frame = r.unread[:size:size]
	r.unread = r.unread[size:]
	r.offset += int64(size)
	return frame, "", nil
}
