package dataplane

import (
	"context"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// deltaOf compares two tables as a whole.
func deltaOf(from, to *projections.Tables) projections.Delta {
	return projections.Delta{
		From:      from,
		Endpoints: changesOf(&from.Endpoints, &to.Endpoints),
		IPCache:   changesOf(&from.IPCache, &to.IPCache),
		Classes:   changesOf(&from.Classes, &to.Classes),
		Policy:    changesOf(&from.Policy, &to.Policy),
	}
}

func changesOf[K, V comparable](from, to *projections.Table[K, V]) (c projections.Changes[K, V]) {
	for r := range to.All() {
		if old, ok := from.Get(r.Key); !ok {
			c.Added = append(c.Added, r)
		} else if old.Value != r.Value {
			c.Changed = append(c.Changed, r)
		}
	}
	for r := range from.All() {
		if _, ok := to.Get(r.Key); !ok {
			c.Removed = append(c.Removed, r)
		}
	}
	return c
}

// step changes m in one of the ways that events do: mostly pods or rules alone.
func (m model) step(t *rapid.T) model {
	other := drawModel(t)
	next := model{pods: m.pods, rules: m.rules, enforced: maps.Clone(m.enforced)}
	switch rapid.IntRange(0, 5).Draw(t, "step") {
	case 0:
		return other
	case 1:
		next.rules, next.enforced = other.rules, other.enforced
	case 2:
		next.rules = append(next.rules[:len(next.rules):len(next.rules)], other.rules...)
	default: // pods come, go and change, under policies that know them already
		next.pods = other.pods
	}
	return next
}

// TestDeltasKeepTheOrderAndTheEnd: as TestEveryWriteIsOldOrNew, over a series of
// changes, and the Syncer knows at the end what one that reads the maps knows.
func TestDeltasKeepTheOrderAndTheEnd(t *testing.T) {
	partial := 0
	rapid.Check(t, func(t *rapid.T) {
		m := NewMemoryMaps(1 << 16)
		g := &generations{bumped: func() {}}
		m.Generations = g
		s := NewSyncer(m)
		mod := drawModel(t)
		old, bind := mod.build()
		if _, err := s.Sync(context.Background(), old, bind); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 2).Draw(t, "changes") {
			mod = mod.step(t)
			next, nextBind := mod.build()
			for id := range nextBind { // interfaces come late, or anew
				switch rapid.IntRange(0, 8).Draw(t, "interface") {
				case 0:
					delete(nextBind, id)
				case 1:
					nextBind[id] += 1000
				}
			}
			delta := deltaOf(old, next)
			if s.partial(next, &delta, nextBind) != nil {
				partial++
			}
			before, after := verdictsOf(read(t, m)), verdictsOf(next)
			watch(m, func() error {
				oldOrNew(t, before, after, verdictsOf(read(t, m)))
				return nil
			})
			bound := boundOf(next, nextBind)
			g.bumped = func() { oldOrNew(t, bound, bound, verdictsOf(read(t, m))) }
			was := g.Slot
			had := read(t, m)
			stats, err := s.SyncDelta(context.Background(), next, delta, nextBind)
			if err != nil {
				t.Fatal(err)
			}
			watch(m, nil)
			if d, err := Verify(context.Background(), m, next, nextBind); err != nil || len(d) != len(stats.Unbound) {
				t.Fatalf("Verify: %v, %v; %d endpoints have no interface", d, err, len(stats.Unbound))
			}
			checkGenerations(t, had, read(t, m), before, bound, was, g.Slot)
			known := held{tables: next, bind: nextBind}
			kernel, err := readRows(context.Background(), m)
			if err != nil {
				t.Fatal(err)
			}
			for p := range kernel.prefixes {
				known.lengths[p.PrefixLen]++
			}
			if diff := cmp.Diff(kernel, s.have, cmp.AllowUnexported(rows{}), cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("rows, -maps +known:\n%s", diff)
			}
			if s.held.tables != known.tables || !maps.Equal(s.held.bind, known.bind) || s.held.lengths != known.lengths {
				t.Fatalf("held %+v, want %+v", s.held, known)
			}
			old = next
		}
	})
	if partial < 25 {
		t.Errorf("only %d changes were written by their delta alone", partial)
	}
}

// boundOf is the verdicts of endpoints that have an interface, whose identity
// local senders have.
func boundOf(t *projections.Tables, bind map[uint32]int) verdicts {
	var eps []*projections.Row[projections.EndpointKey, abi.EndpointValue]
	for r := range t.Endpoints.All() {
		if bind[r.Key.ID] != 0 {
			eps = append(eps, r)
		}
	}
	only := *t
	var err error
	if only.Endpoints, err = projections.NewEndpoints(eps); err != nil {
		panic(err)
	}
	return verdictsOf(&only)
}

func TestADeltaThatDoesNotFollowIsNotTrusted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := NewMemoryMaps(1 << 16)
		s := NewSyncer(m)
		a, bindA := drawModel(t).build()
		b, bindB := drawModel(t).build()
		c, bindC := drawModel(t).build()
		if _, err := s.Sync(context.Background(), a, bindA); err != nil {
			t.Fatal(err)
		}
		delta := deltaOf(b, c)
		switch rapid.IntRange(0, 2).Draw(t, "case") {
		case 0: // b was never written
		case 1: // b was written, and then forgotten; someone spoilt a map
			if _, err := s.SyncDelta(context.Background(), b, deltaOf(a, b), bindB); err != nil {
				t.Fatal(err)
			}
			for k := range m.Classes.(*MemoryMap[abi.ClassKey, abi.ClassValue]).rows {
				if err := m.Classes.Delete([]abi.ClassKey{k}); err != nil {
					t.Fatal(err)
				}
			}
			s.Forget()
		case 2: // the write of b failed
			watch(m, func() error { return ErrMapFull })
			_, err := s.SyncDelta(context.Background(), b, deltaOf(a, b), bindB)
			watch(m, nil)
			if err != nil && s.held.tables != nil {
				t.Fatal("tables that are not in force are held")
			}
		}
		if _, err := s.SyncDelta(context.Background(), c, delta, bindC); err != nil {
			t.Fatal(err)
		}
		if d, err := Verify(context.Background(), m, c, bindC); err != nil || len(d) > 0 {
			t.Fatalf("Verify: %v, %v", d, err)
		}
	})
}

func TestADeltaMakesRoomAsASyncDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(4, 40).Draw(t, "size")
		mod := drawModel(t)
		maps := [2]Maps{NewMemoryMaps(size), NewMemoryMaps(size)}
		syncers := [2]*Syncer{NewSyncer(maps[0]), NewSyncer(maps[1])}
		var last *projections.Tables
		for range 4 {
			next, bind := mod.build()
			var errs [2]error
			_, errs[0] = syncers[0].Sync(context.Background(), next, bind)
			delta := projections.Delta{}
			if last != nil {
				delta = deltaOf(last, next)
			}
			_, errs[1] = syncers[1].SyncDelta(context.Background(), next, delta, bind)
			if (errs[0] == nil) != (errs[1] == nil) {
				t.Fatalf("Sync: %v, SyncDelta: %v", errs[0], errs[1])
			}
			if got, want := read(t, maps[1]).Digest(), read(t, maps[0]).Digest(); got != want {
				t.Fatal("other rows are left")
			}
			last = next
			mod = mod.step(t)
		}
	})
}
