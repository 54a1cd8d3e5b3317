package bpf

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
)

// generations is the memory of the generations map, shared with the programs.
type generations struct {
	mem   []byte
	slots *abi.Generations
}

func mapGenerations(m *ebpf.Map) (*generations, error) {
	size := int(unsafe.Sizeof(abi.Generations{}))
	mem, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return &generations{mem: mem, slots: (*abi.Generations)(unsafe.Pointer(&mem[0]))}, nil
}

func (g *generations) close() error { return unix.Munmap(g.mem) }

// BumpGenerations makes every flow of these addresses be judged again at its next
// packet. Call it after the rows that change a verdict are in their maps; several
// addresses of one slot cost one bump. Adding is atomic: another process that
// does the same at the same time loses nothing.
func (o *Objects) BumpGenerations(addrs ...abi.Addr) {
	var seen [abi.GenerationSlots]bool
	for _, a := range addrs {
		if i := a.GenerationSlot(); !seen[i] {
			seen[i] = true
			atomic.AddUint32(&o.gen.slots.Slot[i], 1)
		}
	}
}

// BumpAllGenerations makes every flow be judged again: for a change that may
// involve any address, as that of a CIDR row.
func (o *Objects) BumpAllGenerations() {
	for i := range o.gen.slots.Slot {
		atomic.AddUint32(&o.gen.slots.Slot[i], 1)
	}
}

// GenerationSum is the sum of two addresses' generations, as a flow between them
// has it. Rows that are read after it are at least as new as it says.
func (o *Objects) GenerationSum(a, b abi.Addr) uint32 {
	return atomic.LoadUint32(&o.gen.slots.Slot[a.GenerationSlot()]) + atomic.LoadUint32(&o.gen.slots.Slot[b.GenerationSlot()])
}
