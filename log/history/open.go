package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
)

// open lists the segments, and reads the last one in full.
func (h *History) open() error {
	if !h.readOnly {
		if err := os.MkdirAll(h.dir, 0o750); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return err
	}
	var firsts []log.Revision
	for _, e := range entries {
		if first, ok := parseName(e.Name()); ok {
			firsts = append(firsts, first)
		}
		if at, ok := parseCheckpointName(e.Name()); ok {
			h.checkpoints = append(h.checkpoints, at)
		}
		// A crash leaves what was being written.
		if strings.HasSuffix(e.Name(), durable.Unfinished) && !h.readOnly {
			if err := os.Remove(filepath.Join(h.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	slices.Sort(firsts)
	slices.Sort(h.checkpoints)
	for i, first := range firsts {
		seg := &segment{path: filepath.Join(h.dir, segmentName(first))}
		if i < len(firsts)-1 {
			seg.next = firsts[i+1]
			err = h.openSealed(seg, first)
		} else {
			err = h.openLast(seg, first)
		}
		if err != nil {
			return err
		}
	}
	if err := h.checkAnchors(); err != nil {
		return err
	}
	if err := h.checkFloor(); err != nil {
		return err
	}
	if len(h.segments) > 0 && !h.readOnly {
		// What the process before left in the page cache is durable from here on.
		h.synced = h.segments[0].first - 1
		return h.syncLocked()
	}
	return nil
}

// openSealed reads a segment's header. Damage to it keeps what is in this segment
// from being read, and nothing else.
func (h *History) openSealed(seg *segment, first log.Revision) error {
	f, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	defer f.Close()
	seg.header, err = readHeader(f, seg.path, first)
	if errors.Is(err, log.ErrCorrupt) {
		seg.first, seg.bad = first, err
		h.lose(first, seg.next-1, err)
	} else if err != nil {
		return err
	}
	h.segments = append(h.segments, seg)
	return nil
}

// readHeader reads and checks the header of a segment file.
func readHeader(f io.ReaderAt, path string, first log.Revision) (header, error) {
	b := make([]byte, headerSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return header{}, err
	}
	head, problem := parseHeader(b[:n])
	if problem == "" && (head.version == 0 || head.version > versionPacked) {
		return header{}, fmt.Errorf("segment %s: format version %d, this varve reads %d: %w", path, head.version, versionPacked, log.ErrUpgradeNeeded)
	}
	if problem == "" && head.first != first {
		problem = fmt.Sprintf("header says that revision %d is the first, the name %d", head.first, first)
	}
	if problem != "" {
		return header{}, (&segment{path: path}).corrupt(0, first, problem)
	}
	return head, nil
}

// openLast reads every record of the last segment, cuts off what a crash left
// incomplete, and keeps the file open for writing.
func (h *History) openLast(seg *segment, first log.Revision) (err error) {
	mode := os.O_RDWR
	if h.readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(seg.path, mode, 0)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil || h.readOnly {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if seg.header, err = readHeader(f, seg.path, first); err != nil {
		return h.openTornHeader(f, seg, first, info.Size(), err)
	}
	if seg.version == versionPacked {
		defer f.Close()
		return h.openLastPacked(f, seg, info.Size())
	}
	seg.next, seg.end, seg.indexed = seg.first, headerSize, true
	chain := seg.before
	r := frames{f: f, offset: headerSize, end: info.Size()}
	for {
		frame, problem, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		var rec log.Record
		if problem == "" {
			rec, problem = parseRecord(frame)
		}
		if problem == "" && rec.Revision != seg.next {
			// The checksum is right: no crash writes this.
			return h.openDamaged(f, seg, info.Size(), chain, fmt.Sprintf("holds revision %d, should hold %d", rec.Revision, seg.next))
		}
		if problem != "" {
			torn, err := h.repair(f, seg, info.Size(), problem)
			if err == nil && !torn {
				return h.openDamaged(f, seg, info.Size(), chain, problem)
			}
			if err != nil {
				return err
			}
			break
		}
		seg.noteLocked(rec.Revision, seg.end)
		seg.next, seg.end, chain = rec.Revision+1, r.offset, rec.Chain
	}
	if !h.readOnly {
		h.file = f
	}
	h.chain = chain
	h.segments = append(h.segments, seg)
	return nil
}

// openLastPacked is openLast of a segment that is not written to any more: a crash
// came between its being packed and the next one's first record. A packed segment
// has an end mark.
func (h *History) openLastPacked(f *os.File, seg *segment, size int64) error {
	ended := false
	seg.next, h.chain = seg.first, seg.before
	err := walkBlocks(f, size, func(b *blockHeader, _ int64) bool {
		if b.kind == blockRecords || b.kind == blockEnd {
			seg.next, h.chain = b.after(), b.chain
		}
		ended = b.kind == blockEnd
		return !ended
	})
	if err != nil {
		return err
	}
	if !ended {
		cause := seg.corrupt(size, seg.next, "the file ends without an end mark: it was cut off")
		if seg.next == seg.first && !h.readOnly {
			return h.putAside(seg, cause)
		}
		h.ended(cause)
	}
	h.segments = append(h.segments, seg)
	return nil
}

// repair cuts off the bytes from seg.end, where no record lies, if they are the
// remains of the last write: that is, if no whole record follows in them. Otherwise it
// is no torn end, and stays.
func (h *History) repair(f *os.File, seg *segment, size int64, problem string) (torn bool, err error) {
	rest := make([]byte, size-seg.end)
	if _, err := f.ReadAt(rest, seg.end); err != nil {
		return false, err
	}
	if _, offset := findRecord(rest, seg.next); offset >= 0 {
		return false, nil
	}
	if h.readOnly {
		return true, nil // an agent may be writing
	}
	if err := f.Truncate(seg.end); err != nil {
		return false, err
	}
	if err := f.Sync(); err != nil {
		return false, err
	}
	h.logger.Warn("cut off the torn end of the history",
		"segment", seg.path, "offset", seg.end, "bytes", len(rest), "revision", seg.next, "problem", problem)
	return true, nil
}

// openTornHeader removes a segment that a crash left without its header and
// goes on with the one before. cause is what is wrong with the header.
func (h *History) openTornHeader(f *os.File, seg *segment, first log.Revision, size int64, cause error) error {
	if !errors.Is(cause, log.ErrCorrupt) {
		return cause
	}
	if size > headerSize { // records are written after the header is durable
		return h.openHeadless(f, seg, first, size, cause)
	}
	if h.readOnly {
		return h.openBefore(first)
	}
	if err := os.Remove(seg.path); err != nil {
		return err
	}
	if err := durable.SyncDir(h.dir); err != nil {
		return err
	}
	h.logger.Warn("removed a history segment that was being created", "segment", seg.path, "revision", first, "problem", cause)
	f.Close()
	return h.openBefore(first)
}

// openBefore makes the segment before one that is no segment yet the last one.
func (h *History) openBefore(first log.Revision) error {
	n := len(h.segments)
	if n == 0 {
		return nil
	}
	before := h.segments[n-1]
	h.segments = h.segments[:n-1]
	if err := h.openLast(&segment{path: before.path}, before.first); err != nil {
		return err
	}
	if last := h.lastLocked(); last+1 != first {
		h.ended(before.corrupt(h.segments[n-1].end, last+1, fmt.Sprintf("segment ends before revision %d, the next segment began at %d", last+1, first)))
	}
	return nil
}

// findRecord looks at every offset for a whole record of the given revision or a
// later one; -1 if there is none. A revision cannot be higher than the number of
// records that fit, so nearly no offset needs its checksum computed.
func findRecord(b []byte, from log.Revision) (log.Revision, int) {
	most := from + log.Revision(len(b)/minRecord)
	for i := 0; i+minRecord <= len(b); i++ {
		revision := log.Revision(binary.LittleEndian.Uint64(b[i+frameSize:]))
		if revision < from || revision > most {
			continue
		}
		n, ok := bodyLength(b[i:])
		if !ok || n > len(b)-i-frameSize {
			continue
		}
		if _, problem := parseRecord(b[i : i+frameSize+n]); problem == "" {
			return revision, i
		}
	}
	return 0, -1
}
