package history

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/klauspost/compress/zstd"

	"github.com/varve-net/varve/log"
)

// Kinds of blocks.
const (
	blockRecords    = 1
	blockCheckpoint = 2 // a piece of a state, as it is in a checkpoint file
	blockMeta       = 3 // eventpb.ArchiveHeader
	blockEnd        = 4 // nothing follows
)

const (
	blockMagic      = "vblk"
	blockHeaderSize = 112
	// blockTarget is how many bytes of records are compressed together: so much is
	// read for one record, and so much is lost to one flipped bit. Larger blocks
	// hardly compress better (docs/adr).
	blockTarget = 64 << 10
	// maxBlock bounds what lengths may claim. A block has more than blockTarget by
	// one record at most.
	maxBlock = maxBody + blockTarget
	// outcomeLeftOut marks a record of which only the leaf is there.
	outcomeLeftOut log.Outcome = 0
)

// blockHeader is what stands before a block's payload.
type blockHeader struct {
	kind    uint8
	count   uint32       // of records
	first   log.Revision // of the block's records; at the end mark the next one
	timeNS  int64        // of the first record
	before  log.Hash     // chain value before the first record
	chain   log.Hash     // and after the last one
	raw     uint32       // bytes of the payload once decompressed
	payload uint32       // bytes of the payload
	crc     uint32       // CRC32C of the payload
}

func (h *blockHeader) append(b []byte) []byte {
	start := len(b)
	b = append(b, blockMagic...)
	b = append(b, h.kind, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, h.count)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.first))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.timeNS))
	b = append(b, h.before[:]...)
	b = append(b, h.chain[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.raw)
	b = binary.LittleEndian.AppendUint32(b, h.payload)
	b = binary.LittleEndian.AppendUint32(b, h.crc)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseBlockHeader says in its second value what is wrong, or nothing.
func parseBlockHeader(b []byte) (h blockHeader, problem string) {
	if len(b) < blockHeaderSize {
		return h, fmt.Sprintf("%d bytes where a block begins", len(b))
	}
	if string(b[:4]) != blockMagic {
		return h, fmt.Sprintf("a block begins with %q, not %q", b[:4], blockMagic)
	}
	if got, want := crc32.Checksum(b[:108], castagnoli), binary.LittleEndian.Uint32(b[108:]); got != want {
		return h, fmt.Sprintf("the block's header has CRC %08x and should have %08x", got, want)
	}
	h = blockHeader{
		kind: b[4], count: binary.LittleEndian.Uint32(b[8:]),
		first: log.Revision(binary.LittleEndian.Uint64(b[12:])), timeNS: int64(binary.LittleEndian.Uint64(b[20:])),
		raw: binary.LittleEndian.Uint32(b[92:]), payload: binary.LittleEndian.Uint32(b[96:]), crc: binary.LittleEndian.Uint32(b[100:]),
	}
	copy(h.before[:], b[28:60])
	copy(h.chain[:], b[60:92])
	switch {
	case h.raw > maxBlock || h.payload > maxBlock:
		return h, fmt.Sprintf("no block has %d bytes, %d once decompressed", h.payload, h.raw)
	case h.kind == blockRecords && (h.count == 0 || h.count > h.raw):
		return h, fmt.Sprintf("%d records in a block of %d bytes", h.count, h.raw)
	}
	return h, ""
}

// after is the revision that follows a block.
func (h *blockHeader) after() log.Revision {
	if h.kind != blockRecords {
		return h.first
	}
	return h.first + log.Revision(h.count)
}

// One of each serves everybody: EncodeAll and DecodeAll keep nothing between calls.
var (
	encoder = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false)))
	decoder = must(zstd.NewReader(nil, zstd.WithDecoderMaxMemory(2*maxBlock)))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // of constants
	}
	return v
}

// blockBuilder gathers records into blocks.
type blockBuilder struct {
	chain  log.Hash // before the next record
	raw    []byte
	header blockHeader
	lastNS int64
	out    []byte
}

// add takes a record that follows the one before. Of one whose outcome is
// outcomeLeftOut, Event is the leaf.
func (b *blockBuilder) add(r *log.Record) {
	if b.header.count == 0 {
		b.header = blockHeader{kind: blockRecords, first: r.Revision, timeNS: r.TimeNS, before: b.chain}
		b.lastNS = r.TimeNS
	}
	b.raw = append(b.raw, byte(r.Outcome))
	b.raw = binary.AppendVarint(b.raw, r.TimeNS-b.lastNS)
	if r.Outcome == outcomeLeftOut {
		b.raw = append(b.raw, r.Event...)
	} else {
		b.raw = binary.AppendUvarint(b.raw, uint64(len(r.Reason)))
		b.raw = append(b.raw, r.Reason...)
		b.raw = binary.AppendUvarint(b.raw, uint64(len(r.Event)))
		b.raw = append(b.raw, r.Event...)
	}
	b.lastNS = r.TimeNS
	b.header.count++
	b.header.chain, b.chain = r.Chain, r.Chain
}

func (b *blockBuilder) full() bool { return len(b.raw) >= blockTarget }

// take returns the block of the records added since the last call, valid until the
// next one; nothing if there are none.
func (b *blockBuilder) take() []byte {
	if b.header.count == 0 {
		return nil
	}
	block := b.pack(b.header, b.raw)
	b.raw, b.header = b.raw[:0], blockHeader{}
	return block
}

// pack compresses a payload and puts its header before it.
func (b *blockBuilder) pack(h blockHeader, raw []byte) []byte {
	var packed []byte
	if len(raw) > 0 {
		packed = encoder.EncodeAll(raw, nil)
	}
	h.raw, h.payload, h.crc = uint32(len(raw)), uint32(len(packed)), crc32.Checksum(packed, castagnoli)
	b.out = append(h.append(b.out[:0]), packed...)
	return b.out
}

// unpack checks and decompresses a payload into buf.
func (h *blockHeader) unpack(payload, buf []byte) (raw []byte, problem string) {
	if got := crc32.Checksum(payload, castagnoli); got != h.crc {
		return nil, fmt.Sprintf("the block has CRC %08x and should have %08x", got, h.crc)
	}
	raw, err := decoder.DecodeAll(payload, buf[:0])
	if err != nil || len(raw) != int(h.raw) {
		return nil, fmt.Sprintf("the block decompresses to %d bytes, not %d (%v)", len(raw), h.raw, err)
	}
	return raw, ""
}

// parse reads the records of a block. Their events alias raw.
func (h *blockHeader) parse(raw []byte, into []log.Record) (records []log.Record, problem string) {
	records = into[:0]
	d := decodeBytes{rest: raw}
	chain := h.before
	timeNS := h.timeNS
	for i := range h.count {
		r := log.Record{Revision: h.first + log.Revision(i), Outcome: log.Outcome(d.byte())}
		timeNS += d.varint()
		r.TimeNS = timeNS
		var leaf log.Hash
		if r.Outcome == outcomeLeftOut {
			r.Event = d.take(uint64(len(leaf)))
			copy(leaf[:], r.Event)
		} else {
			r.Reason = string(d.take(d.uvarint()))
			r.Event = d.take(d.uvarint())
			leaf = log.Leaf(r.Event)
		}
		if d.bad {
			return nil, fmt.Sprintf("the block does not hold its %d records", h.count)
		}
		chain = log.Next(chain, leaf)
		r.Chain = chain
		records = append(records, r)
	}
	if len(d.rest) != 0 {
		return nil, fmt.Sprintf("%d bytes after the block's last record", len(d.rest))
	}
	if chain != h.chain {
		return nil, fmt.Sprintf("the block's events lead to chain value %s, its header says %s", chain, h.chain)
	}
	return records, ""
}

// decodeBytes takes values off bytes; bad is set once they do not suffice.
type decodeBytes struct {
	rest []byte
	bad  bool
}

func (d *decodeBytes) byte() byte {
	b := d.take(1)
	if d.bad {
		return 0
	}
	return b[0]
}

func (d *decodeBytes) take(n uint64) []byte {
	if d.bad || n > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decodeBytes) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	return advance(d, v, n, math.MaxUint64)
}

func (d *decodeBytes) varint() int64 {
	v, n := binary.Varint(d.rest)
	return advance(d, v, n, 0)
}

func advance[T any](d *decodeBytes, v T, n int, bad T) T {
	if d.bad || n <= 0 {
		d.bad = true
		return bad
	}
	d.rest = d.rest[n:]
	return v
}
