package bpf

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// unjudged is a generation that no sum of slots of a new map has, so that a flow
// is judged by the new rows at its next packet.
const unjudged = ^uint32(0)

// flowCopy copies the flows of a predecessor, each once: what the programs write
// to a flow after it was copied stays.
type flowCopy struct {
	o    *Objects
	from *predecessor
	done [2]map[string]bool // keys of ct4 and ct6
}

func newFlowCopy(o *Objects, from *predecessor) *flowCopy {
	return &flowCopy{o: o, from: from, done: [2]map[string]bool{{}, {}}}
}

// run copies what has not been copied yet.
func (c *flowCopy) run(ctx context.Context) error {
	err := each(ctx, c.from.ct4, c.done[0], func(k, v []byte) error {
		key, value := c.from.convert.ct4(k, v)
		value.Generation = unjudged
		return c.o.CT4.Put(&key, &value)
	})
	if err != nil {
		return fmt.Errorf("map ct4: %w", err)
	}
	err = each(ctx, c.from.ct6, c.done[1], func(k, v []byte) error {
		key, value := c.from.convert.ct6(k, v)
		value.Generation = unjudged
		return c.o.CT6.Put(&key, &value)
	})
	if err != nil {
		return fmt.Errorf("map ct6: %w", err)
	}
	return nil
}

// each calls fn for all entries whose key is not done, and notes it. Entries that
// go meanwhile can send an iteration back to its start and end it too early; then
// it starts again.
func each(ctx context.Context, m *ebpf.Map, done map[string]bool, fn func(key, value []byte) error) error {
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for {
		it := m.Iterate()
		for it.Next(&key, &value) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if done[string(key)] {
				continue
			}
			if err := fn(key, value); err != nil {
				return err
			}
			done[string(key)] = true
		}
		if err := it.Err(); !errors.Is(err, ebpf.ErrIterationAborted) {
			return err
		}
	}
}
