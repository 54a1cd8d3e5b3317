package dataplane

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
)

// How much of each map one pass compares: small maps whole, of others the part
// that has every row compared within sweepPasses passes.
const (
	sweepRows   = 8192
	sweepPasses = 5
)

// rowChecker finds rows of the kernel that somebody else has changed. It goes
// through each map a batch at a time, and looks each row up in what the Syncer
// remembers; the Syncer waits no longer than for a batch. Rows that are missing
// show by their number at the end of a sweep. Whatever looks wrong is confirmed by
// reading the map as a whole before anybody is told. Not safe for concurrent use.
type rowChecker struct {
	s      *Syncer
	syncs  func() uint64 // changes with every Sync that wrote
	sweeps []sweeper
}

type sweeper interface {
	// step goes on for one pass and tells whether something differs.
	step(ctx context.Context, s *Syncer, syncs func() uint64) (differs bool, err error)
}

func newRowChecker(s *Syncer, syncs func() uint64) *rowChecker {
	m := s.maps
	return &rowChecker{s: s, syncs: syncs, sweeps: []sweeper{
		&sweep[abi.PolicyKey, abi.PolicyValue]{m: m.Policy, want: func(r *rows) map[abi.PolicyKey]abi.PolicyValue { return r.policy }},
		&sweep[abi.ClassKey, abi.ClassValue]{m: m.Classes, want: func(r *rows) map[abi.ClassKey]abi.ClassValue { return r.classes }},
		&sweep[abi.EndpointKey, abi.EndpointValue]{m: m.Endpoints, want: func(r *rows) map[abi.EndpointKey]abi.EndpointValue { return r.endpoints }},
		&prefixSweep[abi.IPCacheKey]{
			m: m.IPCache, prefix: func(k abi.IPCacheKey) prefix { return prefix{PrefixLen: fullLength, Addr: k.Addr} },
			mine: func(p prefix) bool { return p.PrefixLen == fullLength },
		},
		&prefixSweep[abi.IPCacheLPMKey]{
			m: m.IPCacheLPM, prefix: func(k abi.IPCacheLPMKey) prefix { return k },
			mine: func(p prefix) bool { return p.PrefixLen != fullLength },
		},
	}}
}

// pass compares the part of the maps whose turn it is. Differences are those of
// all maps, and come with what must not wait already written: see settle. The
// caller completes the repair by a Sync.
func (c *rowChecker) pass(ctx context.Context, n names) ([]Difference, error) {
	for _, w := range c.sweeps {
		differs, err := w.step(ctx, c.s, c.syncs)
		if err != nil {
			return nil, err
		}
		if !differs {
			continue
		}
		if ds, err := c.s.settle(ctx, n); len(ds) > 0 || err != nil {
			c.s.Forget()
			return ds, err
		}
	}
	return nil, nil
}

// scanner is what a Map of the kernel can do beyond Map: be read by and by.
type scanner[K, V comparable] interface {
	// scan reads some rows from cursor on. fn must not keep the slices.
	scan(cursor *scanCursor, fn func([]K, []V)) (end bool, err error)
}

type scanCursor struct {
	at   ebpf.MapBatchCursor
	size int // of a batch; 0: the usual
}

// errRestart: a bucket held more rows than a batch takes; the next scan has a
// larger one and begins anew.
var errRestart = errors.New("scan begins anew")

// scan implements scanner.
func (m *KernelMap[K, V]) scan(cursor *scanCursor, fn func([]K, []V)) (end bool, err error) {
	if cursor.size == 0 {
		cursor.size = min(batchRows, max(int(m.m.MaxEntries()), 1))
	}
	keys, values := make([]K, cursor.size), make([]V, cursor.size)
	n, err := m.m.BatchLookup(&cursor.at, keys, values, nil)
	end = errors.Is(err, ebpf.ErrKeyNotExist)
	switch {
	case errors.Is(err, unix.ENOSPC):
		*cursor = scanCursor{size: 2 * cursor.size}
		return false, errRestart
	case err != nil && !end:
		return false, fmt.Errorf("map %s: batch lookup: %w", m.name, err)
	}
	fn(keys[:n], values[:n])
	return end, nil
}

// sweep goes through one map, whose rows should be those of want.
type sweep[K, V comparable] struct {
	m    Map[K, V]
	want func(*rows) map[K]V

	cursor scanCursor
	seen   int    // rows of this sweep that are as they should be
	began  uint64 // syncs when it began
}

func (w *sweep[K, V]) step(ctx context.Context, s *Syncer, syncs func() uint64) (bool, error) {
	return walk(ctx, s, syncs, w.m, &w.cursor, &w.seen, &w.began,
		func(r *rows) int { return len(w.want(r)) },
		func(r *rows, k K) (V, bool) { v, ok := w.want(r)[k]; return v, ok })
}

// prefixSweep goes through one of the two maps that hold the ipcache.
type prefixSweep[K comparable] struct {
	m      Map[K, abi.IPCacheValue]
	prefix func(K) prefix
	mine   func(prefix) bool // prefixes that are in this map

	cursor scanCursor
	seen   int
	began  uint64
}

func (w *prefixSweep[K]) step(ctx context.Context, s *Syncer, syncs func() uint64) (bool, error) {
	return walk(ctx, s, syncs, w.m, &w.cursor, &w.seen, &w.began,
		func(r *rows) (n int) {
			for p := range r.prefixes {
				if w.mine(p) {
					n++
				}
			}
			return n
		},
		func(r *rows, k K) (abi.IPCacheValue, bool) { v, ok := r.prefixes[w.prefix(k)]; return v, ok })
}

// walk is one pass over one map.
func walk[K, V comparable](ctx context.Context, s *Syncer, syncs func() uint64, m Map[K, V], cursor *scanCursor, seen *int, began *uint64,
	count func(*rows) int, want func(*rows, K) (V, bool)) (differs bool, err error) {
	restart := func() { *cursor, *seen, *began = scanCursor{size: cursor.size}, 0, syncs() }
	if *seen == 0 {
		restart()
	}
	for done := 0; ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		batch, end, budget := 0, false, 0
		err := s.known(func(have *rows) error {
			wrong := 0
			look := func(keys []K, values []V) {
				batch = len(keys)
				for i, k := range keys {
					if v, ok := want(have, k); ok && v == values[i] {
						*seen++
					} else {
						wrong++
					}
				}
			}
			var err error
			if end, err = scan(ctx, m, cursor, look); err != nil {
				return err
			}
			if wrong > 0 {
				differs = true
			}
			if end && !differs {
				// Rows that were written meanwhile may have been seen or not.
				if differs = *seen != count(have); differs || *began != syncs() {
					differs, err = wholeDiffers(ctx, m, have, count, want)
				}
			}
			budget = max(sweepRows, count(have)/sweepPasses+1)
			return err
		})
		done += batch
		switch {
		case errors.Is(err, errUnknown):
			restart()
			return false, nil
		case errors.Is(err, errRestart):
			restart()
			continue
		case err != nil || differs || end:
			restart()
			return differs, err
		case done >= budget:
			return false, nil
		}
	}
}

// scan reads by and by what can be read so, and the rest at once.
func scan[K, V comparable](ctx context.Context, m Map[K, V], cursor *scanCursor, fn func([]K, []V)) (end bool, err error) {
	if s, ok := m.(scanner[K, V]); ok {
		return s.scan(cursor, fn)
	}
	rows, err := m.Rows(ctx)
	if err != nil {
		return true, err
	}
	for k, v := range rows {
		fn([]K{k}, []V{v})
	}
	return true, nil
}

func wholeDiffers[K, V comparable](ctx context.Context, m Map[K, V], have *rows, count func(*rows) int, want func(*rows, K) (V, bool)) (bool, error) {
	rows, err := m.Rows(ctx)
	if err != nil {
		return false, err
	}
	for k, v := range rows {
		if w, ok := want(have, k); !ok || w != v {
			return true, nil
		}
	}
	return len(rows) != count(have), nil
}

// errUnknown: the Syncer does not know what the maps hold; its next Sync will read
// them.
var errUnknown = errors.New("rows are not known")

// known calls fn with the rows as the Syncer left them, while none writes.
func (s *Syncer) known(fn func(*rows) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have == nil {
		return errUnknown
	}
	s.note()
	return fn(s.have)
}

// settle reads all maps, and returns how they differ from what was left there.
// What may not wait for the Sync that the caller has to follow with is done at
// once, in an order in which no write lets through what neither the rows before
// nor the right ones do: allows that nobody wants go, denies that are missing come,
// denies that nobody wants go, then classes that are missing come, and those that
// nobody wants go.
func (s *Syncer) settle(ctx context.Context, n names) ([]Difference, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have == nil {
		return nil, nil
	}
	s.note()
	have, err := readRows(ctx, s.maps)
	if err != nil {
		return nil, err
	}
	want := s.have
	ds := compareRows(s.maps, have, want, n)
	if len(ds) == 0 {
		return nil, nil
	}
	sortDifferences(ds)
	return ds, (&writer{Maps: s.maps, have: have}).restore(want)
}

func (w *writer) restore(want *rows) error {
	// An allow that is not wanted goes first: that admits nothing, and makes room.
	err := remove(w, w.Policy, w.have.policy, func(k abi.PolicyKey) bool {
		_, ok := want.policy[k]
		return !ok && w.have.policy[k].Verdict != abi.VerdictDeny
	})
	if err != nil {
		return err
	}
	denies := make(map[abi.PolicyKey]abi.PolicyValue)
	for k, v := range want.policy {
		if v.Verdict == abi.VerdictDeny {
			denies[k] = v
		}
	}
	if err := w.putPolicy(denies); err != nil {
		return err
	}
	if err := remove(w, w.Policy, w.have.policy, func(k abi.PolicyKey) bool { _, ok := want.policy[k]; return !ok }); err != nil {
		return err
	}
	if err := w.putClasses(want.classes); err != nil {
		return err
	}
	return remove(w, w.Classes, w.have.classes, func(k abi.ClassKey) bool { _, ok := want.classes[k]; return !ok })
}
