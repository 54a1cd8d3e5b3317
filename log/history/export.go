package history

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// An exported file is a packed segment with more in it: first a block that says
// what it is, then the state before its first record, unless that is the empty
// one, then the records. It is verified and read without an agent.

// Exporter writes an exported file.
type Exporter struct {
	w      io.Writer
	header *eventpb.ArchiveHeader
	block  blockBuilder
	err    error // the first one; nothing is written after it
}

// NewExporter begins a file of the records from header.first on; before is the
// chain value before them.
func NewExporter(w io.Writer, header *eventpb.ArchiveHeader, before log.Hash) (*Exporter, error) {
	e := &Exporter{w: w, header: header, block: blockBuilder{chain: before}}
	meta, err := log.MarshalMessage(header)
	if err != nil {
		return nil, err
	}
	first := log.Revision(header.First)
	e.write(appendHeader(nil, versionPacked, first, before))
	e.write(e.block.pack(blockHeader{kind: blockMeta, first: first, before: before, chain: before}, meta))
	return e, e.err
}

func (e *Exporter) write(b []byte) {
	if e.err == nil {
		_, e.err = e.w.Write(b)
	}
}

// State adds the state before the first record, which write writes.
func (e *Exporter) State(write func(io.Writer) error) error {
	pieces := &pieceWriter{e: e}
	if err := write(pieces); err != nil {
		return err
	}
	pieces.flush()
	return e.err
}

// pieceWriter makes blocks of a stream of bytes.
type pieceWriter struct {
	e   *Exporter
	buf []byte
}

func (p *pieceWriter) Write(b []byte) (int, error) {
	p.buf = append(p.buf, b...)
	for len(p.buf) >= blockTarget {
		rest := p.buf[blockTarget:]
		p.buf = p.buf[:blockTarget]
		p.flush()
		p.buf = append(p.buf, rest...)
	}
	return len(b), p.e.err
}

func (p *pieceWriter) flush() {
	e := p.e
	if len(p.buf) > 0 {
		e.write(e.block.pack(blockHeader{
			kind: blockCheckpoint, first: log.Revision(e.header.First), before: e.block.chain, chain: e.block.chain,
		}, p.buf))
	}
	p.buf = p.buf[:0]
}

// Add writes the next record; with whole false, only what the chain needs of it.
func (e *Exporter) Add(r log.Record, whole bool) error {
	if !whole {
		leaf := log.Leaf(r.Event)
		r.Outcome, r.Reason, r.Event = outcomeLeftOut, "", leaf[:]
	}
	e.block.add(&r)
	if e.block.full() {
		e.write(e.block.take())
	}
	return e.err
}

// Close ends the file with its mark. Without it the file counts as cut off.
func (e *Exporter) Close() error {
	if block := e.block.take(); block != nil {
		e.write(block)
	}
	e.write(e.block.end(log.Revision(e.header.Last) + 1))
	return e.err
}

// OpenFile opens an exported file. It can be read and verified as a history can;
// damage hides only what it hits.
func OpenFile(path string, logger *slog.Logger) (*History, error) {
	h := &History{dir: path, logger: logger, readOnly: true, broken: errReadOnly}
	if err := h.openExported(); err != nil {
		return nil, fmt.Errorf("exported log %s: %w", path, err)
	}
	return h, nil
}

func (h *History) openExported() error {
	f, err := os.Open(h.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, headerSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	seg := &segment{path: h.dir, exported: true}
	var problem string
	seg.header, problem = parseHeader(b[:n])
	switch {
	case problem != "":
		return &log.CorruptError{What: problem + "; it is no exported log, or damaged"}
	case seg.version != versionPacked:
		return fmt.Errorf("format version %d, this varve reads exports of version %d: %w", seg.version, versionPacked, log.ErrUpgradeNeeded)
	}
	blocks := blocks{f: f, size: info.Size(), offset: headerSize}
	head, payload, got := blocks.load()
	if got.ok() && head.kind != blockMeta {
		got.problem = "it does not begin with what it is: this is a segment of a history; name its directory"
	}
	var meta []byte
	if got.ok() {
		meta, got.problem = head.unpack(payload, nil)
	}
	if !got.ok() {
		return errors.Join(&log.CorruptError{What: got.problem}, got.err)
	}
	h.meta = new(eventpb.ArchiveHeader)
	if err := log.UnmarshalMessage(meta, h.meta); err != nil {
		return err
	}
	next := headerSize + blockHeaderSize + int64(head.payload)
	blocks.offset = next
	if head, _, got = blocks.load(); got.ok() && head.kind == blockCheckpoint {
		h.stateOffset = next
		h.checkpoints = []log.Revision{seg.first - 1}
	} else if seg.first > 1 {
		h.ended(seg.corrupt(next, seg.first, "the state before the first record is not there: "+got.problem))
	}
	if err := h.openLastPacked(f, seg, info.Size()); err != nil {
		return err
	}
	if last := h.lastLocked(); h.damage == nil && last != log.Revision(h.meta.Last) {
		h.ended(seg.corrupt(info.Size(), last+1, fmt.Sprintf("the file ends at revision %d, its beginning says %d", last, h.meta.Last)))
	}
	return nil
}

// Exported says what an exported file holds; nil of a directory.
func (h *History) Exported() *eventpb.ArchiveHeader { return h.meta }

// Damage is what a history that was opened to be read only ends before, or nil.
func (h *History) Damage() error { return h.damage }

// openExportedState reads the state in an exported file.
func (h *History) openExportedState(at log.Revision) (io.ReadCloser, error) {
	f, err := os.Open(h.dir)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &exportedState{f: f, at: at, path: h.dir, blocks: blocks{f: f, size: info.Size(), offset: h.stateOffset}}, nil
}

type exportedState struct {
	f      *os.File
	at     log.Revision
	path   string
	blocks blocks
	raw    []byte
	rest   []byte
}

func (s *exportedState) Read(b []byte) (int, error) {
	for len(s.rest) == 0 {
		head, payload, got := s.blocks.load()
		if got.ok() && head.kind != blockCheckpoint {
			return 0, io.EOF
		}
		if got.ok() {
			s.raw, got.problem = head.unpack(payload, s.raw)
			s.rest = s.raw
		}
		if got.err != nil {
			return 0, got.err
		}
		if got.problem != "" {
			return 0, &log.CorruptError{Revision: s.at, What: fmt.Sprintf("the state in %s at offset %d: %s", s.path, s.blocks.offset, got.problem)}
		}
		s.blocks.offset += blockHeaderSize + int64(head.payload)
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *exportedState) Close() error { return s.f.Close() }
