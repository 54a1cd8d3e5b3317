package raftlog

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/log"
)

// freeBytes is what an unprivileged process may still write to the file system
// of a directory.
func freeBytes(dir string) (uint64, error) {
	var s unix.Statfs_t
	for {
		err := unix.Statfs(dir, &s)
		if err == nil {
			return s.Bavail * uint64(s.Frsize), nil
		}
		if err != unix.EINTR {
			return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
		}
	}
}

// checkSpace refuses with log.ErrNoSpace if fewer bytes are free than must be.
func (c *Config) checkSpace(reserve uint64) error {
	free, err := c.FreeBytes()
	if err != nil {
		return err
	}
	if free < reserve {
		return fmt.Errorf("%s: %d bytes free, %d must remain; free some space and the log goes on by itself: %w",
			c.Dir, free, reserve, log.ErrNoSpace)
	}
	return nil
}

// CheckSpace is log.ErrNoSpace while appends are refused because fewer bytes are free
// than must be.
func (l *Log) CheckSpace() error { return l.config.checkSpace(l.config.ReserveBytes) }

// Sparing is a writer to w that fails with log.ErrNoSpace before it uses up what
// Raft needs.
func (l *Log) Sparing(w io.Writer) io.Writer { return &sparing{w: w, c: &l.config} }

// sparing writes to w and looks at free space as it goes, so that a large
// snapshot cannot use up what Raft needs.
type sparing struct {
	w       io.Writer
	c       *Config
	unknown int // bytes that may be written before the next look
}

const spareStep = 1 << 20

func (s *sparing) Write(p []byte) (int, error) {
	if s.unknown < len(p) {
		if err := s.c.checkSpace(s.c.ReserveBytes / 2); err != nil {
			return 0, err
		}
		s.unknown = max(spareStep, len(p))
	}
	s.unknown -= len(p)
	return s.w.Write(p)
}
