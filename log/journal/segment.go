package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/internal/durable"
)

const (
	magic        = "varve journal 1\n"
	suffix       = ".journal"
	recordHeader = 4 + 4 + 8 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segment is a file of the journal. It is open as long as somebody holds it.
type segment struct {
	dir   string
	first uint64 // its records have this number or higher ones
	file  *os.File
	size  int64 // up to which it is whole
	zeros int64 // up to which there are zeros behind that, if above size
	holds atomic.Int32
}

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", first, suffix))
}

func (s *segment) path() string { return segmentPath(s.dir, s.first) }

func (s *segment) hold() { s.holds.Add(1) }

// release closes the file after the last hold.
func (s *segment) release() error {
	if s.holds.Add(-1) > 0 {
		return nil
	}
	return s.file.Close()
}

// listSegments is the first numbers of all files, ascending. What a compaction that
// was cut short was writing is removed.
func listSegments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var firsts []uint64
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix+".next") {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		}
		number, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		first, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: its name is no number", e.Name(), ErrDamaged)
		}
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	return firsts, nil
}

func openSegment(dir string, first uint64) (*segment, error) {
	s := &segment{dir: dir, first: first}
	var err error
	if s.file, err = os.OpenFile(s.path(), os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	s.hold()
	return s, nil
}

// createSegment begins a file that is durable and empty.
func createSegment(dir string, first uint64) (*segment, error) {
	s := &segment{dir: dir, first: first, size: int64(len(magic))}
	var err error
	if s.file, err = os.OpenFile(s.path(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	s.hold()
	_, err = s.file.WriteString(magic)
	if err == nil {
		err = s.file.Sync()
	}
	if err == nil {
		err = durable.SyncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(err, s.release(), os.Remove(s.path()))
	}
	return s, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// appendRecord adds a record that has so many before it in the same write.
func appendRecord(b []byte, seq uint64, before int, data []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint32(b, uint32(before))
	b = append(b, data...)
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(b[start+8:], castagnoli))
	return b
}

// record is a record as it is on disk. began is the number of the first one of the
// same write.
type record struct {
	seq, began uint64
	data       []byte
}

// parseRecord reads the record at the start of b. ok is false if it is not whole.
func parseRecord(b []byte) (r record, ok bool) {
	if len(b) < recordHeader {
		return r, false
	}
	n := binary.LittleEndian.Uint32(b)
	if n > MaxRecord || len(b) < recordHeader+int(n) {
		return r, false
	}
	body := b[8 : recordHeader+int(n)]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return r, false
	}
	seq, before := binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint32(body[8:])
	if uint64(before) >= seq {
		return r, false
	}
	return record{seq, seq - uint64(before), body[12:]}, true
}

// scan calls fn for every record of the file. What follows the last whole one is
// cut off if this is the newest file.
func (s *segment) scan(newest bool, fn func(seq uint64, offset int64, data []byte) error) error {
	b, err := io.ReadAll(io.NewSectionReader(s.file, 0, 1<<62))
	if err != nil {
		return err
	}
	if len(b) < len(magic) && newest && strings.HasPrefix(magic, string(b)) {
		// A crash came between its creation and its header.
		if _, err := s.file.WriteAt([]byte(magic), 0); err != nil {
			return err
		}
		s.size = int64(len(magic))
		return s.file.Sync()
	}
	if !strings.HasPrefix(string(b), magic) {
		return fmt.Errorf("%w: no header", ErrDamaged)
	}
	offset := len(magic)
	last := s.first - 1
	for offset < len(b) {
		r, ok := parseRecord(b[offset:])
		if !ok {
			break
		}
		if r.seq <= last {
			return fmt.Errorf("%w: record %d after %d", ErrDamaged, r.seq, last)
		}
		if err := fn(r.seq, int64(offset), r.data); err != nil {
			return err
		}
		last = r.seq
		offset += recordHeader + len(r.data)
	}
	s.size = int64(offset)
	if offset == len(b) {
		return nil
	}
	rest := b[offset:]
	if !newest || len(bytes.Trim(rest, "\x00")) > 0 && laterWrite(rest, last+1) {
		return fmt.Errorf("%w: at byte %d", ErrDamaged, offset)
	}
	if err := s.file.Truncate(s.size); err != nil {
		return err
	}
	return s.file.Sync()
}

// laterWrite tells whether b holds a record of a write that began after the record
// with this number: then that one was durable once, and this is no torn end.
func laterWrite(b []byte, lost uint64) bool {
	for i := 1; i+recordHeader <= len(b); i++ {
		if r, ok := parseRecord(b[i:]); ok && r.began > lost {
			return true
		}
	}
	return false
}

// reserveBytes is how far the newest file is filled with zeros ahead of its records:
// fdatasync is twice as fast where the size of a file does not change. To a reader they are
// a torn end.
const reserveBytes = 1 << 20

// reserve makes room for so many bytes behind size. Without space on the disk it does
// nothing: the write then grows the file, or fails.
func (s *segment) reserve(n int64) {
	if s.size+n <= s.zeros {
		return
	}
	from := max(s.size, s.zeros)
	if _, err := s.file.WriteAt(make([]byte, s.size+n+reserveBytes-from), from); err != nil {
		_ = s.file.Truncate(from) // where it ended before
		return
	}
	s.zeros = s.size + n + reserveBytes
}

// trim takes the zeros away: only the newest file may have what is no record.
func (s *segment) trim() error {
	if s.zeros <= s.size {
		return nil
	}
	if err := s.file.Truncate(s.size); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(s.path()), err)
	}
	s.zeros = 0
	return s.file.Sync()
}

// append writes whole records behind size, which is the caller's to move, and makes
// them durable. After an ErrFull the file is as it was before.
func (s *segment) append(records []byte) error {
	s.reserve(int64(len(records)))
	if _, err := s.file.WriteAt(records, s.size); err != nil {
		err = classify(err)
		if errors.Is(err, ErrFull) {
			s.zeros = 0
			if cut := s.file.Truncate(s.size); cut != nil {
				return fmt.Errorf("%v, and cannot be cut: %w", err, cut) //nolint:errorlint // ErrFull says that the file is as it was
			}
		}
		return err
	}
	if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	return nil
}

// read adds records, which stand one behind the other.
func (s *segment) read(to []Record, places []position) ([]Record, error) {
	start := places[0].offset
	b := make([]byte, places[len(places)-1].end()-start)
	if _, err := s.file.ReadAt(b, start); err != nil {
		return to, fmt.Errorf("record %d: %w", places[0].seq, err)
	}
	for _, p := range places {
		r, ok := parseRecord(b[p.offset-start : p.end()-start])
		if !ok || r.seq != p.seq {
			return to, fmt.Errorf("record %d: %w: %s at byte %d", p.seq, ErrDamaged, filepath.Base(s.path()), p.offset)
		}
		to = append(to, Record{p.seq, r.data})
	}
	return to, nil
}
