package dataplane

import (
	"errors"
	"maps"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// held is what a Syncer knows of the tables in force, besides the rows: enough to
// carry on from there by a delta. The zero held knows nothing.
type held struct {
	tables  *projections.Tables
	bind    map[uint32]int
	lengths [fullLength + 1]int // prefixes in force, by length
}

// hold notes that the maps are equal to tables, after all of them were compared.
func (s *Syncer) hold(tables *projections.Tables, bind map[uint32]int) {
	s.held = held{tables: tables, bind: maps.Clone(bind)}
	for p := range s.have.prefixes {
		s.held.lengths[p.PrefixLen]++
	}
}

// follow is hold after a partial change.
func (s *Syncer) follow(c *change, tables *projections.Tables, bind map[uint32]int) {
	s.held.tables = tables
	if !maps.Equal(s.held.bind, bind) {
		s.held.bind = maps.Clone(bind)
	}
	for p := range c.have.prefixes {
		s.held.lengths[p.PrefixLen]--
	}
	for p := range c.want.prefixes {
		s.held.lengths[p.PrefixLen]++
	}
}

// partial is the change from the tables held to desired, made of nothing but the
// rows that may differ. Nil if all must be compared: the delta does not follow on
// the tables held, policy and peers change at once, or the maps need room made.
func (s *Syncer) partial(desired *projections.Tables, delta *projections.Delta, bind map[uint32]int) *change {
	if delta.From == nil || s.have == nil || s.held.tables != delta.From {
		return nil
	}
	have, want := newRows(), newRows()
	owners := s.touchedEndpoints(have, want, desired, delta, bind)
	s.touchedPrefixes(have, want, desired, delta, owners)

	c := &change{have: have, want: want, part: true, classes: &delta.Classes, policy: &delta.Policy}
	c.compareEndpoints()
	before := resolver{get: lookupIn(s.have.prefixes), lengths: lengthsOf(&s.held.lengths, want.prefixes)}
	after := resolver{lengths: before.lengths, get: func(p prefix) (abi.IPCacheValue, bool) {
		if v, ok := want.prefixes[p]; ok {
			return v, true
		}
		if _, gone := have.prefixes[p]; gone {
			return abi.IPCacheValue{}, false
		}
		v, ok := s.have.prefixes[p]
		return v, ok
	}}
	c.comparePrefixes(before, after)
	if c.mixed() || s.fitPartial(c) != nil {
		return nil
	}
	return c
}

func newRows() *rows {
	return &rows{
		prefixes:  make(map[prefix]abi.IPCacheValue),
		endpoints: make(map[abi.EndpointKey]abi.EndpointValue),
	}
}

// touchedEndpoints gathers the rows, before and after, of endpoints that the delta
// names or whose interface is another. It returns the interface of each of their
// addresses, 0 for those that they have no more.
func (s *Syncer) touchedEndpoints(have, want *rows, desired *projections.Tables, delta *projections.Delta, bind map[uint32]int) map[abi.Addr]uint32 {
	touched := make(map[uint32]struct{})
	for _, rows := range [][]*projections.Row[projections.EndpointKey, abi.EndpointValue]{
		delta.Endpoints.Added, delta.Endpoints.Changed, delta.Endpoints.Removed,
	} {
		for _, r := range rows {
			touched[r.Key.ID] = struct{}{}
		}
	}
	for id, ifindex := range bind {
		if s.held.bind[id] != ifindex {
			touched[id] = struct{}{}
		}
	}
	for id := range s.held.bind {
		if _, ok := bind[id]; !ok {
			touched[id] = struct{}{}
		}
	}
	owners := make(map[abi.Addr]uint32)
	for id := range touched {
		k := abi.EndpointKey{Ifindex: uint32(s.held.bind[id])}
		if v, ok := s.have.endpoints[k]; ok && v.ID == id {
			have.endpoints[k] = v
			for _, a := range addresses(v) {
				owners[a] = 0
			}
		}
	}
	for id := range touched {
		k := abi.EndpointKey{Ifindex: uint32(bind[id])}
		row, ok := desired.Endpoints.Get(projections.EndpointKey{ID: id})
		if !ok || k.Ifindex == 0 {
			continue
		}
		want.endpoints[k] = row.Value
		for _, a := range addresses(row.Value) {
			owners[a] = k.Ifindex
		}
	}
	return owners
}

// touchedPrefixes gathers the rows, before and after, of prefixes that the delta
// names or that lead to other interfaces.
func (s *Syncer) touchedPrefixes(have, want *rows, desired *projections.Tables, delta *projections.Delta, owners map[abi.Addr]uint32) {
	touch := func(p prefix) {
		was, there := s.have.prefixes[p]
		if there {
			have.prefixes[p] = was
		}
		row, ok := desired.IPCache.Get(p)
		if !ok {
			return
		}
		v := row.Value
		v.Ifindex = 0
		if p.PrefixLen == fullLength {
			if ifindex, ok := owners[p.Addr]; ok {
				v.Ifindex = ifindex
			} else {
				v.Ifindex = was.Ifindex
			}
		}
		want.prefixes[p] = v
	}
	for a := range owners {
		touch(prefix{PrefixLen: fullLength, Addr: a})
	}
	for _, rows := range [][]*projections.Row[prefix, abi.IPCacheValue]{
		delta.IPCache.Added, delta.IPCache.Changed, delta.IPCache.Removed,
	} {
		for _, r := range rows {
			touch(r.Key)
		}
	}
}

// fitPartial is writer.fit for a partial change, without making room.
func (s *Syncer) fitPartial(c *change) error {
	exact := s.held.lengths[fullLength]
	trie := len(s.have.prefixes) - exact
	for p := range c.want.prefixes {
		if _, ok := s.have.prefixes[p]; ok {
			continue
		}
		if p.PrefixLen == fullLength {
			exact++
		} else {
			trie++
		}
	}
	m := s.maps
	return errors.Join(
		fitCount(m.Classes.Name(), m.Classes.MaxEntries(), len(s.have.classes)+len(c.classes.Added)),
		fitCount(m.Policy.Name(), m.Policy.MaxEntries(), len(s.have.policy)+len(c.policy.Added)),
		fitMap(m.Endpoints, s.have.endpoints, c.want.endpoints, nil),
		fitCount(m.IPCache.Name(), m.IPCache.MaxEntries(), exact),
		fitCount(m.IPCacheLPM.Name(), m.IPCacheLPM.MaxEntries(), trie),
	)
}

// leavingPrefixes are those among which the ones stand that are not wanted any more.
func (c *change) leavingPrefixes(now *rows) map[prefix]abi.IPCacheValue {
	if c.part {
		return c.have.prefixes
	}
	return now.prefixes
}

// putChanges writes the rows that are new or other ones. It leaves to noteChanges what
// have is then.
func putChanges[K, V comparable](w *writer, m Map[K, V], have map[K]V, d *projections.Changes[K, V]) error {
	n := len(d.Added) + len(d.Changed)
	if n == 0 {
		return nil
	}
	keys, values := make([]K, 0, n), make([]V, 0, n)
	for _, rows := range [][]*projections.Row[K, V]{d.Added, d.Changed} {
		for _, r := range rows {
			keys, values = append(keys, r.Key), append(values, r.Value)
		}
	}
	w.wrote = true
	done, err := m.Put(keys, values)
	return fullError(m, len(have), n-done, err)
}

// noteChanges notes in have what putChanges wrote.
func noteChanges[K, V comparable](have map[K]V, d *projections.Changes[K, V]) {
	for _, rows := range [][]*projections.Row[K, V]{d.Added, d.Changed} {
		for _, r := range rows {
			have[r.Key] = r.Value
		}
	}
}

// keysOf are the keys of rows.
func keysOf[K, V comparable](rows []*projections.Row[K, V]) []K {
	keys := make([]K, len(rows))
	for i, r := range rows {
		keys[i] = r.Key
	}
	return keys
}

// unwanted are the keys of rows that want lacks.
func unwanted[K, V comparable](rows, want map[K]V) []K {
	var keys []K
	for k := range rows {
		if _, ok := want[k]; !ok {
			keys = append(keys, k)
		}
	}
	return keys
}
