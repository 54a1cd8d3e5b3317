package history

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/log"
)

// Cut at any byte of its last records, a history opens with exactly the records
// that are whole, says so, and goes on from there.
func TestTornEnd(t *testing.T) {
	const n = 20
	dir := t.TempDir()
	records, files := write(t, dir, n, segmentSize)
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	ends := []int{headerSize} // of the first i records
	for i := range records {
		ends = append(ends, ends[i]+recordSize(&records[i]))
	}
	if ends[n] != len(whole) {
		t.Fatalf("records end at %d, the file at %d", ends[n], len(whole))
	}
	for cut := range len(whole) {
		if cut > headerSize+10 && cut < ends[n-2] {
			continue
		}
		if err := os.WriteFile(files[0], whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := 0
		for want < n && ends[want+1] <= cut {
			want++
		}
		var said bytes.Buffer
		h, err := Open(dir, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if last, _ := h.Last(); last != log.Revision(want) {
			t.Fatalf("cut at %d: last %d, want %d", cut, last, want)
		}
		if torn := cut < headerSize || cut != ends[want]; torn != (said.Len() > 0) {
			t.Errorf("cut at %d: log says %q", cut, said.String())
		}
		if err := h.Append(records[want:]); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if diff := cmp.Diff(records, read(t, h, 1, n)); diff != "" {
			t.Fatalf("cut at %d (-want +got):\n%s", cut, diff)
		}
		closeHistory(t, h)
	}
}

// Zeros or rubbish after the last whole record are cut off as well.
func TestRubbishAtEnd(t *testing.T) {
	for name, rubbish := range map[string][]byte{
		"zeros":          make([]byte, 5000),
		"ones":           bytes.Repeat([]byte{0xff}, 300),
		"a bad checksum": appendRecord(nil, &log.Record{Revision: 21, Event: []byte("x")})[:minRecord],
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, files := write(t, dir, 20, segmentSize)
			appendTo(t, files[0], rubbish)
			h := open(t, dir, segmentSize)
			if last, _ := h.Last(); last != 20 {
				t.Errorf("last %d", last)
			}
			if info, err := os.Stat(files[0]); err != nil || info.Size() != h.segments[0].end {
				t.Errorf("size %v, %v; records end at %d", info.Size(), err, h.segments[0].end)
			}
		})
	}
}

// A crash while a segment is created leaves the one before to go on with.
func TestTornSegmentCreation(t *testing.T) {
	for _, left := range []int{0, 10, headerSize - 1} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			dir := t.TempDir()
			records, files := write(t, dir, 100, 2000)
			last := files[len(files)-1]
			first, _ := parseName(last[len(last)-20-len(suffix):])
			if err := os.Truncate(last, int64(left)); err != nil {
				t.Fatal(err)
			}
			h := open(t, dir, 2000)
			if got, _ := h.Last(); got != first-1 {
				t.Fatalf("last %d, want %d", got, first-1)
			}
			if err := h.Append(records[first-1:]); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(records, read(t, h, 1, 100)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A flipped bit anywhere before the last record is never repaired away: Open, or
// else Verify, names the revision.
func TestFlippedBits(t *testing.T) {
	const n = 40
	for _, size := range []int64{segmentSize, 1500} {
		dir := t.TempDir()
		_, files := write(t, dir, n, size)
		for fileIndex, file := range files {
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			end := len(whole)
			if fileIndex == len(files)-1 {
				end = lastRecordAt(t, whole)
			}
			for offset := 0; offset < end; offset += 3 + offset%5 {
				if offset == headerSize-4 {
					offset += 4 // unused bytes
				}
				bad := bytes.Clone(whole)
				bad[offset] ^= 0x10
				if err := os.WriteFile(file, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				err := openAndVerify(t, dir)
				corrupt, ok := errors.AsType[*log.CorruptError](err)
				if !ok {
					t.Fatalf("file %d, offset %d: error %v, want a CorruptError", fileIndex, offset, err)
				}
				if corrupt.Revision == 0 || !strings.Contains(corrupt.What, file) || !strings.Contains(corrupt.What, "offset") || !strings.Contains(corrupt.What, remedy) {
					t.Fatalf("offset %d: %v: does not name revision, segment, offset and remedy", offset, corrupt)
				}
				if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, bad) {
					t.Fatalf("offset %d: the damaged file was changed (%v)", offset, err)
				}
			}
			if err := os.WriteFile(file, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := openAndVerify(t, dir); err != nil {
			t.Error(err)
		}
	}
}

func openAndVerify(t *testing.T, dir string) error {
	h, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Verify(t.Context(), 1)
}

// lastRecordAt is the offset of the last record of a segment.
func lastRecordAt(t *testing.T, segment []byte) int {
	t.Helper()
	offset := headerSize
	for {
		n, ok := bodyLength(segment[offset:])
		if !ok {
			t.Fatalf("no record at %d", offset)
		}
		if offset+frameSize+n == len(segment) {
			return offset
		}
		offset += frameSize + n
	}
}

// Verify finds what no CRC can: a record that was written anew with its own
// checksum but another event, time, outcome or chain.
func TestVerifyFindsForgery(t *testing.T) {
	for name, forge := range map[string]func(r *log.Record){
		"event":   func(r *log.Record) { r.Event[0] ^= 1 },
		"chain":   func(r *log.Record) { r.Chain[0] ^= 1 },
		"time":    func(r *log.Record) { r.TimeNS = 1 },
		"outcome": func(r *log.Record) { r.Outcome = log.OutcomeConflict },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			records, files := write(t, dir, 50, segmentSize)
			whole, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			old := appendRecord(nil, &records[30])
			at := bytes.Index(whole, old)
			forge(&records[30])
			copy(whole[at:], appendRecord(nil, &records[30]))
			if err := os.WriteFile(files[0], whole, 0o600); err != nil {
				t.Fatal(err)
			}
			h := open(t, dir, segmentSize)
			err = h.Verify(t.Context(), 1)
			if corrupt, ok := errors.AsType[*log.CorruptError](err); !ok || corrupt.Revision != 31 {
				t.Errorf("error %v, want one at revision 31", err)
			}
			if err := h.Verify(t.Context(), 33); err != nil {
				t.Errorf("after the forged record: %v", err)
			}
		})
	}
}

func TestMissingSegment(t *testing.T) {
	dir := t.TempDir()
	_, files := write(t, dir, 100, 2000)
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	first, _ := parseName(files[1][len(files[1])-20-len(suffix):])
	err := openAndVerify(t, dir)
	if corrupt, ok := errors.AsType[*log.CorruptError](err); !ok || corrupt.Revision != first {
		t.Errorf("error %v, want one at revision %d", err, first)
	}
}

func TestNewerFormat(t *testing.T) {
	dir := t.TempDir()
	_, files := write(t, dir, 1, segmentSize)
	header := appendHeader(nil, versionPlain, 1, log.Hash{})
	header[8] = versionPacked + 1
	header = header[:56]
	header = append(header, byteOrderCRC(header)...)
	header = append(header, 0, 0, 0, 0)
	if err := os.WriteFile(files[0], header, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, slog.New(slog.DiscardHandler)); !errors.Is(err, log.ErrUpgradeNeeded) {
		t.Errorf("error %v, want ErrUpgradeNeeded", err)
	}
}

func byteOrderCRC(b []byte) []byte {
	sum := log.Checksum(b)
	return []byte{byte(sum), byte(sum >> 8), byte(sum >> 16), byte(sum >> 24)}
}

func appendTo(t *testing.T, file string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// FuzzOpen opens a segment of any bytes: no panic, and what can be read verifies
// or is refused.
func FuzzOpen(f *testing.F) {
	b := appendHeader(nil, versionPlain, 1, log.Hash{})
	f.Add(bytes.Clone(b))
	for _, r := range chainOf(1, 5, log.Hash{}) {
		b = appendRecord(b, &r)
		f.Add(bytes.Clone(b))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/"+segmentName(1), content, 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := Open(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			return
		}
		last, chain := h.Last()
		err = h.Append(chainOf(last+1, 3, chain))
		if err != nil {
			t.Fatal(err)
		}
		closeHistory(t, h)
		h = open(t, dir, segmentSize)
		if again, _ := h.Last(); again != last+3 {
			t.Fatalf("last %d, want %d", again, last+3)
		}
	})
}
