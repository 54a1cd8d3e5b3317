package journal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Errors.
var (
	// ErrFull: the journal may not grow further, or the disk has no room. Nothing of
	// the append is in the journal. It passes once room is made.
	ErrFull = errors.New("journal is full")
	// ErrDamaged: a file is not as it was written, and not only its end.
	ErrDamaged = errors.New("journal is damaged")
	// ErrCompacted: records after the number asked for were removed.
	ErrCompacted = errors.New("records were compacted")
	// ErrClosed: the journal was closed, or failed earlier, which the message says.
	ErrClosed = errors.New("journal is closed")
	// ErrLocked: another process has it open.
	ErrLocked = errors.New("journal is in use by another process")
)

// Defaults of Config.
const (
	DefaultMaxBytes     = 256 << 20
	DefaultSegmentBytes = 8 << 20
)

// MaxRecord bounds a record, in bytes.
const MaxRecord = 1 << 20

// Config says where a journal is and how large it may get.
type Config struct {
	Dir string // is made if it does not exist
	// MaxBytes bounds all files together; 0: DefaultMaxBytes. While a compaction
	// runs, what it keeps is there twice.
	MaxBytes int64
	// SegmentBytes is the size at which a file is closed; 0: DefaultSegmentBytes.
	SegmentBytes int64
}

// Record is a record and its number. Numbers begin at 1.
type Record struct {
	Seq  uint64
	Data []byte
}

// Journal is safe for concurrent use.
type Journal struct {
	config Config
	lock   *os.File

	mu       sync.Mutex
	segments []*segment // oldest first; the last one is written to
	index    []position // of every record, by number
	last     uint64     // number of the newest durable record, or of a lost one
	shipped  uint64
	dropped  uint64        // highest number that compaction removed
	grown    chan struct{} // closed and replaced whenever last moves
	err      error         // why nothing can be appended any more

	queue   []byte     // records that wait for the next write
	places  []position // of them; offsets count from the start of queue
	next    uint64     // number that the next record gets
	writing bool
	turn    *batch // that takes what is appended now

	compacting sync.Mutex
}

// batch is what one write and one fdatasync make durable.
type batch struct {
	done chan struct{}
	err  error
}

// position is where a record is.
type position struct {
	seq    uint64
	in     *segment
	offset int64
	length int // of its bytes, the record's header not included
}

// end is where the record ends.
func (p position) end() int64 { return p.offset + recordHeader + int64(p.length) }

// Open opens the journal of a directory, and cuts off what a crash left half
// written at its end. ErrDamaged, ErrLocked.
func Open(c Config) (*Journal, error) {
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = DefaultSegmentBytes
	}
	j := &Journal{config: c, grown: make(chan struct{}), next: 1}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := j.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", c.Dir, err), j.Close())
	}
	return j, nil
}

func (j *Journal) open() (err error) {
	if j.lock, err = lockDir(j.config.Dir); err != nil {
		return err
	}
	firsts, err := listSegments(j.config.Dir)
	if err != nil {
		return err
	}
	for i, first := range firsts {
		s, err := openSegment(j.config.Dir, first)
		if err != nil {
			return err
		}
		j.segments = append(j.segments, s)
		if err := j.load(s, i == len(firsts)-1); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(s.path()), err)
		}
	}
	if len(firsts) > 0 {
		j.last = max(j.last, firsts[len(firsts)-1]-1)
	}
	j.next = j.last + 1
	if len(j.segments) == 0 {
		return j.roll(j.next)
	}
	return nil
}

// load adds the records of a file to the index, bar those that an interrupted
// compaction has left a second time.
func (j *Journal) load(s *segment, newest bool) error {
	return s.scan(newest, func(seq uint64, offset int64, data []byte) error {
		if seq <= j.last {
			return nil
		}
		j.index = append(j.index, position{seq, s, offset, len(data)})
		j.last = seq
		return nil
	})
}

// roll closes the last file to writers and begins another, for records from first on.
func (j *Journal) roll(first uint64) error {
	if n := len(j.segments); n > 0 {
		if err := j.segments[n-1].trim(); err != nil {
			return err
		}
	}
	s, err := createSegment(j.config.Dir, first)
	if err != nil {
		return err
	}
	j.segments = append(j.segments, s)
	return nil
}

// Append makes records durable, all or none, and returns the number of the first;
// the others follow it. Appends that wait at the same time share one fdatasync.
// ErrFull, ErrClosed.
func (j *Journal) Append(records ...[]byte) (first uint64, err error) {
	for _, r := range records {
		if len(r) > MaxRecord {
			return 0, fmt.Errorf("journal: a record of %d bytes, the most is %d", len(r), MaxRecord)
		}
	}
	j.mu.Lock()
	if j.err != nil {
		defer j.mu.Unlock()
		return 0, j.err
	}
	if len(records) == 0 {
		defer j.mu.Unlock()
		return j.next, nil
	}
	need := int64(0)
	for _, r := range records {
		need += recordHeader + int64(len(r))
	}
	if size := j.size() + int64(len(j.queue)); size+need > j.config.MaxBytes {
		defer j.mu.Unlock()
		return 0, fmt.Errorf("journal %s: %w: %d bytes of %d", j.config.Dir, ErrFull, size, j.config.MaxBytes)
	}
	first = j.next
	for _, r := range records {
		j.places = append(j.places, position{seq: j.next, offset: int64(len(j.queue)), length: len(r)})
		j.queue = appendRecord(j.queue, j.next, len(j.places)-1, r)
		j.next++
	}
	if j.turn == nil {
		j.turn = &batch{done: make(chan struct{})}
	}
	mine := j.turn
	lead := !j.writing
	if lead {
		j.writing = true
	}
	j.mu.Unlock()
	if lead {
		j.write()
	}
	<-mine.done
	if mine.err != nil {
		return 0, fmt.Errorf("journal %s: %w", j.config.Dir, mine.err)
	}
	return first, nil
}

// write makes batch after batch durable until nobody waits.
func (j *Journal) write() {
	for {
		j.mu.Lock()
		b, queue, places := j.turn, j.queue, j.places
		if b == nil {
			j.writing = false
			j.mu.Unlock()
			return
		}
		j.turn, j.queue, j.places = nil, nil, nil
		at, err := j.target()
		j.mu.Unlock()

		if err == nil {
			err = at.append(queue)
		}

		j.mu.Lock()
		if err == nil {
			for _, p := range places {
				p.in, p.offset = at, at.size+p.offset
				j.index = append(j.index, p)
			}
			at.size += int64(len(queue))
			j.last = places[len(places)-1].seq
			close(j.grown)
			j.grown = make(chan struct{})
		} else {
			j.undo(places, err)
		}
		j.mu.Unlock()
		b.err = err
		close(b.done)
	}
}

// target is the file that the next batch goes to.
func (j *Journal) target() (*segment, error) {
	at := j.segments[len(j.segments)-1]
	if at.size < j.config.SegmentBytes {
		return at, nil
	}
	if err := j.roll(j.last + 1); err != nil {
		return nil, classify(err)
	}
	return j.segments[len(j.segments)-1], nil
}

// undo gives the numbers of a failed batch back. Those who wait behind it have got
// higher ones, so they fail with it.
func (j *Journal) undo(places []position, err error) {
	if later := j.turn; later != nil {
		later.err = err
		close(later.done)
	}
	j.turn, j.queue, j.places = nil, nil, nil
	j.next = places[0].seq
	if !errors.Is(err, ErrFull) && j.err == nil {
		// What is on the disk is not known any more; Open will tell.
		j.err = fmt.Errorf("journal %s: %w: %w", j.config.Dir, ErrClosed, err)
	}
}

// classify tells a lack of room from other errors.
func classify(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// Last is the number of the newest record that is durable; 0 if there never was one.
func (j *Journal) Last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Size is the bytes of all files.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size()
}

func (j *Journal) size() (n int64) {
	for _, s := range j.segments {
		n += s.size
	}
	return n
}

// Wait returns once there is a record with a number above after, or ctx ends.
func (j *Journal) Wait(ctx context.Context, after uint64) error {
	for {
		j.mu.Lock()
		last, grown, err := j.last, j.grown, j.err
		j.mu.Unlock()
		switch {
		case last > after:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readMost is how many bytes of records Read returns, unless the first is larger.
const readMost = 1 << 20

// Read returns the records with numbers above after, in order, at most limit of
// them and about a MiB. ErrCompacted if some of those that come next are gone.
func (j *Journal) Read(after uint64, limit int) ([]Record, error) {
	j.mu.Lock()
	if after < j.dropped {
		defer j.mu.Unlock()
		return nil, fmt.Errorf("journal %s: %w: up to %d, asked for those after %d", j.config.Dir, ErrCompacted, j.dropped, after)
	}
	places := j.after(after, limit, readMost)
	j.mu.Unlock()
	return readAll(places)
}

// Replay calls fn for every record that there is, in order.
func (j *Journal) Replay(fn func(Record) error) error {
	const some = 1024
	for after := uint64(0); ; {
		j.mu.Lock()
		places := j.after(after, some, math.MaxInt64)
		j.mu.Unlock()
		records, err := readAll(places)
		if err != nil {
			return err
		}
		for _, r := range records {
			if err := fn(r); err != nil {
				return err
			}
			after = r.Seq
		}
		if len(records) < some {
			return nil
		}
	}
}

// after is a copy of the index from the first number above seq on, with a hold on
// each file: at most limit records, and of the bytes unless the first has more.
func (j *Journal) after(seq uint64, limit int, bytes int64) []position {
	i, found := slices.BinarySearchFunc(j.index, seq, func(p position, seq uint64) int {
		switch {
		case p.seq < seq:
			return -1
		case p.seq > seq:
			return 1
		}
		return 0
	})
	if found {
		i++
	}
	n := 0
	for _, p := range j.index[i:min(i+limit, len(j.index))] {
		if bytes -= int64(p.length); bytes < 0 && n > 0 {
			break
		}
		p.in.hold()
		n++
	}
	return slices.Clone(j.index[i : i+n])
}

// readBytes is how much of a file is read at once, unless a record is larger.
const readBytes = 128 << 10

// adjacent is how many of the first records stand one behind the other in one file,
// and are few enough to be read at once.
func adjacent(places []position) int {
	first := places[0]
	n, end := 1, first.end()
	for n < len(places) && places[n].in == first.in && places[n].offset == end && places[n].end()-first.offset <= readBytes {
		end = places[n].end()
		n++
	}
	return n
}

func readAll(places []position) ([]Record, error) {
	records := make([]Record, 0, len(places))
	var errs []error
	for len(places) > 0 {
		run := adjacent(places)
		var err error
		if records, err = places[0].in.read(records, places[:run]); err != nil {
			errs = append(errs, fmt.Errorf("journal: %w", err))
		}
		for _, p := range places[:run] {
			_ = p.in.release() // read only
		}
		places = places[run:]
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return records, nil
}

// Close closes the files. Appends that wait are completed first.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.err == nil {
		j.err = fmt.Errorf("journal %s: %w", j.config.Dir, ErrClosed)
		close(j.grown)
		j.grown = make(chan struct{})
	}
	waiting := j.turn
	j.mu.Unlock()
	if waiting != nil {
		<-waiting.done
	}
	j.compacting.Lock()
	defer j.compacting.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	if n := len(j.segments); n > 0 {
		errs = append(errs, j.segments[n-1].trim())
	}
	for _, s := range j.segments {
		errs = append(errs, s.release())
	}
	j.segments = nil
	if j.lock != nil {
		errs = append(errs, j.lock.Close())
		j.lock = nil
	}
	return errors.Join(errs...)
}
