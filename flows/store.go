package flows

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Defaults of Config.
const (
	DefaultMaxBytes = 256 << 20
	DefaultMaxAge   = 7 * 24 * time.Hour
)

// Times at which blocks are written.
const (
	// writeEvery is how much a killed process loses.
	writeEvery = 5 * time.Second
	// idleEvery is how often a block without flows says that somebody watched.
	idleEvery = 30 * time.Second
)

// segmentParts is how many segments the store's size is divided into: the oldest is
// removed whole.
const segmentParts = 16

// maxFlows bounds the distinct flows that are counted between two blocks. Each is
// some 250 bytes.
const maxFlows = 100_000

// followBuffer is how many flows a follower may fall behind.
const followBuffer = 4096

// Config is what a Store is made of.
type Config struct {
	Dir      string
	MaxBytes int64         // of all segments
	MaxAge   time.Duration // of a segment's newest flow
	// Lost is the number of events, since some fixed moment, for which the ring
	// buffer had no room.
	Lost   func() (uint64, error)
	Logger *slog.Logger

	now        func() time.Time
	writeEvery time.Duration
}

// Store is a node's flow record. It is safe for concurrent use.
type Store struct {
	Config

	mu         sync.Mutex
	segments   []*segment // by age; the last is written to
	file       *os.File   // of the last segment
	counts     map[Key]*Flow
	fromNS     int64 // beginning of the block in the making
	gap        bool  // nobody watched before it
	overflowed uint64
	lostBefore uint64
	followers  map[*follower]struct{}
	failed     error // why the last block is not in a file
	observed   uint64
	closed     bool
	readOnly   bool // nobody writes it here
}

type follower struct {
	flows  chan Flow
	missed uint64 // guarded by Store.mu
}

// Open opens or creates the store in a directory, which nobody else uses. What a
// crash tore off the end of the last segment is cut off.
func Open(cfg Config) (*Store, error) {
	cfg.MaxBytes, cfg.MaxAge = cmp.Or(cfg.MaxBytes, DefaultMaxBytes), cmp.Or(cfg.MaxAge, DefaultMaxAge)
	cfg.writeEvery = cmp.Or(cfg.writeEvery, writeEvery)
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.Lost == nil {
		cfg.Lost = func() (uint64, error) { return 0, nil }
	}
	s := &Store{Config: cfg, counts: map[Key]*Flow{}, gap: true, followers: map[*follower]struct{}{}}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("flow store %s: %w", cfg.Dir, err)
	}
	return s, nil
}

// OpenReadOnly opens a record that another process may write to, as it is now. Only
// Read, Stats, Now and Close may be called; nothing in the directory is changed.
func OpenReadOnly(dir string) (*Store, error) {
	s := &Store{Config: Config{Dir: dir}, readOnly: true}
	var err error
	if s.segments, err = scanDir(dir); err != nil {
		return nil, fmt.Errorf("flow store %s: %w", dir, err)
	}
	end := s.Stats().ToNS
	s.now = func() time.Time { return time.Unix(0, end) }
	return s, nil
}

// Now is what "an hour ago" counts back from: the clock's time, or the end of a record
// that was opened to be read only.
func (s *Store) Now() time.Time { return s.now() }

func (s *Store) open() error {
	if err := os.MkdirAll(s.Dir, 0o750); err != nil {
		return err
	}
	var err error
	if s.segments, err = scanDir(s.Dir); err != nil {
		return err
	}
	if n := len(s.segments); n > 0 {
		if err := s.resume(s.segments[n-1]); err != nil {
			return err
		}
	}
	s.fromNS = s.now().UnixNano()
	if s.lostBefore, err = s.Lost(); err != nil {
		return err
	}
	return nil
}

// resume goes on writing to the last segment, unless it is damaged.
func (s *Store) resume(last *segment) error {
	if last.damage != "" {
		s.Logger.Warn("a flow segment is damaged; what is before the damage stays readable", "segment", last.path, "problem", last.damage)
		return nil // the next block begins a new one
	}
	f, err := os.OpenFile(last.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if last.torn {
		s.Logger.Info("the torn end of a flow segment is cut off", "segment", last.path, "offset", last.end)
		if last.end < headerSize {
			_, err = f.WriteAt(appendHeader(nil), 0)
			last.end = headerSize
		}
		if err = errors.Join(err, f.Truncate(last.end)); err != nil {
			return errors.Join(err, f.Close())
		}
		last.torn = false
	}
	s.file = f
	return nil
}

// Observe counts one event: a flow with a Count of 1 or more, seen at its LastNS.
func (s *Store) Observe(f Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.observed += f.Count
	for to := range s.followers {
		select {
		case to.flows <- f:
		default:
			to.missed += f.Count
		}
	}
	have, ok := s.counts[f.Key]
	switch {
	case ok:
		have.LastNS, have.LastRevision = max(have.LastNS, f.LastNS), max(have.LastRevision, f.LastRevision)
		have.Count += f.Count
	case len(s.counts) >= maxFlows:
		s.overflowed += f.Count
	default:
		f := f
		s.counts[f.Key] = &f
	}
}

// Run writes blocks until ctx ends, then the last one.
func (s *Store) Run(ctx context.Context) {
	t := time.NewTicker(s.writeEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			s.write(true)
			return
		case <-t.C:
			s.write(false)
		}
	}
}

// write appends what was counted since the block before; an idle store does so
// rarely, unless it must.
func (s *Store) write(must bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writeLocked(must); err != nil {
		if s.failed == nil {
			s.Logger.Error("flows are not recorded", "error", err)
		}
		s.failed = err
		return
	}
	if s.failed != nil {
		s.Logger.Info("flows are recorded again")
		s.failed = nil
	}
}

func (s *Store) writeLocked(must bool) error {
	now := s.now().UnixNano()
	lost, err := s.Lost()
	if err != nil {
		// It is only not known how many were lost; the next block will tell.
		s.Logger.Debug("lost events are not known", "error", err)
		lost = s.lostBefore
	}
	b := &block{fromNS: s.fromNS, toNS: max(now, s.fromNS), gap: s.gap, overflowed: s.overflowed, flows: make([]Flow, 0, len(s.counts))}
	if lost > s.lostBefore {
		b.lost = lost - s.lostBefore
	}
	if len(s.counts) == 0 && b.lost == 0 && b.overflowed == 0 && !must && now-s.fromNS < int64(idleEvery) {
		return nil
	}
	for _, f := range s.counts {
		b.fromNS = min(b.fromNS, f.FirstNS)
		b.flows = append(b.flows, *f)
	}
	byAge(b.flows)
	// What cannot be written is lost, and told as such once something can: memory
	// is bounded, and a full disk may stay full.
	s.counts = map[Key]*Flow{}
	if err := s.append(b); err != nil {
		for i := range b.flows {
			s.overflowed += b.flows[i].Count
		}
		return err
	}
	s.fromNS, s.gap, s.overflowed, s.lostBefore = b.toNS, false, 0, lost
	return s.expire(now)
}

// Close ends recording. Run must have returned.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.file == nil {
		s.closed = true
		return nil
	}
	s.closed = true
	return errors.Join(s.file.Sync(), s.file.Close())
}

// Stats is how the store does.
type Stats struct {
	Bytes            int64
	Segments         int
	FromNS, ToNS     int64  // span of what is kept; 0: nothing is
	Pending          int    // distinct flows not in a file yet
	Lost, Overflowed uint64 // events that are missing in what is kept
	Observed         uint64 // events, since Open
	Err              error  // why the last block is not in a file
}

// Stats says how large the store is and how far back it goes.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Segments: len(s.segments), Pending: len(s.counts), Overflowed: s.overflowed, Observed: s.observed, Err: s.failed}
	for _, seg := range s.segments {
		st.Bytes += seg.end
		if seg.fromNS != 0 && (st.FromNS == 0 || seg.fromNS < st.FromNS) {
			st.FromNS = seg.fromNS
		}
		st.ToNS = max(st.ToNS, seg.toNS)
		st.Lost += seg.lost
		st.Overflowed += seg.overflowed
	}
	for _, f := range s.counts {
		if st.FromNS == 0 || f.FirstNS < st.FromNS {
			st.FromNS = f.FirstNS
		}
		st.ToNS = max(st.ToNS, f.LastNS)
	}
	return st
}

// expire removes the segments that are too old, or too many.
func (s *Store) expire(now int64) error {
	var size int64
	for _, seg := range s.segments {
		size += seg.end
	}
	for len(s.segments) > 1 {
		oldest := s.segments[0]
		if size <= s.MaxBytes && oldest.toNS >= now-int64(s.MaxAge) {
			break
		}
		if err := os.Remove(oldest.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		size -= oldest.end
		s.segments = s.segments[1:]
	}
	return nil
}

// append writes a block to the last segment, or to a new one.
func (s *Store) append(b *block) error {
	body, err := b.encode()
	if err != nil {
		return err
	}
	if len(body) > maxBody {
		return fmt.Errorf("a block of %d bytes", len(body))
	}
	frame := appendFrame(nil, body)
	if s.file != nil {
		last := s.segments[len(s.segments)-1]
		// A segment is also closed once it is a part of the age, so that expiry by
		// age has something to remove.
		if last.end+int64(len(frame)) > s.MaxBytes/segmentParts || last.fromNS != 0 && b.toNS-last.fromNS > int64(s.MaxAge)/segmentParts {
			if err := s.file.Close(); err != nil {
				return err
			}
			s.file = nil
		}
	}
	if s.file == nil {
		if err := s.begin(b.fromNS); err != nil {
			return err
		}
	}
	last := s.segments[len(s.segments)-1]
	if _, err := s.file.WriteAt(frame, last.end); err != nil {
		return errors.Join(err, s.file.Truncate(last.end))
	}
	last.end += int64(len(frame))
	last.note(b)
	return nil
}

func (s *Store) begin(fromNS int64) error {
	if n := len(s.segments); n > 0 {
		fromNS = max(fromNS, s.segments[n-1].name+1)
	}
	seg := &segment{path: filepath.Join(s.Dir, segmentName(fromNS)), name: fromNS, end: headerSize}
	f, err := os.OpenFile(seg.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(appendHeader(nil), 0); err != nil {
		return errors.Join(err, f.Close(), os.Remove(seg.path))
	}
	s.file = f
	s.segments = append(s.segments, seg)
	return nil
}
