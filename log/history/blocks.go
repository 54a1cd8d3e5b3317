package history

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/varve-net/varve/log"
)

// walkBlocks calls fn for each block of a packed file until it says no. It reads
// headers only, and steps over damage to the next whole one.
func walkBlocks(f io.ReaderAt, size int64, fn func(h *blockHeader, offset int64) bool) error {
	buf := make([]byte, blockHeaderSize)
	for offset := int64(headerSize); offset < size; {
		n, err := f.ReadAt(buf, offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		h, problem := parseBlockHeader(buf[:n])
		if problem != "" {
			at, err := findBlock(f, offset+1, size)
			if err != nil || at < 0 {
				return err
			}
			offset = at
			continue
		}
		if !fn(&h, offset) {
			return nil
		}
		offset += blockHeaderSize + int64(h.payload)
	}
	return nil
}

// findBlock looks for the next whole block header; -1 if there is none.
func findBlock(f io.ReaderAt, from, size int64) (int64, error) {
	rest := make([]byte, size-from)
	if _, err := f.ReadAt(rest, from); err != nil {
		return -1, err
	}
	for i := 0; ; i++ {
		next := bytes.Index(rest[i:], []byte(blockMagic))
		if next < 0 {
			return -1, nil
		}
		i += next
		if _, problem := parseBlockHeader(rest[i:min(len(rest), i+blockHeaderSize)]); problem == "" {
			return from + int64(i), nil
		}
	}
}

// blocks reads a packed segment's records, block by block.
type blocks struct {
	f      io.ReaderAt
	size   int64
	offset int64 // of the next block

	buf, raw []byte
	queue    []log.Record // of the block that was read, not yet handed out
	records  []log.Record
	at       int64 // the block's offset
}

// next returns the next record; see reader.
func (b *blocks) next() (log.Record, found) {
	for len(b.queue) == 0 {
		if got := b.read(); got != (found{}) {
			return log.Record{}, got
		}
	}
	r := b.queue[0]
	b.queue = b.queue[1:]
	return r, found{offset: b.at}
}

// read reads the next block into the queue.
func (b *blocks) read() found {
	b.at = b.offset
	h, payload, got := b.load()
	if got != (found{}) {
		got.offset = b.at
		return got
	}
	b.offset += blockHeaderSize + int64(h.payload)
	if h.kind == blockEnd {
		return found{offset: b.at, err: io.EOF}
	}
	if h.kind != blockRecords {
		return found{}
	}
	var problem string
	if b.raw, problem = h.unpack(payload, b.raw); problem == "" {
		b.records, problem = h.parse(b.raw, b.records)
	}
	if problem != "" {
		return found{offset: b.at, problem: problem, skips: h.after()}
	}
	b.queue = b.records
	return found{}
}

// load reads one block, its payload still compressed.
func (b *blocks) load() (h blockHeader, payload []byte, got found) {
	head := make([]byte, blockHeaderSize)
	n, err := b.f.ReadAt(head, b.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return h, nil, found{err: err}
	}
	if n == 0 {
		return h, nil, found{problem: "the file ends without an end mark"}
	}
	h, problem := parseBlockHeader(head[:n])
	if problem != "" {
		return h, nil, found{problem: problem}
	}
	if cap(b.buf) < int(h.payload) {
		// The buffer grows with what is there, not with what a length claims.
		if left := b.size - b.offset - blockHeaderSize; left < int64(h.payload) {
			return h, nil, found{problem: fmt.Sprintf("a block of %d bytes where %d are left", h.payload, left)}
		}
		b.buf = make([]byte, h.payload)
	}
	payload = b.buf[:h.payload]
	if _, err := b.f.ReadAt(payload, b.offset+blockHeaderSize); errors.Is(err, io.EOF) {
		return h, nil, found{problem: "the file ends within a block"}
	} else if err != nil {
		return h, nil, found{err: err}
	}
	return h, payload, found{}
}
