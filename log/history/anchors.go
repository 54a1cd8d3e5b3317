package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/varve-net/varve/log"
)

// Anchors tell a segment of this log from one of another that lies under its name:
// the chain value before each, noted a second time when it is begun. A segment's own
// records show that they belong together; only a neighbour shows that they belong here,
// and that may be lost.
//
//	anchor = first revision u64 | chain before it [32] | CRC32C of the 40 bytes before u32
const (
	anchorsFile = "anchors"
	anchorSize  = 8 + 32 + 4
)

// readAnchors reads those that are whole. Without any, neighbours have to do.
func (h *History) readAnchors() (map[log.Revision]log.Hash, error) {
	b, err := os.ReadFile(filepath.Join(h.dir, anchorsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	anchors := map[log.Revision]log.Hash{}
	for ; len(b) >= anchorSize; b = b[anchorSize:] {
		if log.Checksum(b[:anchorSize-4]) == binary.LittleEndian.Uint32(b[anchorSize-4:]) {
			anchors[log.Revision(binary.LittleEndian.Uint64(b))] = log.Hash(b[8:40])
		}
	}
	return anchors, nil
}

// anchor notes the chain value before a segment.
func (h *History) anchor(first log.Revision, before log.Hash) error {
	f, err := os.OpenFile(filepath.Join(h.dir, anchorsFile), os.O_WRONLY|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	end, err := f.Seek(0, 2)
	if err == nil {
		b := binary.LittleEndian.AppendUint64(nil, uint64(first))
		b = append(b, before[:]...)
		b = binary.LittleEndian.AppendUint32(b, log.Checksum(b))
		_, err = f.WriteAt(b, end-end%anchorSize) // over one that was cut off
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// anchorOrSay is anchor where it is no reason to stop: it is made up for by Open.
func (h *History) anchorOrSay(first log.Revision, before log.Hash) {
	if err := h.anchor(first, before); err != nil {
		h.logger.Warn("a history segment is not anchored; the next start does it", "revision", first, "error", err)
	}
}

// checkAnchors has nothing read from sealed segments that are of another log, and
// anchors those that are not.
func (h *History) checkAnchors() error {
	anchors, err := h.readAnchors()
	if err != nil {
		return err
	}
	for i, seg := range h.segments {
		if seg.bad != nil {
			continue
		}
		before, known := anchors[seg.first]
		switch {
		case !known && !h.readOnly:
			h.anchorOrSay(seg.first, seg.before)
		case known && before != seg.before && i < len(h.segments)-1:
			seg.bad = seg.corrupt(0, seg.first, fmt.Sprintf("header continues chain %s, the segment that was begun here continues %s: it is of another log", seg.before, before))
			h.lose(seg.first, seg.next-1, seg.bad)
		}
	}
	return nil
}
