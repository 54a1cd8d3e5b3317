package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
)

// The file floor says with which revision the history begins: what is before it was let
// go of, or never was here. Segments that are missing before the first one there is are
// known as lost by it.
//
//	floor = revision u64 | CRC32C of the 8 bytes before u32
const (
	floorFile = "floor"
	floorSize = 8 + 4
)

// readFloor is 0 if there is none, as in directories of older versions, or if what
// there is cannot be read.
func (h *History) readFloor() (log.Revision, error) {
	b, err := os.ReadFile(filepath.Join(h.dir, floorFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(b) != floorSize || log.Checksum(b[:8]) != binary.LittleEndian.Uint32(b[8:]) {
		h.logger.Warn("it cannot be told whether the history has lost its beginning: the file is damaged, and made anew", "file", filepath.Join(h.dir, floorFile))
		return 0, nil
	}
	return log.Revision(binary.LittleEndian.Uint64(b)), nil
}

// setFloor makes the floor durable.
func (h *History) setFloor(first log.Revision) error {
	b := binary.LittleEndian.AppendUint64(nil, uint64(first))
	b = binary.LittleEndian.AppendUint32(b, log.Checksum(b))
	err := durable.Replace(filepath.Join(h.dir, floorFile), fileMode, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
	if err == nil {
		h.floor = first
	}
	return err
}

// checkFloor notes what is missing before the first segment. The beginning of a
// directory without a floor is where its files begin.
func (h *History) checkFloor() (err error) {
	if h.floor, err = h.readFloor(); err != nil || len(h.segments) == 0 {
		return err
	}
	first := h.segments[0].first
	switch {
	case h.floor == 0 && !h.readOnly:
		return h.setFloor(first)
	case h.floor != 0 && h.floor < first:
		h.lose(h.floor, first-1, &log.CorruptError{Revision: h.floor, What: fmt.Sprintf(
			"history %s begins with revision %d, the files before are missing; %s, or, if there is no copy, remove %s: then it begins there",
			h.dir, first, remedyMissing, filepath.Join(h.dir, floorFile))})
	}
	return nil
}
