package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// segmentSize is when a segment is sealed and the next one begun. A batch is
// never divided, so a segment may exceed it by one batch.
const segmentSize = 64 << 20

// ErrGap is returned by Append for records that do not follow the last one
// without a gap. Nothing was written.
var ErrGap = errors.New("records are not dense")

// History is a directory of segments. One goroutine appends; any number may
// read and call Sync meanwhile.
type History struct {
	dir         string
	logger      *slog.Logger
	segmentSize int64

	readOnly    bool
	damage      error                  // what a read-only history ends before
	meta        *eventpb.ArchiveHeader // of an exported file
	stateOffset int64                  // in it, of its checkpoint; 0: none

	mu          sync.RWMutex
	segments    []*segment     // by first revision; only the last is written to
	chain       log.Hash       // of the last record
	checkpoints []log.Revision // ascending
	lost        []Lost         // ascending

	// syncing is held by whoever makes the last segment durable or replaces it.
	syncing sync.Mutex
	file    *os.File     // the last segment, if it is plain
	floor   log.Revision // with which the history begins; 0: not known
	synced  log.Revision
	broken  error // after it nothing may be written or claimed durable
	closed  bool

	buf []byte // of the appending goroutine
}

// Open opens or creates the history in a directory, which must be used by no
// one else. A torn record at the very end, as a crash leaves it, is cut off and
// logged. Any other damage stays as it is, and hides what it hits: Lost says what.
// Records that come are written to a segment of their own then.
func Open(dir string, logger *slog.Logger) (*History, error) {
	return OpenSized(dir, segmentSize, logger)
}

// OpenSized is Open with segments that are sealed at another size than 64 MiB; 0
// means that one.
func OpenSized(dir string, sealed int64, logger *slog.Logger) (*History, error) {
	h := &History{dir: dir, logger: logger, segmentSize: cmp.Or(sealed, segmentSize)}
	if err := h.open(); err != nil {
		return nil, fmt.Errorf("history %s: %w", dir, err)
	}
	return h, nil
}

// OpenReadOnly opens a history that others may write to, as it is now: nothing is
// repaired, and damage hides only what it hits. Verify reports it.
func OpenReadOnly(dir string, logger *slog.Logger) (*History, error) {
	h := &History{dir: dir, logger: logger, segmentSize: segmentSize, readOnly: true, broken: errReadOnly}
	if err := h.open(); err != nil {
		return nil, fmt.Errorf("history %s: %w", dir, err)
	}
	return h, nil
}

var errReadOnly = errors.New("was opened to be read only")

// First is the oldest revision kept; in an empty history it is 1.
func (h *History) First() log.Revision {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if len(h.segments) == 0 {
		return 1
	}
	return h.segments[0].first
}

// Last is the last revision and its chain value; 0 in an empty history.
func (h *History) Last() (log.Revision, log.Hash) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.lastLocked(), h.chain
}

func (h *History) lastLocked() log.Revision {
	if n := len(h.segments); n > 0 {
		return h.segments[n-1].next - 1
	}
	return 0
}

// Synced is the last revision known to be durable.
func (h *History) Synced() log.Revision {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	return h.synced
}

// Begin makes an empty history one whose first record will follow a revision and
// its chain value.
func (h *History) Begin(last log.Revision, chain log.Hash) error {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	if h.broken != nil {
		return h.broken
	}
	if len(h.segments) > 0 {
		return fmt.Errorf("history %s: holds records already", h.dir)
	}
	if _, err := h.begin(last+1, chain); err != nil {
		return fmt.Errorf("history %s: %w", h.dir, err)
	}
	h.synced = last
	h.mu.Lock()
	defer h.mu.Unlock()
	h.chain = chain
	return nil
}

// Before is the chain value before the first record.
func (h *History) Before() log.Hash {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if len(h.segments) == 0 {
		return log.Hash{}
	}
	return h.segments[0].before
}

// segmentOf is the segment that holds a revision, with its present bounds; nil
// if there is no such record.
func (h *History) segmentOf(revision log.Revision) (seg *segment, next log.Revision, end int64) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	low, high := 0, len(h.segments)
	for low < high {
		if mid := (low + high) / 2; h.segments[mid].first <= revision {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 {
		return nil, 0, 0
	}
	seg = h.segments[low-1]
	if revision >= seg.next {
		return nil, 0, 0
	}
	return seg, seg.next, seg.end
}

// Append writes records that follow the last one, in one write. They are
// durable after the next Sync. Only one goroutine may append.
func (h *History) Append(records []log.Record) error {
	if len(records) == 0 {
		return nil
	}
	last, chain := h.Last()
	h.buf = h.buf[:0]
	for i := range records {
		r := &records[i]
		if want := last + 1 + log.Revision(i); r.Revision != want {
			return fmt.Errorf("history %s: revision %d where %d must follow: %w", h.dir, r.Revision, want, ErrGap)
		}
		if recordSize(r) > maxBody {
			return fmt.Errorf("history %s: record %d of %d bytes: %w", h.dir, r.Revision, recordSize(r), log.ErrTooLarge)
		}
		h.buf = appendRecord(h.buf, r)
	}
	seg, err := h.room(int64(len(h.buf)), records[0].Revision, chain)
	if err != nil {
		return fmt.Errorf("history %s: %w", h.dir, err)
	}
	if _, err := h.file.WriteAt(h.buf, seg.end); err != nil {
		return errors.Join(fmt.Errorf("history %s: revision %d: %w", h.dir, records[0].Revision, err), h.file.Truncate(seg.end))
	}
	end := seg.end
	for i := range records {
		seg.note(records[i].Revision, end)
		end += int64(recordSize(&records[i]))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	seg.next, seg.end = records[len(records)-1].Revision+1, end
	h.chain = records[len(records)-1].Chain
	return nil
}

// room returns the segment to write n bytes to, beginning a new one if the last
// is full.
func (h *History) room(n int64, first log.Revision, before log.Hash) (*segment, error) {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	if h.broken != nil {
		return nil, h.broken
	}
	if c := len(h.segments); c > 0 {
		seg := h.segments[c-1]
		if h.file != nil && (seg.end+n <= h.segmentSize || seg.next == seg.first) {
			return seg, nil
		}
		if err := h.syncLocked(); err != nil {
			return nil, err
		}
	}
	return h.begin(first, before)
}

// begin creates the segment of a revision and makes it the last one.
func (h *History) begin(first log.Revision, before log.Hash) (*segment, error) {
	if h.floor == 0 {
		if err := h.setFloor(first); err != nil {
			return nil, err
		}
	}
	seg := &segment{
		path: filepath.Join(h.dir, segmentName(first)), header: header{versionPlain, first, before},
		next: first, end: headerSize, indexed: true,
	}
	f, err := os.OpenFile(seg.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return nil, err
	}
	if _, err = f.WriteAt(appendHeader(nil, versionPlain, first, before), 0); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = durable.SyncDir(h.dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(seg.path))
	}
	if h.file != nil {
		if err := h.file.Close(); err != nil {
			h.broken = err
			return nil, errors.Join(err, f.Close())
		}
	}
	h.file = f
	h.anchorOrSay(first, before)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.segments = append(h.segments, seg)
	return seg, nil
}

// Sync makes durable what has been appended before the call.
func (h *History) Sync() error {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	if err := h.syncLocked(); err != nil {
		return fmt.Errorf("history %s: %w", h.dir, err)
	}
	return nil
}

// syncLocked is Sync under h.syncing. After a failure the kernel may have
// dropped the pages and would report success the next time: so it is final.
func (h *History) syncLocked() error {
	if h.broken != nil {
		return h.broken
	}
	last, _ := h.Last()
	if last == h.synced {
		return nil
	}
	if h.file == nil { // what is packed is durable
		h.synced = last
		return nil
	}
	if err := unix.Fdatasync(int(h.file.Fd())); err != nil {
		h.broken = fmt.Errorf("fdatasync of %s: %w", h.file.Name(), err)
		return h.broken
	}
	h.synced = last
	return nil
}

// Close makes everything durable and releases the last segment.
func (h *History) Close() error {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	if h.closed {
		return nil
	}
	var err error
	if !h.readOnly {
		err = h.syncLocked()
	}
	h.closed, h.broken = true, log.ErrClosed
	if h.file != nil {
		err = errors.Join(err, h.file.Close())
	}
	if err != nil {
		return fmt.Errorf("history %s: %w", h.dir, err)
	}
	return nil
}

// Read calls fn for each record from first to last inclusive that exists, in
// order, until fn fails. Event is valid during the call only.
func (h *History) Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error {
	return h.read(ctx, first, last, false, fn)
}

func (h *History) read(ctx context.Context, first, last log.Revision, whole bool, fn func(log.Record) error) error {
	c, err := h.Cursor(first)
	if err != nil {
		return err
	}
	defer c.Close()
	for revision := first; revision <= last; revision++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := c.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if whole && errors.Is(err, ErrLeftOut) {
			continue
		}
		if err != nil {
			return err
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// ReadWhole is Read, but passes over what a filtered export lacks.
func (h *History) ReadWhole(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error {
	return h.read(ctx, first, last, true, fn)
}

// Record returns one record with bytes of its own.
func (h *History) Record(ctx context.Context, revision log.Revision) (log.Record, error) {
	found := log.Record{}
	err := h.Read(ctx, revision, revision, func(r log.Record) error {
		found = r
		found.Event = append([]byte(nil), r.Event...)
		return nil
	})
	if err == nil && found.Revision != revision {
		last, _ := h.Last()
		err = fmt.Errorf("history %s: revision %d does not exist, the last is %d", h.dir, revision, last)
	}
	return found, err
}
