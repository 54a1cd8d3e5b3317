package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/internal/dnslink"
)

const (
	// rowsBatch is how many rows of the map are compared at once. Answers wait no longer
	// than for one batch.
	rowsBatch = 4096
	// differencesTold bounds the differences that are described; all are counted.
	differencesTold = 100
)

// differences are rows of the map that were not as they should be.
type differences struct {
	count int
	told  []dnslink.Difference
}

// rows reads the map. What is written meanwhile may be among them or not.
func (k *keeper) rows(ctx context.Context) (map[abi.FQDNKey]abi.FQDNValue, error) {
	out := map[abi.FQDNKey]abi.FQDNValue{}
	err := dataplane.EachName(ctx, k.maps.FQDN, func(keys []abi.FQDNKey, values []abi.FQDNValue) error {
		for i, key := range keys {
			out[key] = values[i]
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("map fqdn: %w", err)
	}
	return out, nil
}

// repair makes the map what facts and rules say, and tells what differed. It raises the
// generations of the addresses that got rows, so that flows which were revoked are judged
// again.
func (k *keeper) repair(ctx context.Context) (*differences, error) { return k.compare(ctx, true) }

// compare looks for rows that are not what facts and rules say. What differs from the map
// as it was read is looked at once more while nothing is written, so that an answer that
// just comes in is never taken for a difference.
func (k *keeper) compare(ctx context.Context, repair bool) (*differences, error) {
	have, err := k.rows(ctx)
	if err != nil {
		return nil, err
	}
	c := &comparison{keeper: k, repair: repair}
	k.mu.Lock()
	endpoints := slices.Collect(maps.Keys(k.facts.endpoints))
	k.mu.Unlock()
	for _, key := range endpoints {
		if err := ctx.Err(); err != nil {
			return &c.differences, err
		}
		c.endpoint(key, have)
	}
	for batch := range slices.Chunk(slices.Collect(maps.Keys(have)), rowsBatch) {
		k.mu.Lock()
		for _, key := range batch {
			c.look(key)
		}
		k.mu.Unlock()
	}
	if len(c.raised) > 0 {
		k.maps.BumpGenerations(c.raised...)
	}
	return &c.differences, errors.Join(c.errs...)
}

// comparison is one at work.
type comparison struct {
	*keeper
	differences
	repair bool
	raised []abi.Addr
	errs   []error
}

// endpoint compares what one endpoint should have, and takes it from have.
func (c *comparison) endpoint(of endpointKey, have map[abi.FQDNKey]abi.FQDNValue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.facts.endpoints[of]
	if e == nil || e.rules == nil {
		return
	}
	for addr := range e.by {
		key := abi.FQDNKey{Endpoint: e.rules.ID, Addr: abi.AddrFrom(addr)}
		v, _, ok := e.row(addr)
		was, found := have[key]
		delete(have, key)
		if ok != found || was != v {
			c.look(key)
		}
	}
}

// look compares a row with the kernel's. c.mu is held, so that nothing writes it.
func (c *comparison) look(key abi.FQDNKey) {
	var have, want *abi.FQDNValue
	v := new(abi.FQDNValue)
	switch err := c.maps.FQDN.Lookup(&key, v); {
	case err == nil:
		have = v
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		c.errs = append(c.errs, fmt.Errorf("map fqdn: %w", err))
		return
	}
	var e *endpointFacts
	addr := key.Addr.Addr()
	if r := c.rules.Load().endpoints[key.Endpoint]; r != nil {
		if e = c.facts.endpoints[r.key()]; e != nil && e.rules == r {
			if w, _, ok := e.row(addr); ok {
				want = &w
			}
		}
	}
	if have == nil && want == nil || have != nil && want != nil && *have == *want {
		return
	}
	c.count++
	if len(c.told) < differencesTold {
		c.told = append(c.told, dnslink.Difference{Endpoint: key.Endpoint, Addr: addr, Have: have, Want: want})
	}
	switch {
	case !c.repair:
	case want != nil:
		c.errs = append(c.errs, c.write(e, addr))
		c.raised = append(c.raised, key.Addr)
	default:
		if err := c.maps.FQDN.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			c.errs = append(c.errs, fmt.Errorf("map fqdn: %w", err))
		}
		c.raised = append(c.raised, key.Addr)
	}
}
