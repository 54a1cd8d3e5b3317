// Package inforce records which tables a node had in force: their digest at the
// coordinate (revision of the log, sequence number of the node's own facts) that
// they were made of. An audit recomputes the digests from the log and compares.
//
// Two files of fixed size hold the newest records; when one is full, the other is
// written anew. A record is 64 bytes:
//
//	revision u64 | journal sequence u64 | time i64 | digest [32] | 0 u32 | CRC32C u32
//
// It is a record of what was, not of what must be: what a crash of the machine
// takes of its end is not known afterwards, and a torn record is passed over.
package inforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/varve-net/varve/log"
)

// Record is one set of tables that was in force.
type Record struct {
	Revision   log.Revision
	JournalSeq uint64
	TimeNS     int64 // when they came in force
	Digest     log.Hash
}

const (
	recordSize = 64
	// perFile is how many records a file holds: 32768 are 2 MiB.
	perFile = 32768
)

var names = [...]string{"tables-0.digests", "tables-1.digests"}

// Recorder appends to the files of one directory. It is safe for concurrent use.
type Recorder struct {
	dir     string
	perFile int

	mu   sync.Mutex
	file *os.File
	at   int // which of names file is
	n    int // records in it
	last Record
}

// Open opens the files in a directory, or makes them.
func Open(dir string) (*Recorder, error) { return open(dir, perFile) }

func open(dir string, perFile int) (*Recorder, error) {
	r := &Recorder{dir: dir, perFile: perFile}
	newest, err := r.newest()
	if err != nil {
		return nil, err
	}
	if err := r.use(newest, false); err != nil {
		return nil, err
	}
	return r, nil
}

// newest is the file whose first record is the later one.
func (r *Recorder) newest() (int, error) {
	var firsts [len(names)]int64
	for i, name := range names {
		records, err := readFile(filepath.Join(r.dir, name))
		if err != nil {
			return 0, err
		}
		if len(records) > 0 {
			firsts[i] = records[0].TimeNS
		}
	}
	if firsts[1] > firsts[0] {
		return 1, nil
	}
	return 0, nil
}

// use makes one of the files the one to write to.
func (r *Recorder) use(i int, anew bool) error {
	flags := os.O_RDWR | os.O_CREATE
	if anew {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(filepath.Join(r.dir, names[i]), flags, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if r.file != nil {
		err = r.file.Close()
	}
	r.file, r.at, r.n = f, i, int(info.Size()/recordSize)
	return err
}

// Add records tables. What equals the record before but for the time is left out.
func (r *Recorder) Add(rec Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec.Revision == r.last.Revision && rec.JournalSeq == r.last.JournalSeq && rec.Digest == r.last.Digest {
		return nil
	}
	if r.n >= r.perFile {
		if err := r.use(1-r.at, true); err != nil {
			return fmt.Errorf("digests in force: %w", err)
		}
	}
	if _, err := r.file.WriteAt(rec.append(nil), int64(r.n)*recordSize); err != nil {
		return fmt.Errorf("digests in force: %w", err)
	}
	r.n++
	r.last = rec
	return nil
}

// All reads what is recorded, in the order in which it was.
func (r *Recorder) All() ([]Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Record
	for _, i := range []int{1 - r.at, r.at} {
		records, err := readFile(filepath.Join(r.dir, names[i]))
		if err != nil {
			return nil, err
		}
		all = append(all, records...)
	}
	return all, nil
}

// Close releases the file.
func (r *Recorder) Close() error { return r.file.Close() }

// Read reads what a node recorded in a directory.
func Read(dir string) ([]Record, error) {
	var all []Record
	for _, name := range names {
		records, err := readFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		all = append(all, records...)
	}
	slices.SortStableFunc(all, func(a, b Record) int { return int(min(1, max(-1, a.TimeNS-b.TimeNS))) })
	return all, nil
}

func readFile(path string) ([]Record, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Record
	for ; len(b) >= recordSize; b = b[recordSize:] {
		if log.Checksum(b[:60]) != binary.LittleEndian.Uint32(b[60:]) {
			continue
		}
		rec := Record{
			Revision:   log.Revision(binary.LittleEndian.Uint64(b)),
			JournalSeq: binary.LittleEndian.Uint64(b[8:]),
			TimeNS:     int64(binary.LittleEndian.Uint64(b[16:])),
		}
		copy(rec.Digest[:], b[24:56])
		out = append(out, rec)
	}
	return out, nil
}

func (rec *Record) append(b []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint64(b, uint64(rec.Revision))
	b = binary.LittleEndian.AppendUint64(b, rec.JournalSeq)
	b = binary.LittleEndian.AppendUint64(b, uint64(rec.TimeNS))
	b = append(b, rec.Digest[:]...)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, log.Checksum(b[start:]))
}
