package history

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
)

// A checkpoint is the state at one revision, from which those after it can be
// replayed. History keeps it as bytes, compressed; what is in them, checksums,
// digest and chain value included, is package fsm's. It is written under another
// name and renamed once it is durable: one that exists is whole.
const (
	checkpointSuffix = ".checkpoint"
	// fileMode is that of every file of a history.
	fileMode = 0o640
)

func checkpointName(at log.Revision) string {
	return fmt.Sprintf("%020d%s", uint64(at), checkpointSuffix)
}

func parseCheckpointName(name string) (log.Revision, bool) {
	return parseRevision(name, checkpointSuffix)
}

// Checkpoints lists the revisions of which there is a checkpoint, ascending.
func (h *History) Checkpoints() []log.Revision {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Clone(h.checkpoints)
}

// WriteCheckpoint keeps the state at a revision, which write writes. It may run
// beside appends. After an error there is no such checkpoint.
func (h *History) WriteCheckpoint(at log.Revision, write func(io.Writer) error) error {
	if h.readOnly {
		return fmt.Errorf("history %s: %w", h.dir, errReadOnly)
	}
	path := filepath.Join(h.dir, checkpointName(at))
	err := durable.Replace(path, fileMode, func(w io.Writer) error {
		z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return err
		}
		return errors.Join(write(z), z.Close())
	})
	if err != nil {
		return fmt.Errorf("checkpoint of revision %d: %w", at, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if i, exists := slices.BinarySearch(h.checkpoints, at); !exists {
		h.checkpoints = slices.Insert(h.checkpoints, i, at)
	}
	return nil
}

// OpenCheckpoint reads a checkpoint. The bytes are to be checked by who reads them.
func (h *History) OpenCheckpoint(at log.Revision) (io.ReadCloser, error) {
	if h.meta != nil {
		return h.openExportedState(at)
	}
	f, err := os.Open(filepath.Join(h.dir, checkpointName(at)))
	if errors.Is(err, fs.ErrNotExist) {
		err = &log.CorruptError{Revision: at, What: fmt.Sprintf("checkpoint %s is missing", filepath.Join(h.dir, checkpointName(at)))}
	}
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(bufio.NewReaderSize(f, 1<<16), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &checkpointReader{z, f, filepath.Join(h.dir, checkpointName(at)), at}, nil
}

// checkpointReader names the file in the errors of decompression.
type checkpointReader struct {
	z    *zstd.Decoder
	f    *os.File
	path string
	at   log.Revision
}

func (c *checkpointReader) Read(b []byte) (int, error) {
	n, err := c.z.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &log.CorruptError{Revision: c.at, What: fmt.Sprintf("checkpoint %s: %v; remove it, another one is made", c.path, err)}
	}
	return n, err
}

func (c *checkpointReader) Close() error {
	c.z.Close()
	return c.f.Close()
}

// CheckpointBytes is the size of a checkpoint's file.
func (h *History) CheckpointBytes(at log.Revision) (int64, error) {
	info, err := os.Stat(filepath.Join(h.dir, checkpointName(at)))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// RemoveCheckpoint forgets a checkpoint and removes its file.
func (h *History) RemoveCheckpoint(at log.Revision) error {
	h.mu.Lock()
	if i, exists := slices.BinarySearch(h.checkpoints, at); exists {
		h.checkpoints = slices.Delete(h.checkpoints, i, i+1)
	}
	h.mu.Unlock()
	if err := os.Remove(filepath.Join(h.dir, checkpointName(at))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("checkpoint of revision %d: %w", at, err)
	}
	return nil
}
