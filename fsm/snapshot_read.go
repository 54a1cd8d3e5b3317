package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// ReadSnapshot reads what View.WriteSnapshot wrote, to the end of r. It returns a
// State only if everything holds: checksums, order, references between rows,
// and the state digest. The error is ErrCorrupt for a file that is damaged, cut
// off or no snapshot at all, ErrUpgradeNeeded for one of a later version, or
// r's own. Whether the snapshot is of the right cluster and chain the caller
// compares.
func ReadSnapshot(r io.Reader) (*State, error) {
	sr := snapshotReader{r: bufio.NewReaderSize(r, 1<<16), sum: sha256.New()}
	s, err := sr.state()
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return s, nil
}

type snapshotReader struct {
	r     *bufio.Reader
	sum   hash.Hash // of what was read
	count uint64
	buf   bytes.Buffer
}

// ReadSnapshotHeader reads what a snapshot is of, and none of its rows. Only the
// header's own bytes have been checked then.
func ReadSnapshotHeader(r io.Reader) (*eventpb.SnapshotHeader, error) {
	sr := snapshotReader{r: bufio.NewReaderSize(r, 1<<12), sum: sha256.New()}
	h, err := sr.header()
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return h, nil
}

func (sr *snapshotReader) header() (*eventpb.SnapshotHeader, error) {
	magic := make([]byte, len(snapshotMagic))
	if err := sr.full(magic, "magic"); err != nil {
		return nil, err
	}
	if string(magic) != snapshotMagic {
		return nil, corruptf("starts with %q, which is no varve snapshot", magic)
	}
	header := new(eventpb.SnapshotHeader)
	b, err := sr.frame("header")
	switch {
	case err != nil:
		return nil, err
	case b == nil:
		return nil, corruptf("header: missing")
	}
	if err := log.UnmarshalMessage(b, header); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if header.Format > snapshotFormat {
		return nil, fmt.Errorf("format %d, this version reads %d: %w", header.Format, snapshotFormat, log.ErrUpgradeNeeded)
	}
	return header, nil
}

func (sr *snapshotReader) state() (*State, error) {
	header, err := sr.header()
	if err != nil {
		return nil, err
	}
	l, err := newLoader(header)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	for {
		what := fmt.Sprintf("record %d", sr.count+1)
		b, err := sr.frame(what)
		if err != nil {
			return nil, err
		}
		if b == nil {
			break
		}
		sr.count++
		record := new(eventpb.SnapshotRecord)
		if err := log.UnmarshalMessage(b, record); err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		if err := l.add(record); err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
	}
	if err := sr.trailer(); err != nil {
		return nil, err
	}
	return l.finish()
}

func (sr *snapshotReader) trailer() error {
	var count [8]byte
	if err := sr.full(count[:], "count"); err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint64(count[:]); n != sr.count {
		return corruptf("count: says %d records, %d were read", n, sr.count)
	}
	want := sr.sum.Sum(nil)
	got := make([]byte, len(want))
	if err := sr.full(got, "sum"); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return corruptf("sum: SHA-256 %x over bytes with %x", got, want)
	}
	switch _, err := sr.r.ReadByte(); {
	case err == nil:
		return corruptf("bytes after the end")
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// frame returns the bytes of the next frame, valid until the next call, or nil at
// the end mark.
func (sr *snapshotReader) frame(what string) ([]byte, error) {
	n, err := sr.length(what)
	if n == 0 || err != nil {
		return nil, err
	}
	var crc [4]byte
	if err := sr.full(crc[:], what); err != nil {
		return nil, err
	}
	// The buffer grows with what is there, not with what a length claims.
	sr.buf.Reset()
	if _, err := io.CopyN(&sr.buf, sr.r, n); err != nil {
		return nil, readError(err, what)
	}
	b := sr.buf.Bytes()
	sr.sum.Write(b)
	if want, got := binary.LittleEndian.Uint32(crc[:]), log.Checksum(b); want != got {
		return nil, corruptf("%s: CRC32C %08x over bytes with %08x", what, want, got)
	}
	return b, nil
}

func (sr *snapshotReader) full(b []byte, what string) error {
	if _, err := io.ReadFull(sr.r, b); err != nil {
		return readError(err, what)
	}
	sr.sum.Write(b)
	return nil
}

// length reads a frame's length: 0 for the end mark, else at most maxFrame.
func (sr *snapshotReader) length(what string) (int64, error) {
	var n int64
	for shift := 0; ; shift += 7 {
		var b [1]byte
		if err := sr.full(b[:], what); err != nil {
			return 0, err
		}
		n |= int64(b[0]&0x7f) << shift
		if n > maxFrame || shift > 28 {
			return 0, corruptf("%s: a length of more than %d bytes", what, maxFrame)
		}
		if b[0] < 0x80 {
			return n, nil
		}
	}
}

func readError(err error, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corruptf("%s: the file ends in it", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func corruptf(format string, args ...any) error {
	return &log.CorruptError{What: fmt.Sprintf(format, args...)}
}
