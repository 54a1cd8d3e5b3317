package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// watch calls fn after each row written to any of the maps.
func watch(m Maps, fn func() error) {
	m.IPCache.(*MemoryMap[abi.IPCacheKey, abi.IPCacheValue]).Changed = fn
	m.IPCacheLPM.(*MemoryMap[abi.IPCacheLPMKey, abi.IPCacheValue]).Changed = fn
	m.Endpoints.(*MemoryMap[abi.EndpointKey, abi.EndpointValue]).Changed = fn
	m.Classes.(*MemoryMap[abi.ClassKey, abi.ClassValue]).Changed = fn
	m.Policy.(*MemoryMap[abi.PolicyKey, abi.PolicyValue]).Changed = fn
}

func read(t interface{ Fatal(...any) }, m Maps) *projections.Tables {
	tables, err := ReadTables(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// oldOrNew checks that each verdict of now is that of before or of after. A
// verdict that is in neither of them is of an endpoint that has no row there: it
// is dropped there, and so must be judged by the one that has it.
func oldOrNew(t *rapid.T, before, after, now verdicts) {
	for q, v := range now {
		b, inBefore := before[q]
		a, inAfter := after[q]
		if inBefore && v == b || inAfter && v == a {
			continue
		}
		t.Fatalf("%s: verdict %d, before %d (%v), after %d (%v)", q, v, b, inBefore, a, inAfter)
	}
}

// generations checks, when flows are to be judged again, that what they will be
// judged by is in place.
type generations struct {
	MemoryGenerations
	bumped func()
}

func (g *generations) BumpGenerations(addrs ...abi.Addr) {
	g.bumped()
	g.MemoryGenerations.BumpGenerations(addrs...)
}

func (g *generations) BumpAllGenerations() {
	g.bumped()
	g.MemoryGenerations.BumpAllGenerations()
}

func TestEveryPrefixOfTheWritesIsOldOrNew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, oldBind := drawModel(t).build()
		next, bind := drawModel(t).build()
		m := NewMemoryMaps(1 << 16)
		g := &generations{bumped: func() {}}
		m.Generations = g
		s := NewSyncer(m)
		if _, err := s.Sync(context.Background(), old, oldBind); err != nil {
			t.Fatal(err)
		}
		before, after := verdictsOf(old), verdictsOf(next)
		watch(m, func() error {
			oldOrNew(t, before, after, verdictsOf(read(t, m)))
			return nil
		})
		g.bumped = func() { oldOrNew(t, after, after, verdictsOf(read(t, m))) }
		generationsBefore := g.Slot
		if _, err := s.Sync(context.Background(), next, bind); err != nil {
			t.Fatal(err)
		}
		if got, want := read(t, m).Digest(), next.Digest(); got != want {
			t.Fatalf("digest of the maps %x, want %x", got, want)
		}
		if d, err := Verify(context.Background(), m, next, bind); err != nil || len(d) > 0 {
			t.Fatalf("Verify: %v, %v", d, err)
		}
		checkGenerations(t, old, next, before, after, generationsBefore, g.Slot)
	})
}

// checkGenerations: a flow whose verdict may have changed must see another sum.
func checkGenerations(t *rapid.T, old, next *projections.Tables, before, after verdicts, was, is [abi.GenerationSlots]uint32) {
	for row := range next.Endpoints.All() {
		if _, stayed := old.Endpoints.Get(row.Key); !stayed {
			continue
		}
		own := addresses(row.Value)[0].GenerationSlot()
		for _, a := range modelAddrs {
			far := abi.AddrFrom(netip.MustParseAddr(a)).GenerationSlot()
			for _, q := range questions(row.Key.ID, a) {
				if before[q] != after[q] && was[own]+was[far] == is[own]+is[far] {
					t.Fatalf("%s: verdict %d is now %d, but its flows are not judged again", q, before[q], after[q])
				}
			}
		}
	}
}

func TestACrashAnywhereIsRepaired(t *testing.T) {
	crash := errors.New("crash")
	rapid.Check(t, func(t *rapid.T) {
		old, oldBind := drawModel(t).build()
		next, nextBind := drawModel(t).build()
		last, lastBind := drawModel(t).build()
		left := rapid.IntRange(0, 120).Draw(t, "writes before the crash")
		m := NewMemoryMaps(1 << 16)
		if _, err := NewSyncer(m).Sync(context.Background(), old, oldBind); err != nil {
			t.Fatal(err)
		}
		watch(m, func() error {
			if left--; left < 0 {
				return crash
			}
			return nil
		})
		if _, err := NewSyncer(m).Sync(context.Background(), next, nextBind); err != nil && !errors.Is(err, crash) {
			t.Fatal(err)
		}
		before, after := verdictsOf(read(t, m)), verdictsOf(last)
		watch(m, func() error {
			oldOrNew(t, before, after, verdictsOf(read(t, m)))
			return nil
		})
		stats, err := NewSyncer(m).Sync(context.Background(), last, lastBind)
		if err != nil {
			t.Fatal(err)
		}
		if !stats.AllFlows {
			t.Fatal("flows judged by half a change are not judged again")
		}
		if got, want := read(t, m).Digest(), last.Digest(); got != want {
			t.Fatalf("digest of the maps %x, want %x", got, want)
		}
	})
}
