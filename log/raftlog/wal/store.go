package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"
)

// ErrGap is returned for entries that do not follow the last one. Raft stores none
// such: what it takes from another server after a snapshot begins an empty log.
var ErrGap = errors.New("entry does not follow the last one")

// errClosed is what there is to say after Close.
var errClosed = errors.New("the Raft log is closed")

// maxFrame is the size from which entries that are stored at once are spread over
// several frames, each durable before the next one.
const maxFrame = 1 << 20

// maxBuffer is the largest buffer that is kept for the next frame.
const maxBuffer = 1 << 20

// Store is Raft's log. All methods may be called from any goroutine.
type Store struct {
	dir    string
	logger *slog.Logger
	sizes  sizes

	mu       sync.RWMutex
	segments []*segment // the last one is written to
	next     *spare
	first    uint64 // index of index[0]
	index    []place
	buffer   []byte
	broken   error // what a write met: what lies at the end is not known any more
}

// place is where an entry's frame begins.
type place struct {
	segment *segment
	offset  int64
	first   uint64 // of the frame
}

var (
	_ raft.LogStore          = (*Store)(nil)
	_ raft.MonotonicLogStore = (*Store)(nil)
)

// IsMonotonic tells Raft that indexes have no gaps, so that it removes what there
// is before it goes on behind a snapshot of another server.
func (s *Store) IsMonotonic() bool { return true }

// FirstIndex is 0 for no entries.
func (s *Store) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.index) == 0 {
		return 0, s.closed()
	}
	return s.first, s.closed()
}

// LastIndex is 0 for no entries.
func (s *Store) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.index) == 0 {
		return 0, s.closed()
	}
	return s.lastIndex(), s.closed()
}

func (s *Store) closed() error {
	if errors.Is(s.broken, errClosed) {
		return s.broken
	}
	return nil
}

func (s *Store) lastIndex() uint64 { return s.first + uint64(len(s.index)) - 1 }

// GetLog reads an entry and checks its checksum again. The error is
// raft.ErrLogNotFound if there is none of that index.
func (s *Store) GetLog(index uint64, entry *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.closed(); err != nil {
		return err
	}
	if len(s.index) == 0 || index < s.first || index > s.lastIndex() {
		return raft.ErrLogNotFound
	}
	at := s.index[index-s.first]
	head := make([]byte, frameSize)
	if _, err := at.segment.file.ReadAt(head, at.offset); err != nil {
		return err
	}
	size := padded(frameSize + int(binary.LittleEndian.Uint32(head[4:])))
	if at.offset+int64(size) > at.segment.size {
		return corruptf(at.segment.path, "offset %d, entry %d: a frame of %d bytes", at.offset, index, size)
	}
	b := make([]byte, size)
	if _, err := at.segment.file.ReadAt(b, at.offset); err != nil {
		return err
	}
	f, _, problem := parseFrame(b, at.segment.salt)
	if problem == "" && (f.kind != kindEntries || f.first != at.first || !f.entry(index, entry)) {
		problem = "the frame is another one"
	}
	if problem != "" {
		return corruptf(at.segment.path, "offset %d, entry %d: %s", at.offset, index, problem)
	}
	return nil
}

// StoreLog is StoreLogs of one entry.
func (s *Store) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs makes entries durable. After an error of a write nothing more is
// stored: only the next Open knows what the disk has of it. A segment that cannot
// be made is no such error, and the next call tries again.
func (s *Store) StoreLogs(entries []*raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(entries) > 0 {
		n, size := 1, sizeOf(entries[0])
		for n < len(entries) && size+sizeOf(entries[n]) <= maxFrame {
			size += sizeOf(entries[n])
			n++
		}
		if err := s.storeFrame(entries[:n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func (s *Store) storeFrame(entries []*raft.Log) error {
	first := entries[0].Index
	if len(s.index) > 0 && first != s.lastIndex()+1 {
		return fmt.Errorf("entry %d: %w, which is %d", first, ErrGap, s.lastIndex())
	}
	b := beginFrame(s.buffer[:0], kindEntries, first, len(entries))
	for i, e := range entries {
		if e.Index != first+uint64(i) {
			return fmt.Errorf("entry %d after entry %d: %w", e.Index, first+uint64(i)-1, ErrGap)
		}
		b = appendEntry(b, e)
	}
	seg, offset, err := s.write(b)
	if err != nil {
		return err
	}
	s.note(seg, offset, first, len(entries))
	return nil
}

// write finishes a frame and makes it durable. It says where the frame lies.
func (s *Store) write(b []byte) (*segment, int64, error) {
	if s.buffer = b[:0]; cap(b) > maxBuffer {
		s.buffer = nil
	}
	if s.broken != nil {
		return nil, 0, s.broken
	}
	seg, err := s.room(padded(len(b)))
	if err != nil {
		return nil, 0, err
	}
	offset := seg.end
	if err := seg.write(endFrame(b, seg.salt)); err != nil {
		s.broken = fmt.Errorf("the Raft log takes nothing more until it is opened again: %w", err)
		return nil, 0, err
	}
	return seg, offset, nil
}

// room returns the last segment, or another one behind it if a frame of a size does
// not fit any more.
func (s *Store) room(size int) (*segment, error) {
	seg := s.segments[len(s.segments)-1]
	if seg.room(size) {
		return seg, nil
	}
	return s.roll(size)
}

// roll goes on to a new segment that takes a frame of a size.
func (s *Store) roll(size int) (*segment, error) {
	least := int64(headerSize + size)
	next, err := s.next.take(least)
	if next == nil { // there was no space when it was prepared, or it is too small
		next, err = makeSegment(s.dir, s.segments[len(s.segments)-1].number+1, max(s.nextSize(), least))
	}
	if err != nil {
		s.prepare()
		return nil, err
	}
	if err := next.adopt(); err != nil {
		err = errors.Join(err, next.file.Close())
		s.broken = fmt.Errorf("the Raft log takes nothing more until it is opened again: %w", err)
		return nil, err
	}
	s.segments = append(s.segments, next)
	s.prepare()
	return next, nil
}

// prepare begins to make the segment after the last one.
func (s *Store) prepare() {
	s.next = prepare(s.dir, s.segments[len(s.segments)-1].number+1, s.nextSize())
}

func (s *Store) nextSize() int64 {
	return min(2*s.segments[len(s.segments)-1].size, s.sizes.most)
}

// note adds the entries of a frame to the index.
func (s *Store) note(seg *segment, offset int64, first uint64, count int) {
	if len(s.index) == 0 {
		s.first = first
	}
	for range count {
		s.index = append(s.index, place{seg, offset, first})
	}
}

// cut drops entries from an index on.
func (s *Store) cut(from uint64) {
	if len(s.index) > 0 && from <= s.lastIndex() {
		s.index = s.index[:max(from, s.first)-s.first]
	}
}

// DeleteRange removes entries, both ends included, at the front of the log or at
// its end, or all. What goes at the end is durably gone. At the front whole
// segments go, so that after a restart there may be more than before.
func (s *Store) DeleteRange(low, high uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.index) == 0 || high < s.first || low > s.lastIndex() || low > high:
		return nil
	case low <= s.first && high >= s.lastIndex():
		return s.deleteAll()
	case low <= s.first:
		return s.deleteFront(high + 1)
	case high >= s.lastIndex():
		if _, _, err := s.write(beginFrame(s.buffer[:0], kindTruncation, low, 0)); err != nil {
			return err
		}
		s.cut(low)
		return nil
	default:
		return fmt.Errorf("delete entries %d to %d of %d to %d: neither at the front nor at the end", low, high, s.first, s.lastIndex())
	}
}

// deleteFront drops entries before an index, and the segments that no other entry
// is in.
func (s *Store) deleteFront(from uint64) error {
	// A copy, so that what is dropped can be freed.
	s.index = append([]place(nil), s.index[from-s.first:]...)
	s.first = from
	n := 0
	for s.segments[n] != s.index[0].segment {
		n++
	}
	return s.removeSegments(n)
}

// deleteAll goes on in a new segment, and removes every other.
func (s *Store) deleteAll() error {
	if s.broken != nil {
		return s.broken
	}
	if _, err := s.roll(0); err != nil {
		return err
	}
	s.index, s.first = nil, 0
	return s.removeSegments(len(s.segments) - 1)
}

// removeSegments removes the first n. If one cannot be removed, the next call
// tries again: segments have no gaps.
func (s *Store) removeSegments(n int) error {
	for ; n > 0; n-- {
		if err := s.segments[0].remove(); err != nil {
			return err
		}
		s.segments = s.segments[1:]
	}
	return nil
}

// Close says at the end of the log that it was closed in order, and lets go of it.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed() != nil {
		return nil
	}
	var err error
	// No room for it is no reason to make a segment.
	if s.broken == nil && s.segments[len(s.segments)-1].room(frameSize) {
		_, _, err = s.write(beginFrame(s.buffer[:0], kindClosing, s.lastIndex()+1, 0))
	}
	s.broken = errClosed
	return errors.Join(err, s.letGo())
}

// letGo closes all files.
func (s *Store) letGo() error {
	var errs []error
	if s.next != nil {
		errs = append(errs, s.next.discard())
	}
	for _, seg := range s.segments {
		errs = append(errs, seg.file.Close())
	}
	return errors.Join(errs...)
}
