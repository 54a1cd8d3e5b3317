package history

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/varve-net/varve/log"
)

const (
	magic = "VARVEHST"
	// A segment is plain while it is written to, and packed afterwards.
	versionPlain  = 1
	versionPacked = 2
	headerSize    = 64
	frameSize     = 8                     // length, CRC
	fixedBody     = 8 + 8 + 1 + 4 + 32    // a body without reason and event
	minRecord     = frameSize + fixedBody // bytes on disk
	// maxBody bounds what a length field may claim, so that a flipped bit in it
	// cannot ask for gigabytes. It is far above what one Raft entry may hold.
	maxBody = 64 << 20

	suffix = ".history"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segmentName is the file of the segment that begins with a revision.
func segmentName(first log.Revision) string {
	return fmt.Sprintf("%020d%s", uint64(first), suffix)
}

// parseName is the inverse of segmentName.
func parseName(name string) (log.Revision, bool) { return parseRevision(name, suffix) }

func parseRevision(name, suffix string) (log.Revision, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 {
		return 0, false
	}
	return log.Revision(n), true
}

func appendHeader(b []byte, version uint32, first log.Revision, before log.Hash) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(first))
	b = append(b, before[:]...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	return binary.LittleEndian.AppendUint32(b, 0)
}

// parseHeader says in its second value what is wrong, or nothing. A header of
// another version that is not damaged has its version set and nothing else.
func parseHeader(b []byte) (header, string) {
	var h header
	if len(b) < headerSize {
		return h, fmt.Sprintf("header has %d bytes of %d", len(b), headerSize)
	}
	if string(b[:8]) != magic {
		return h, fmt.Sprintf("header begins with %q, not %q", b[:8], magic)
	}
	if got, want := crc32.Checksum(b[:56], castagnoli), binary.LittleEndian.Uint32(b[56:]); got != want {
		return h, fmt.Sprintf("header has CRC %08x and should have %08x", got, want)
	}
	if h.version = binary.LittleEndian.Uint32(b[8:]); h.version == 0 || h.version > versionPacked {
		return h, ""
	}
	h.first = log.Revision(binary.LittleEndian.Uint64(b[16:]))
	copy(h.before[:], b[24:56])
	return h, ""
}

type header struct {
	version uint32
	first   log.Revision
	before  log.Hash // chain value of first-1
}

func recordSize(r *log.Record) int { return minRecord + len(r.Reason) + len(r.Event) }

func appendRecord(b []byte, r *log.Record) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(recordSize(r)-frameSize))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Revision))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.TimeNS))
	b = append(b, byte(r.Outcome))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Reason)))
	b = append(b, r.Reason...)
	b = append(b, r.Event...)
	b = append(b, r.Chain[:]...)
	binary.LittleEndian.PutUint32(b[start+4:], frameCRC(b[start:]))
	return b
}

// frameCRC covers length and body of a whole frame.
func frameCRC(frame []byte) uint32 {
	return crc32.Update(crc32.Checksum(frame[:4], castagnoli), castagnoli, frame[frameSize:])
}

// bodyLength reads a frame's length field; false if no record can have it.
func bodyLength(frame []byte) (int, bool) {
	n := binary.LittleEndian.Uint32(frame)
	return int(n), n >= fixedBody && n <= maxBody
}

// parseRecord reads a whole frame. The record's Event aliases it. The second
// value says what is wrong, or nothing.
func parseRecord(frame []byte) (log.Record, string) {
	if got, want := frameCRC(frame), binary.LittleEndian.Uint32(frame[4:]); got != want {
		return log.Record{}, fmt.Sprintf("CRC is %08x and should be %08x", got, want)
	}
	body := frame[frameSize:]
	reason := int(binary.LittleEndian.Uint32(body[17:]))
	if reason > len(body)-fixedBody {
		return log.Record{}, fmt.Sprintf("a reason of %d bytes in a record of %d", reason, len(body))
	}
	r := log.Record{
		Revision: log.Revision(binary.LittleEndian.Uint64(body)),
		TimeNS:   int64(binary.LittleEndian.Uint64(body[8:])),
		Outcome:  log.Outcome(body[16]),
		Reason:   string(body[21 : 21+reason]),
		Event:    body[21+reason : len(body)-32],
	}
	copy(r.Chain[:], body[len(body)-32:])
	return r, ""
}
