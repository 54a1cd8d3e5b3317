package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// A Syncer makes maps equal to desired tables. It reads them once and remembers
// what they hold from then on: nobody else may write them. Safe for concurrent
// use.
//
// # Order of writes
//
// The verdict of an endpoint about a peer comes from two places that cannot be
// written at once: the endpoint's row (table and scope) and the peer's row in the
// ipcache. After every single write, each verdict is the one of the old tables or
// the one of the new:
//
//  1. policy and class rows are added; nothing refers to them yet
//  2. endpoint rows that go are removed
//  3. endpoint rows change in place, each in one step
//  4. ipcache rows are added and changed, the longest prefix first, then removed,
//     the shortest first, so that an address never falls through to a prefix that
//     was its own neither before nor after
//  5. new endpoint rows are added
//  6. generations of the addresses involved are raised: now the tables are in force
//  7. policy and class rows to which nothing refers any more are removed
//
// A program reads the generation before any row. So what it notes of a verdict by rows
// from before step 6 is out of date from step 6 on, and nothing waits before that for
// runs that go on; before step 7 those that may still hold the old rows have ended.
//
// Where both endpoints' policy and peers change, a changed endpoint could meet a
// peer under a policy that never knew it; see transition for what is done then.
// Between steps the Syncer waits for program runs that may hold rows read before
// (Maps.Quiesce), so that no run mixes them either.
type Syncer struct {
	maps Maps

	mu   sync.Mutex
	have *rows // nil: unknown, to be read
	held held  // by the last Sync that had no error
	// left is the change whose step 7 is to be done; nil: none.
	left *change
	// unnoted is a partial change whose policy and class rows have lacks: the maps have
	// them, and whoever waits for that need not wait for the rest. Nil: none; see note.
	unnoted *change
}

// NewSyncer makes a Syncer that has not read the maps yet.
func NewSyncer(m Maps) *Syncer { return &Syncer{maps: m} }

// Forget makes the next Sync read the maps again, and repair what differs.
func (s *Syncer) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have, s.held, s.left, s.unnoted = nil, held{}, nil, nil
}

// Changes counts the rows of one map that differed.
type Changes struct {
	Added, Updated, Deleted int
}

// Stats says what a Sync did.
type Stats struct {
	IPCache, IPCacheLPM, Endpoints, Classes, Policy Changes
	// Unbound lists endpoints that have no interface, and so no row, by id.
	Unbound []uint32
	// AllFlows tells that every flow will be judged again, not only those of
	// certain addresses.
	AllFlows bool
	// Transition tells that policy and peers changed at once and intermediate
	// rows were needed.
	Transition bool
	Duration   time.Duration
}

// Total is the number of rows added, updated and deleted in all maps.
func (s Stats) Total() int {
	n := 0
	for _, c := range []Changes{s.IPCache, s.IPCacheLPM, s.Endpoints, s.Classes, s.Policy} {
		n += c.Added + c.Updated + c.Deleted
	}
	return n
}

// Sync makes the maps equal to desired; bind has the index of the host side's
// interface by endpoint id. Endpoints missing from bind get no row. It returns
// after the last write: from then on every packet meets the new tables.
//
// ctx can stop it before the first write only. A *FullError means that nothing
// was written that changes a verdict. After another error the maps may be
// anywhere between the old and the new tables; the next Sync reads them anew and
// completes the change.
func (s *Syncer) Sync(ctx context.Context, desired *projections.Tables, bind map[uint32]int) (Stats, error) {
	return s.SyncDelta(ctx, desired, projections.Delta{}, bind)
}

// SyncDelta is Sync at the cost of what changed: delta leads to desired from other
// tables. If these are the ones of the last Sync that had no error, nothing else
// is looked at but the interfaces. Otherwise, after Forget, where policy and peers
// change at once and where a map has little room left, all rows are compared as by
// Sync. Order and guarantees are the same.
func (s *Syncer) SyncDelta(ctx context.Context, desired *projections.Tables, delta projections.Delta, bind map[uint32]int) (Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	start := time.Now()
	stats, err := s.enforce(ctx, desired, delta, bind)
	if err == nil {
		err = s.clean()
	}
	stats.Duration = time.Since(start)
	return stats, err
}

// Enforce is SyncDelta up to the moment from which on every packet meets the new
// tables. Rows to which nothing refers any more stay until Clean, or until the next
// change, which then waits for it.
func (s *Syncer) Enforce(ctx context.Context, desired *projections.Tables, delta projections.Delta, bind map[uint32]int) (Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	start := time.Now()
	stats, err := s.enforce(ctx, desired, delta, bind)
	stats.Duration = time.Since(start)
	return stats, err
}

// Clean removes what Enforce left. After an error the next Sync reads the maps anew.
func (s *Syncer) Clean() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clean()
}

func (s *Syncer) clean() error {
	s.note()
	c := s.left
	if s.left = nil; c == nil || s.have == nil {
		return nil
	}
	w := &writer{Maps: s.maps, have: s.have}
	if err := w.clean(c); err != nil {
		s.have, s.held = nil, held{}
		return err
	}
	return nil
}

func (s *Syncer) enforce(ctx context.Context, desired *projections.Tables, delta projections.Delta, bind map[uint32]int) (Stats, error) {
	if err := s.clean(); err != nil {
		return Stats{}, err
	}

	// A crash may have come between a change and its generations.
	first := s.have == nil
	if first {
		have, err := readRows(ctx, s.maps)
		if err != nil {
			return Stats{}, err
		}
		s.have = have
	}
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	c, unbound := s.partial(desired, &delta, bind), unboundOf(desired, bind)
	if c == nil {
		want, _ := bindRows(desired, bind)
		c = newChange(s.have, want)
	}
	c.allFlows = c.allFlows || first
	stats := c.stats()
	stats.Unbound = unbound
	if stats.Total() == 0 && !first {
		s.done(c, desired, bind)
		return stats, nil
	}
	w := &writer{Maps: s.maps, have: s.have}
	if err := w.apply(c); err != nil {
		// A full map that was foreseen has left everything as it was known.
		s.held = held{}
		if full := (*FullError)(nil); first || !errors.As(err, &full) || w.wrote {
			s.have = nil
		}
		return stats, err
	}
	s.done(c, desired, bind)
	s.left = c
	if c.part {
		s.unnoted = c
	}
	return stats, nil
}

// note brings have up to the maps.
func (s *Syncer) note() {
	if c := s.unnoted; c != nil && s.have != nil {
		noteChanges(s.have.policy, c.policy)
		noteChanges(s.have.classes, c.classes)
	}
	s.unnoted = nil
}

func (s *Syncer) done(c *change, desired *projections.Tables, bind map[uint32]int) {
	if c.part {
		s.follow(c, desired, bind)
	} else {
		s.hold(desired, bind)
	}
}

// writer carries out a change and keeps have equal to the maps.
type writer struct {
	Maps
	have  *rows
	wrote bool
}

func (w *writer) apply(c *change) error {
	t := newTransition(c)
	if !c.part { // else it is known to fit
		if err := w.fit(c, t); err != nil {
			return err
		}
	}
	if err := w.add(c); err != nil {
		return err
	}
	if err := w.deleteEndpoints(c.goneEndpoints); err != nil {
		return err
	}
	if len(c.goneEndpoints) > 0 && len(c.moved)+len(c.renamed) > 0 {
		if err := w.quiesce(); err != nil {
			return err
		}
	}
	if t != nil {
		if err := w.enter(t); err != nil {
			return err
		}
	} else if err := w.putEndpoints(c.stayingEndpoints()); err != nil {
		return err
	}
	if t != nil {
		if err := w.putEndpoints(t.settled); err != nil {
			return err
		}
	}
	if err := w.putPrefixes(c.want.prefixes); err != nil {
		return err
	}
	if err := w.deletePrefixes(unwanted(c.leavingPrefixes(w.have), c.want.prefixes)); err != nil {
		return err
	}
	if t != nil {
		if err := w.quiesce(); err != nil {
			return err
		}
	}
	if err := w.putEndpoints(c.want.endpoints); err != nil {
		return err
	}
	if c.allFlows {
		w.Generations.BumpAllGenerations()
	} else {
		w.Generations.BumpGenerations(c.flowsOf...)
	}
	return nil
}

// add writes the policy and class rows that are new or other ones.
func (w *writer) add(c *change) error {
	if c.part {
		if err := putChanges(w, w.Policy, w.have.policy, c.policy); err != nil {
			return err
		}
		return putChanges(w, w.Classes, w.have.classes, c.classes)
	}
	if err := w.putPolicy(c.want.policy); err != nil {
		return err
	}
	return w.putClasses(c.want.classes)
}

// clean removes the policy and class rows that c left, once no program run can hold
// what leads to them.
func (w *writer) clean(c *change) error {
	var policy []abi.PolicyKey
	var classes []abi.ClassKey
	if c.part {
		policy, classes = keysOf(c.policy.Removed), keysOf(c.classes.Removed)
	} else {
		policy, classes = unwanted(w.have.policy, c.want.policy), unwanted(w.have.classes, c.want.classes)
	}
	if len(policy)+len(classes) == 0 {
		return nil
	}
	if err := w.quiesce(); err != nil {
		return err
	}
	if err := removeRows(w, w.Policy, w.have.policy, policy); err != nil {
		return err
	}
	return removeRows(w, w.Classes, w.have.classes, classes)
}

func (w *writer) quiesce() error {
	if w.Quiesce == nil {
		return nil
	}
	return w.Quiesce()
}

// put writes the rows of want that have lacks or holds differently.
func put[K, V comparable](w *writer, m Map[K, V], have, want map[K]V) error {
	var keys []K
	var values []V
	for k, v := range want {
		if old, ok := have[k]; !ok || old != v {
			keys, values = append(keys, k), append(values, v)
		}
	}
	return putRows(w, m, have, keys, values)
}

func putRows[K, V comparable](w *writer, m Map[K, V], have map[K]V, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	w.wrote = true
	done, err := m.Put(keys, values)
	for i := range done {
		have[keys[i]] = values[i]
	}
	return fullError(m, len(have), len(keys)-done, err)
}

// fullError is err, as a *FullError if the map, which has rows, had no room for others.
func fullError[K, V comparable](m Map[K, V], rows, unfit int, err error) error {
	if errors.Is(err, ErrMapFull) {
		return &FullError{Map: m.Name(), MaxEntries: m.MaxEntries(), Need: rows + unfit, Unfit: unfit}
	}
	return err
}

// remove deletes the rows of have that gone names.
func remove[K, V comparable](w *writer, m Map[K, V], have map[K]V, gone func(K) bool) error {
	var keys []K
	for k := range have {
		if gone(k) {
			keys = append(keys, k)
		}
	}
	return removeRows(w, m, have, keys)
}

func removeRows[K, V comparable](w *writer, m Map[K, V], have map[K]V, keys []K) error {
	if len(keys) == 0 {
		return nil
	}
	w.wrote = true
	if err := m.Delete(keys); err != nil {
		return err
	}
	for _, k := range keys {
		delete(have, k)
	}
	return nil
}

func (w *writer) putPolicy(want map[abi.PolicyKey]abi.PolicyValue) error {
	return put(w, w.Policy, w.have.policy, want)
}

func (w *writer) putClasses(want map[abi.ClassKey]abi.ClassValue) error {
	return put(w, w.Classes, w.have.classes, want)
}

func (w *writer) putEndpoints(want map[abi.EndpointKey]abi.EndpointValue) error {
	return put(w, w.Endpoints, w.have.endpoints, want)
}

func (w *writer) deleteEndpoints(keys []abi.EndpointKey) error {
	return removeRows(w, w.Endpoints, w.have.endpoints, keys)
}

// putPrefixes adds and changes ipcache rows, the longest prefix first.
func (w *writer) putPrefixes(want map[prefix]abi.IPCacheValue) error {
	var ps []prefix
	for p, v := range want {
		if old, ok := w.have.prefixes[p]; !ok || old != v {
			ps = append(ps, p)
		}
	}
	longestFirst(ps)
	var exact []abi.IPCacheKey
	var values []abi.IPCacheValue
	for _, p := range ps {
		if p.PrefixLen == fullLength {
			exact = append(exact, abi.IPCacheKey{Addr: p.Addr})
		}
		values = append(values, want[p])
	}
	n := len(exact)
	done, err := 0, error(nil)
	if n > 0 {
		w.wrote = true
		done, err = w.IPCache.Put(exact, values[:n])
	}
	if err == nil && n < len(ps) {
		w.wrote = true
		var more int
		more, err = w.IPCacheLPM.Put(ps[n:], values[n:])
		done += more
	}
	for i := range done {
		w.have.prefixes[ps[i]] = values[i]
	}
	if errors.Is(err, ErrMapFull) {
		return w.prefixesFull(len(exact), len(ps), done)
	}
	return err
}

func (w *writer) prefixesFull(exact, all, done int) error {
	var m interface {
		Name() string
		MaxEntries() int
	} = w.IPCache
	unfit := exact - done
	if done >= exact {
		m, unfit = w.IPCacheLPM, all-done
	}
	return &FullError{Map: m.Name(), MaxEntries: m.MaxEntries(), Need: m.MaxEntries() + unfit, Unfit: unfit}
}

// deletePrefixes removes ipcache rows, the shortest prefix first.
func (w *writer) deletePrefixes(ps []prefix) error {
	if len(ps) == 0 {
		return nil
	}
	w.wrote = true
	shortestFirst(ps)
	n := slices.IndexFunc(ps, func(p prefix) bool { return p.PrefixLen == fullLength })
	if n < 0 {
		n = len(ps)
	}
	if n > 0 {
		if err := w.IPCacheLPM.Delete(ps[:n]); err != nil {
			return err
		}
	}
	var exact []abi.IPCacheKey
	for _, p := range ps[n:] {
		exact = append(exact, abi.IPCacheKey{Addr: p.Addr})
	}
	if len(exact) > 0 {
		if err := w.IPCache.Delete(exact); err != nil {
			return err
		}
	}
	for _, p := range ps {
		delete(w.have.prefixes, p)
	}
	return nil
}

// fit makes sure, before anything is written, that every map holds at once what
// the change needs. Rows that nobody refers to, left by a change that did not
// end, are removed if they are in the way.
func (w *writer) fit(c *change, t *transition) error {
	if fitClasses(w, c, t) != nil || fitMap(w.Policy, w.have.policy, c.want.policy, nil) != nil {
		if err := w.dropUnreferenced(c.want); err != nil {
			return err
		}
	}
	exactNeed, trieNeed := c.prefixPeak(t)
	return errors.Join(
		fitClasses(w, c, t),
		fitMap(w.Policy, w.have.policy, c.want.policy, nil),
		fitCount(w.IPCache.Name(), w.IPCache.MaxEntries(), exactNeed),
		fitCount(w.IPCacheLPM.Name(), w.IPCacheLPM.MaxEntries(), trieNeed),
		fitCount(w.Endpoints.Name(), w.Endpoints.MaxEntries(), max(len(c.want.endpoints), len(w.have.endpoints))),
	)
}

func fitClasses(w *writer, c *change, t *transition) error {
	var extra map[abi.ClassKey]abi.ClassValue
	if t != nil {
		extra = t.classes
	}
	return fitMap(w.Classes, w.have.classes, c.want.classes, extra)
}

func fitMap[K, V comparable](m Map[K, V], have, want, extra map[K]V) error {
	need := len(have) + len(extra)
	for k := range want {
		if _, ok := have[k]; !ok {
			need++
		}
	}
	return fitCount(m.Name(), m.MaxEntries(), need)
}

func fitCount(name string, maxEntries, need int) error {
	if need <= maxEntries {
		return nil
	}
	return &FullError{Map: name, MaxEntries: maxEntries, Need: need, Unfit: need - maxEntries}
}

// dropUnreferenced removes rows of tables and scopes that no endpoint of the
// kernel has and that are not wanted.
func (w *writer) dropUnreferenced(want *rows) error {
	if err := w.quiesce(); err != nil {
		return fmt.Errorf("before removing unreferenced rows: %w", err)
	}
	tables, scopes := make(map[uint64]bool), make(map[uint64]bool)
	for _, v := range w.have.endpoints {
		for _, ref := range refs(&v) {
			tables[ref.Table], scopes[ref.Scope] = true, true
		}
	}
	err := remove(w, w.Policy, w.have.policy, func(k abi.PolicyKey) bool {
		_, wanted := want.policy[k]
		return !wanted && !tables[k.Table]
	})
	if err != nil {
		return err
	}
	return remove(w, w.Classes, w.have.classes, func(k abi.ClassKey) bool {
		_, wanted := want.classes[k]
		return !wanted && !scopes[k.Scope]
	})
}
