package dataplane

import (
	"context"
	"maps"

	"github.com/varve-net/varve/bpf/abi"
)

// MemoryMap is a Map without a kernel. It behaves as a BPF hash map does: a row
// is written in one step, and a full map takes updates but no new rows. Not safe
// for concurrent use.
type MemoryMap[K, V comparable] struct {
	name string
	max  int
	rows map[K]V
	// Changed, if set, is called after each single row that is written or
	// removed. Its error ends the call.
	Changed func() error
}

// NewMemoryMap makes an empty map of at most maxEntries rows.
func NewMemoryMap[K, V comparable](name string, maxEntries int) *MemoryMap[K, V] {
	return &MemoryMap[K, V]{name: name, max: maxEntries, rows: make(map[K]V)}
}

// Name implements Map.
func (m *MemoryMap[K, V]) Name() string { return m.name }

// MaxEntries implements Map.
func (m *MemoryMap[K, V]) MaxEntries() int { return m.max }

// Rows implements Map.
func (m *MemoryMap[K, V]) Rows(ctx context.Context) (map[K]V, error) {
	return maps.Clone(m.rows), ctx.Err()
}

// Put implements Map.
func (m *MemoryMap[K, V]) Put(keys []K, values []V) (int, error) {
	for i, k := range keys {
		if _, there := m.rows[k]; !there && len(m.rows) >= m.max {
			return i, ErrMapFull
		}
		m.rows[k] = values[i]
		if err := m.changed(); err != nil {
			return i + 1, err
		}
	}
	return len(keys), nil
}

// Delete implements Map.
func (m *MemoryMap[K, V]) Delete(keys []K) error {
	for _, k := range keys {
		delete(m.rows, k)
		if err := m.changed(); err != nil {
			return err
		}
	}
	return nil
}

func (m *MemoryMap[K, V]) changed() error {
	if m.Changed == nil {
		return nil
	}
	return m.Changed()
}

// MemoryGenerations are generation counters without a kernel.
type MemoryGenerations struct {
	Slot [abi.GenerationSlots]uint32
}

// BumpGenerations implements Generations.
func (g *MemoryGenerations) BumpGenerations(addrs ...abi.Addr) {
	for _, a := range addrs {
		g.Slot[a.GenerationSlot()]++
	}
}

// BumpAllGenerations implements Generations.
func (g *MemoryGenerations) BumpAllGenerations() {
	for i := range g.Slot {
		g.Slot[i]++
	}
}

// NewMemoryMaps makes maps of at most maxEntries rows each.
func NewMemoryMaps(maxEntries int) Maps {
	return Maps{
		IPCache:     NewMemoryMap[abi.IPCacheKey, abi.IPCacheValue]("ipcache", maxEntries),
		IPCacheLPM:  NewMemoryMap[abi.IPCacheLPMKey, abi.IPCacheValue]("ipcache_lpm", maxEntries),
		Endpoints:   NewMemoryMap[abi.EndpointKey, abi.EndpointValue]("endpoints", maxEntries),
		Classes:     NewMemoryMap[abi.ClassKey, abi.ClassValue]("classes", maxEntries),
		Policy:      NewMemoryMap[abi.PolicyKey, abi.PolicyValue]("policy", maxEntries),
		Generations: new(MemoryGenerations),
	}
}

var (
	_ Map[int, int] = (*MemoryMap[int, int])(nil)
	_ Generations   = (*MemoryGenerations)(nil)
)
