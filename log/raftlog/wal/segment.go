package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/internal/durable"
)

// sizes of segments: the first one's, and what doubling ends at.
type sizes struct{ first, most int64 }

// defaultSizes let an idle node take little of the disk and of the time of a start,
// and a busy one make a segment once a second at most.
var defaultSizes = sizes{1 << 20, 16 << 20}

// segment is an open file. Its frames end at end; from there on it is zeros.
type segment struct {
	path   string
	number uint64
	salt   uint64
	size   int64
	file   *os.File
	end    int64
}

// room tells whether a frame fits behind those that are there.
func (s *segment) room(n int) bool { return s.end+int64(n) <= s.size }

// write makes a frame durable.
func (s *segment) write(frame []byte) error {
	if _, err := s.file.WriteAt(frame, s.end); err != nil {
		return err
	}
	if err := fdatasync(s.file); err != nil {
		return err
	}
	s.end += int64(len(frame))
	return nil
}

// fdatasync is enough: the file's size and blocks were there before.
func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

// zeros is what a segment is filled with, a piece at a time.
var zeros [256 << 10]byte

// makeSegment writes a segment of zeros under a name that Open ignores.
func makeSegment(dir string, number uint64, size int64) (s *segment, err error) {
	var salt [8]byte
	rand.Read(salt[:])
	s = &segment{path: filepath.Join(dir, segmentName(number)), number: number, salt: binary.LittleEndian.Uint64(salt[:]), size: size, end: headerSize}
	s.file, err = os.OpenFile(s.path+newSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return nil, err
	}
	_, err = s.file.Write(appendHeader(nil, header{number: number, salt: s.salt, size: uint64(size)}))
	for at := int64(headerSize); err == nil && at < size; {
		n := min(int64(len(zeros)), size-at)
		_, err = s.file.Write(zeros[:n])
		at += n
	}
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, s.discard())
	}
	return s, nil
}

// adopt gives a segment that was made its name.
func (s *segment) adopt() error {
	if err := os.Rename(s.path+newSuffix, s.path); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(s.path)); err != nil {
		return err
	}
	// Errors name the file by what it is called.
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = s.file.Close()
	s.file = f
	return err
}

// discard removes a segment that has no name yet.
func (s *segment) discard() error {
	return errors.Join(s.file.Close(), os.Remove(s.path+newSuffix))
}

// remove deletes a segment.
func (s *segment) remove() error {
	err := os.Remove(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, s.file.Close())
}

// a spare is the next segment, while it is being made.
type spare struct {
	done    chan struct{}
	segment *segment
	err     error
}

// prepare begins to make a segment.
func prepare(dir string, number uint64, size int64) *spare {
	s := &spare{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.segment, s.err = makeSegment(dir, number, size)
	}()
	return s
}

// take waits for the segment and returns it if it is of a size at least.
func (s *spare) take(size int64) (*segment, error) {
	<-s.done
	if s.err != nil || s.segment.size >= size {
		return s.segment, s.err
	}
	return nil, s.segment.discard()
}

func (s *spare) discard() error {
	<-s.done
	if s.err != nil {
		return nil // there is none
	}
	return s.segment.discard()
}

// removeNew removes what a crash left of segments that were being made.
func removeNew(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix+newSuffix))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("segment that was being made: %w", err)
		}
	}
	return nil
}
