package log

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Limits. They bound what one message from outside can make a node allocate, and
// keep a Raft entry well below what its transport takes.
const (
	MaxEventBytes = 1 << 20 // one encoded event
	MaxBatchBytes = 4 << 20 // one encoded batch
)

// A batch is the data of one Raft entry:
//
//	version  1 byte   batchVersion
//	crc      4 bytes  CRC32C (Castagnoli) of everything after it, little endian
//	count    uvarint
//	count times: length uvarint, then the event's bytes
//
// The CRC is the leader's: it is checked before Apply, so that a bit flipped on
// a disk is found and not replayed into a chain that merely agrees with itself.
const (
	batchVersion = 1
	batchHeader  = 5
)

// BatchOverhead bounds what a batch adds for its own header (first) and for each
// event (second), in bytes.
const (
	BatchOverhead      = batchHeader + binary.MaxVarintLen32
	BatchEventOverhead = binary.MaxVarintLen32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C (Castagnoli) of b.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// EncodeBatch frames events as the data of one Raft entry. The caller keeps to
// MaxEventBytes and MaxBatchBytes; DecodeBatch refuses what exceeds them.
func EncodeBatch(events [][]byte) []byte {
	size := BatchOverhead
	for _, e := range events {
		size += BatchEventOverhead + len(e)
	}
	b := make([]byte, batchHeader, size)
	b[0] = batchVersion
	b = binary.AppendUvarint(b, uint64(len(events)))
	for _, e := range events {
		b = binary.AppendUvarint(b, uint64(len(e)))
		b = append(b, e...)
	}
	binary.LittleEndian.PutUint32(b[1:], Checksum(b[batchHeader:]))
	return b
}

// DecodeBatch is the inverse of EncodeBatch. The events alias b. The error is
// ErrCorrupt, or ErrUpgradeNeeded for a version of the format that is newer.
func DecodeBatch(b []byte) ([][]byte, error) {
	switch {
	case len(b) < batchHeader:
		return nil, corruptf("batch of %d bytes: shorter than its header", len(b))
	case len(b) > MaxBatchBytes:
		return nil, corruptf("batch of %d bytes: longer than %d", len(b), MaxBatchBytes)
	}
	// The version is outside the CRC, for a later one may change what follows. So
	// a flipped version byte is told from a newer format by the CRC.
	rest := b[batchHeader:]
	want, got := binary.LittleEndian.Uint32(b[1:]), Checksum(rest)
	if b[0] != batchVersion && want != got {
		return nil, corruptf("batch: version %d, and CRC32C %08x over bytes with %08x", b[0], want, got)
	}
	if b[0] != batchVersion {
		return nil, fmt.Errorf("batch: format version %d, this version reads %d: %w", b[0], batchVersion, ErrUpgradeNeeded)
	}
	if want != got {
		return nil, corruptf("batch: CRC32C %08x over bytes with %08x", want, got)
	}
	count, rest, err := uvarint(rest, "count")
	if err != nil {
		return nil, err
	}
	if count > uint64(len(rest)) { // each event takes a byte at least
		return nil, corruptf("batch: count %d in %d bytes", count, len(rest))
	}
	// The events of a raft entry are some hundreds; a count is no reason to take
	// 24 times the batch's size at once.
	events := make([][]byte, 0, min(count, 1024))
	for range count {
		var n uint64
		if n, rest, err = uvarint(rest, "length"); err != nil {
			return nil, err
		}
		if n > uint64(len(rest)) || n > MaxEventBytes {
			return nil, corruptf("batch: event of %d bytes where %d are left and %d are allowed", n, len(rest), MaxEventBytes)
		}
		events = append(events, rest[:n:n])
		rest = rest[n:]
	}
	if len(rest) != 0 {
		return nil, corruptf("batch: %d bytes after the last event", len(rest))
	}
	return events, nil
}

func uvarint(b []byte, what string) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, corruptf("batch: %s: bad uvarint", what)
	}
	return v, b[n:], nil
}
