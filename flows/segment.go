package flows

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const suffix = ".flows"

// segment is a file of blocks.
type segment struct {
	path             string
	name             int64 // nanoseconds of its first block's beginning, in its file name
	end              int64 // of what is readable
	fromNS, toNS     int64 // of its blocks; 0: it has none
	lost, overflowed uint64
	torn             bool   // it ends within a frame
	damage           string // what is wrong at end, if it is no torn end
}

func segmentName(fromNS int64) string { return fmt.Sprintf("%020d%s", fromNS, suffix) }

func (s *segment) note(b *block) {
	if s.fromNS == 0 || b.fromNS < s.fromNS {
		s.fromNS = b.fromNS
	}
	s.toNS = max(s.toNS, b.toNS)
	s.lost += b.lost
	s.overflowed += b.overflowed
}

// scanDir reads all segments of a directory, by age.
func scanDir(dir string) ([]*segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []*segment
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || len(digits) != 20 {
			continue
		}
		name, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			continue
		}
		s := &segment{path: filepath.Join(dir, e.Name()), name: name}
		if err := s.scan(); err != nil {
			return nil, fmt.Errorf("segment %s: %w", s.path, err)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *segment) int { return strings.Compare(a.path, b.path) })
	return out, nil
}

// scan reads the whole segment, and notes where it ends and what is wrong there.
// The error is of the machine, not of the file.
func (s *segment) scan() error {
	info, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	err = s.read(info.Size(), func(b *block, end int64) error {
		s.end = end
		s.note(b)
		return nil
	})
	s.end = max(s.end, min(headerSize, info.Size()))
	problem, isProblem := errors.AsType[*problemError](err)
	if !isProblem {
		return err
	}
	if s.torn = problem.torn; !s.torn {
		s.damage = problem.what
	}
	return nil
}

// problemError is of a segment whose bytes are not what was written.
type problemError struct {
	offset int64
	what   string
	torn   bool // the bytes end too early, as a crash leaves them
}

func (e *problemError) Error() string { return fmt.Sprintf("at offset %d: %s", e.offset, e.what) }

// read calls fn for each block up to an offset, with the offset of its end.
func (s *segment) read(until int64, fn func(b *block, end int64) error) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(io.NewSectionReader(f, 0, until), 1<<16)
	var head [headerSize]byte
	if n, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return &problemError{0, fmt.Sprintf("the header has %d bytes", n), true}
		}
		return err
	}
	if err := checkHeader(head[:]); err != nil {
		return &problemError{0, err.Error(), false}
	}
	at := int64(headerSize)
	var frame []byte
	for {
		frame = slices.Grow(frame[:0], frameSize)[:frameSize]
		n, err := io.ReadFull(r, frame)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return &problemError{at, fmt.Sprintf("%d bytes of a frame", n), true}
		case err != nil:
			return err
		}
		size := int64(binary.LittleEndian.Uint32(frame))
		if size > maxBody {
			return &problemError{at, fmt.Sprintf("a block claims %d bytes", size), false}
		}
		if at+frameSize+size > until {
			return &problemError{at, "the last block is cut off", true}
		}
		frame = slices.Grow(frame, int(size))[:frameSize+size]
		if _, err := io.ReadFull(r, frame[frameSize:]); err != nil {
			return err
		}
		end := at + int64(len(frame))
		if got, want := frameCRC(frame), binary.LittleEndian.Uint32(frame[4:]); got != want {
			// The last frame's bytes may be of a write that a crash of the machine
			// left half done.
			return &problemError{at, fmt.Sprintf("CRC is %08x and should be %08x", got, want), end == until}
		}
		b, err := decodeBlock(frame[frameSize:])
		if err != nil {
			return &problemError{at, err.Error(), false}
		}
		if err := fn(b, end); err != nil {
			return err
		}
		at = end
	}
}
