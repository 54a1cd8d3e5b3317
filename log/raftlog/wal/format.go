package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

const (
	magic      = "VARVEWAL"
	version    = 1
	headerSize = 64
	frameSize  = 24 // of a frame without its body
	entrySize  = 28 // of an entry without data and extensions
	align      = 8

	suffix    = ".wal"
	newSuffix = ".new" // of a segment that is being made
)

// Kinds of frames. 0 is what zeros look like.
const (
	kindEntries uint32 = iota + 1
	kindTruncation
	kindClosing
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func segmentName(number uint64) string { return fmt.Sprintf("%020d%s", number, suffix) }

// parseName is the inverse of segmentName.
func parseName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n != 0
}

func appendHeader(b []byte, h header) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, h.number)
	b = binary.LittleEndian.AppendUint64(b, h.salt)
	b = binary.LittleEndian.AppendUint64(b, h.size)
	b = append(b, make([]byte, headerSize-4-(len(b)-start))...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// header is what a segment begins with. One of another version that is not damaged
// has its version set and nothing else.
type header struct {
	version uint32
	number  uint64
	salt    uint64
	size    uint64 // of the file, bytes
}

// parseHeader says in its second value what is wrong, or nothing.
func parseHeader(b []byte) (header, string) {
	if len(b) < headerSize {
		return header{}, fmt.Sprintf("header has %d bytes of %d", len(b), headerSize)
	}
	if string(b[:8]) != magic {
		return header{}, fmt.Sprintf("header begins with %q, not %q", b[:8], magic)
	}
	if got, want := crc32.Checksum(b[:headerSize-4], castagnoli), binary.LittleEndian.Uint32(b[headerSize-4:]); got != want {
		return header{}, fmt.Sprintf("header has CRC %08x and should have %08x", got, want)
	}
	h := header{version: binary.LittleEndian.Uint32(b[8:])}
	if h.version == version {
		h.number, h.salt, h.size = binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:]), binary.LittleEndian.Uint64(b[32:])
	}
	return h, ""
}

// frame is one that was parsed; body aliases the bytes it was parsed from.
type frame struct {
	kind  uint32
	first uint64
	count int
	body  []byte
}

// frameLength is the padded size of the frame at the start of b by what its own
// header says; false if none can have it.
func frameLength(b []byte) (int, bool) {
	if len(b) < frameSize {
		return 0, false
	}
	n := padded(frameSize + int(binary.LittleEndian.Uint32(b[4:])))
	kind := binary.LittleEndian.Uint32(b[20:])
	return n, n <= len(b) && kind >= kindEntries && kind <= kindClosing
}

func padded(n int) int { return (n + align - 1) &^ (align - 1) }

// parseFrame reads the frame at the start of b. The last value says what is wrong,
// or nothing.
func parseFrame(b []byte, salt uint64) (f frame, size int, problem string) {
	size, ok := frameLength(b)
	if !ok {
		return frame{}, 0, "its bytes are no frame"
	}
	if got, want := frameCRC(b[:size], salt), binary.LittleEndian.Uint32(b); got != want {
		return frame{}, 0, fmt.Sprintf("CRC is %08x and should be %08x", got, want)
	}
	f = frame{
		kind:  binary.LittleEndian.Uint32(b[20:]),
		first: binary.LittleEndian.Uint64(b[8:]),
		count: int(binary.LittleEndian.Uint32(b[16:])),
		body:  b[frameSize : frameSize+int(binary.LittleEndian.Uint32(b[4:]))],
	}
	if f.kind == kindEntries && (f.count == 0 || f.count > len(f.body)/entrySize) {
		return frame{}, 0, fmt.Sprintf("%d entries in %d bytes", f.count, len(f.body))
	}
	return f, size, ""
}

// frameCRC covers the salt and a frame with its padding, but for the CRC itself.
func frameCRC(b []byte, salt uint64) uint32 {
	var s [8]byte
	binary.LittleEndian.PutUint64(s[:], salt)
	return crc32.Update(crc32.Checksum(s[:], castagnoli), castagnoli, b[4:])
}

// beginFrame appends a frame's header; entries may be appended, then endFrame fills
// it in.
func beginFrame(b []byte, kind uint32, first uint64, count int) []byte {
	b = append(b, make([]byte, 8)...)
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint32(b, uint32(count))
	return binary.LittleEndian.AppendUint32(b, kind)
}

// endFrame finishes the frame that is all of b.
func endFrame(b []byte, salt uint64) []byte {
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-frameSize))
	b = append(b, make([]byte, padded(len(b))-len(b))...)
	binary.LittleEndian.PutUint32(b, frameCRC(b, salt))
	return b
}

// sizeOf is what an entry adds to a frame.
func sizeOf(e *raft.Log) int { return entrySize + len(e.Data) + len(e.Extensions) }

func appendEntry(b []byte, e *raft.Log) []byte {
	b = binary.LittleEndian.AppendUint64(b, e.Term)
	var at int64
	if !e.AppendedAt.IsZero() {
		at = e.AppendedAt.UnixNano()
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(at))
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Type))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Extensions)))
	b = append(b, e.Data...)
	return append(b, e.Extensions...)
}

// entry copies the entry of an index out of a frame that holds it; false if the
// body does not.
func (f *frame) entry(index uint64, e *raft.Log) bool {
	b := f.body
	for i := f.first; ; i++ {
		if len(b) < entrySize {
			return false
		}
		data, extensions := int(binary.LittleEndian.Uint32(b[20:])), int(binary.LittleEndian.Uint32(b[24:]))
		end := entrySize + data + extensions
		if len(b) < end {
			return false
		}
		if i < index {
			b = b[end:]
			continue
		}
		*e = raft.Log{Index: index, Term: binary.LittleEndian.Uint64(b), Type: raft.LogType(binary.LittleEndian.Uint32(b[16:]))}
		if at := int64(binary.LittleEndian.Uint64(b[8:])); at != 0 {
			e.AppendedAt = time.Unix(0, at)
		}
		rest := append([]byte(nil), b[entrySize:end]...)
		if data > 0 {
			e.Data = rest[:data:data]
		}
		if extensions > 0 {
			e.Extensions = rest[data:]
		}
		return true
	}
}
