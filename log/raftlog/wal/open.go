package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/varve-net/varve/log"
)

// Open opens the store in a directory, or creates an empty one. Nobody else may
// have it open: the caller holds a lock. The error wraps a *log.CorruptError, which
// names a remedy, for what no crash leaves behind.
func Open(dir string, logger *slog.Logger) (*Store, error) { return open(dir, logger, defaultSizes) }

func open(dir string, logger *slog.Logger, sizes sizes) (_ *Store, err error) {
	s := &Store{dir: dir, logger: logger, sizes: sizes}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.letGo())
		}
	}()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	if err := removeNew(dir); err != nil {
		return nil, err
	}
	numbers, err := list(dir)
	if err != nil {
		return nil, err
	}
	for i, number := range numbers {
		path := filepath.Join(dir, segmentName(number))
		if i > 0 && number != numbers[i-1]+1 {
			return nil, corruptf(filepath.Join(dir, segmentName(numbers[i-1]+1)), "is missing, but %s exists", filepath.Base(path))
		}
		if err := s.openSegment(path, number, i == len(numbers)-1); err != nil {
			return nil, err
		}
	}
	if len(numbers) == 0 {
		first, err := makeSegment(dir, 1, sizes.first)
		if err != nil {
			return nil, err
		}
		s.segments = append(s.segments, first)
		if err := first.adopt(); err != nil {
			return nil, err
		}
	}
	s.prepare()
	return s, nil
}

// list is the numbers of a directory's segments, in order.
func list(dir string) ([]uint64, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, f := range files {
		if n, ok := parseName(f.Name()); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// openSegment reads a segment in full.
func (s *Store) openSegment(path string, number uint64, last bool) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	seg := &segment{path: path, number: number, file: f, end: headerSize}
	s.segments = append(s.segments, seg)
	info, err := f.Stat()
	if err != nil {
		return err
	}
	seg.size = info.Size()
	b := make([]byte, seg.size)
	if _, err := io.ReadFull(f, b); err != nil {
		return err
	}
	h, problem := parseHeader(b)
	switch {
	case problem != "":
		return corruptf(path, "%s", problem)
	case h.version != version:
		return fmt.Errorf("%s: format version %d, this varve reads %d: %w", path, h.version, version, log.ErrUpgradeNeeded)
	case h.number != number:
		return corruptf(path, "header says that it is segment %d", h.number)
	case h.size != uint64(seg.size):
		return corruptf(path, "has %d bytes and should have %d", seg.size, h.size)
	}
	seg.salt = h.salt
	for {
		f, size, problem := parseFrame(b[seg.end:], seg.salt)
		if problem != "" {
			return s.openEnd(seg, b[seg.end:], last, problem)
		}
		if problem = s.replay(seg, f); problem != "" {
			return corruptf(path, "offset %d: %s", seg.end, problem) // the CRC is right: no crash writes this
		}
		seg.end += int64(size)
	}
}

// replay brings the index up to date with a frame of the newest segment. It says
// what is wrong, or nothing.
func (s *Store) replay(seg *segment, f frame) string {
	switch f.kind {
	case kindEntries:
		if next := s.lastIndex() + 1; len(s.index) > 0 && f.first != next {
			return fmt.Sprintf("holds entry %d, should hold %d", f.first, next)
		}
		s.note(seg, seg.end, f.first, f.count)
	case kindTruncation:
		if len(s.index) > 0 && f.first > s.lastIndex() {
			return fmt.Sprintf("takes back entry %d, the last is %d", f.first, s.lastIndex())
		}
		s.cut(f.first)
	}
	return ""
}

// openEnd takes the bytes behind the last whole frame of a segment for zeros, or
// for the remains of the last write, which it replaces by zeros.
func (s *Store) openEnd(seg *segment, rest []byte, last bool, problem string) error {
	used := len(bytes.TrimRight(rest, "\x00"))
	if used == 0 {
		return nil
	}
	next := s.lastIndex() + 1
	if !last {
		return corruptf(seg.path, "offset %d, entry %d: %s, yet a segment follows it, so this is no torn end", seg.end, next, problem)
	}
	if at := findFrame(rest, seg.salt); at >= 0 {
		return corruptf(seg.path, "offset %d, entry %d: %s, yet a frame lies whole at offset %d, so this is no torn end", seg.end, next, problem, seg.end+int64(at))
	}
	if _, err := seg.file.WriteAt(make([]byte, used), seg.end); err != nil {
		return err
	}
	if err := fdatasync(seg.file); err != nil {
		return err
	}
	s.logger.Warn("removed the torn end of the Raft log", "segment", seg.path, "offset", seg.end, "bytes", used, "entry", next, "problem", problem)
	return nil
}

// findFrame looks for a whole frame anywhere but at the start of b; -1 if there is
// none.
func findFrame(b []byte, salt uint64) int {
	for i := align; i+frameSize <= len(b); i += align {
		if binary.LittleEndian.Uint32(b[i:]) == 0 && binary.LittleEndian.Uint32(b[i+4:]) == 0 {
			continue
		}
		if _, _, problem := parseFrame(b[i:], salt); problem == "" {
			return i
		}
	}
	return -1
}

func corruptf(path, format string, args ...any) error {
	return &log.CorruptError{What: fmt.Sprintf("Raft log %s: %s; restore the directory from a copy", path, fmt.Sprintf(format, args...))}
}
