package dataplane

import (
	"context"

	"github.com/varve-net/varve/bpf/abi"
)

// Map is a map of the kernel as the Syncer uses it. A KernelMap is one; a
// MemoryMap is another.
type Map[K, V comparable] interface {
	Name() string
	// MaxEntries is how many rows fit.
	MaxEntries() int
	// Rows reads the whole map.
	Rows(ctx context.Context) (map[K]V, error)
	// Put adds or replaces rows, each in one atomic step, in order. done rows
	// are in the map, also when the error is not nil. ErrMapFull if one does not
	// fit.
	Put(keys []K, values []V) (done int, err error)
	// Delete removes rows in order; those that are not there are no error.
	Delete(keys []K) error
}

// Generations are the counters by which flows learn that a verdict may have
// changed. *bpf.Objects has them.
type Generations interface {
	BumpGenerations(addrs ...abi.Addr)
	BumpAllGenerations()
}

// Maps is what a Syncer writes to.
type Maps struct {
	IPCache     Map[abi.IPCacheKey, abi.IPCacheValue]
	IPCacheLPM  Map[abi.IPCacheLPMKey, abi.IPCacheValue]
	Endpoints   Map[abi.EndpointKey, abi.EndpointValue]
	Classes     Map[abi.ClassKey, abi.ClassValue]
	Policy      Map[abi.PolicyKey, abi.PolicyValue]
	Generations Generations
	// Quiesce returns when every program run that was going on when it was
	// called has ended, so that no run holds a row read before. Nil if writes
	// and reads never overlap.
	Quiesce func() error
}
