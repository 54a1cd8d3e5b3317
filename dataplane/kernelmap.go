package dataplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
)

// batchRows is how many rows one system call reads or writes: large enough that
// its fixed cost vanishes, small enough that the buffers stay in the cache.
const batchRows = 4096

// KernelMap is a BPF hash or LPM map whose keys and values have the layout of K
// and V.
type KernelMap[K, V comparable] struct {
	name string
	m    *ebpf.Map
}

// NewKernelMap wraps m, which stays the caller's to close.
func NewKernelMap[K, V comparable](name string, m *ebpf.Map) *KernelMap[K, V] {
	return &KernelMap[K, V]{name, m}
}

// Name implements Map.
func (m *KernelMap[K, V]) Name() string { return m.name }

// MaxEntries implements Map.
func (m *KernelMap[K, V]) MaxEntries() int { return int(m.m.MaxEntries()) }

// Rows implements Map.
func (m *KernelMap[K, V]) Rows(ctx context.Context) (map[K]V, error) {
	rows := make(map[K]V)
	err := eachBatch(ctx, m.m, func(keys []K, values []V) error {
		for i, k := range keys {
			rows[k] = values[i]
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", m.name, err)
	}
	return rows, nil
}

// eachBatch calls fn for all rows of a map, some at a time. fn must not keep the
// slices. Rows that come or go meanwhile may be seen or not.
func eachBatch[K, V any](ctx context.Context, m *ebpf.Map, fn func([]K, []V) error) error {
	size := min(batchRows, max(int(m.MaxEntries()), 1))
	for {
		again, err := batches(ctx, m, size, fn)
		if !again {
			return err
		}
		size *= 2 // a bucket held more rows than a batch takes
	}
}

func batches[K, V any](ctx context.Context, m *ebpf.Map, size int, fn func([]K, []V) error) (again bool, err error) {
	keys, values := make([]K, size), make([]V, size)
	var cursor ebpf.MapBatchCursor
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		switch {
		case errors.Is(err, unix.ENOSPC):
			return true, nil
		case err != nil && !end:
			return false, fmt.Errorf("batch lookup: %w", err)
		}
		if err := fn(keys[:n], values[:n]); err != nil || end {
			return false, err
		}
	}
}

// Put implements Map.
func (m *KernelMap[K, V]) Put(keys []K, values []V) (int, error) {
	done := 0
	for done < len(keys) {
		end := min(done+batchRows, len(keys))
		n, err := m.m.BatchUpdate(keys[done:end], values[done:end], &ebpf.BatchOptions{ElemFlags: uint64(ebpf.UpdateAny)})
		done += n
		if err != nil {
			return done, m.putError(err)
		}
	}
	return done, nil
}

// putError tells a full map from other errors: a hash says E2BIG, a trie ENOSPC.
func (m *KernelMap[K, V]) putError(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("map %s: %w: %w", m.name, ErrMapFull, err)
	}
	return fmt.Errorf("map %s: update: %w", m.name, err)
}

// Delete implements Map.
func (m *KernelMap[K, V]) Delete(keys []K) error {
	for len(keys) > 0 {
		batch := keys[:min(batchRows, len(keys))]
		n, err := m.m.BatchDelete(batch, nil)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			n++ // the batch stopped at a row that is gone already
		case err != nil:
			return fmt.Errorf("map %s: delete: %w", m.name, err)
		}
		keys = keys[min(n, len(keys)):]
	}
	return nil
}

// MapsOf are the maps of loaded objects.
func MapsOf(o *bpf.Objects) Maps {
	return Maps{
		IPCache:     NewKernelMap[abi.IPCacheKey, abi.IPCacheValue]("ipcache", o.IPCache),
		IPCacheLPM:  NewKernelMap[abi.IPCacheLPMKey, abi.IPCacheValue]("ipcache_lpm", o.IPCacheLPM),
		Endpoints:   NewKernelMap[abi.EndpointKey, abi.EndpointValue]("endpoints", o.Endpoints),
		Classes:     NewKernelMap[abi.ClassKey, abi.ClassValue]("classes", o.Classes),
		Policy:      NewKernelMap[abi.PolicyKey, abi.PolicyValue]("policy", o.Policy),
		Generations: o,
		Quiesce:     quiesce,
	}
}

// quiesce waits for an RCU grace period: TC programs run inside RCU read-side
// sections. MEMBARRIER_CMD_GLOBAL is synchronize_rcu (kernel/sched/membarrier.c),
// some 10 ms. Where it is refused (nohz_full) a run is given far longer than any
// can take.
func quiesce() error {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.EINVAL, unix.ENOSYS:
		time.Sleep(100 * time.Millisecond) //nolint:forbidigo // there is no condition: the kernel does not tell
		return nil
	}
	return fmt.Errorf("membarrier: %w", errno)
}

const membarrierGlobal = 1 << 0 // include/uapi/linux/membarrier.h

var _ Map[abi.ClassKey, abi.ClassValue] = (*KernelMap[abi.ClassKey, abi.ClassValue])(nil)
