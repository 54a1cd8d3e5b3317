package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/log/eventpb"
)

// runCollector removes what has expired and is not in use, from time to time.
func (k *keeper) runCollector(ctx context.Context) error {
	t := time.NewTicker(k.cfg.CollectInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-k.collectNow:
		}
		if err := k.collect(ctx); err != nil && ctx.Err() == nil {
			k.logger.Warn("expired addresses stay", "error", err)
		}
	}
}

// use is a live flow from an endpoint's address to another.
type use struct{ from, to netip.Addr }

// collect removes the addresses that have expired and that no live connection uses.
// The kernel admits no new connection to an expired address, so one that is not in
// use when the flows are read stays so.
func (k *keeper) collect(ctx context.Context) error {
	k.mu.Lock()
	now := k.clock().monotonicNS
	due := k.due(now)
	k.mu.Unlock()
	if !due {
		return nil
	}
	live := map[use]bool{}
	err := dataplane.EachFlow(ctx, k.maps.CT4, k.maps.CT6, func(f dataplane.Flow) error {
		if !f.Denied && f.ExpiresIn > 0 {
			live[use{f.Src.Addr(), f.Dst.Addr()}] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	events, err := k.pick(now, live)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(events, removeAtOnce) {
		if err := k.remove(some); err != nil {
			return err
		}
	}
	return nil
}

// Answers wait while something is picked or removed, so that is done in pieces which take
// about a millisecond.
const (
	pickAtOnce   = 2048 // names
	removeAtOnce = 128  // events
)

// due tells whether an address has expired or a name has too many. k.mu is held.
func (k *keeper) due(now int64) bool {
	for _, e := range k.facts.endpoints {
		for _, n := range e.names {
			if len(n.addresses) > k.cfg.MaxAddresses {
				return true
			}
			for _, x := range n.addresses {
				if x.expires <= now || k.cfg.IdleGrace > 0 && len(n.classes) > 0 {
					return true
				}
			}
		}
	}
	return false
}

// pick chooses what goes, as of the moment before the flows were read. It lets others at
// the facts in between: what is renewed meanwhile stays, by stillExpired.
func (k *keeper) pick(now int64, live map[use]bool) (events []*eventpb.DnsCollected, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	seen := 0
	for _, e := range k.facts.endpoints {
		inUse := func(a netip.Addr) bool {
			return e.rules != nil && (live[use{e.rules.IPv4, a}] || live[use{e.rules.IPv6, a}])
		}
		for _, n := range e.names {
			if seen++; seen%pickAtOnce == 0 {
				k.mu.Unlock()
				runtime.Gosched()
				k.mu.Lock()
			}
			var gone []netip.Addr
			for _, x := range n.addresses {
				switch {
				case inUse(x.addr):
					x.live = now
					errs = append(errs, k.grace(e, n, x, now))
				case x.expires <= now && x.live+int64(k.cfg.IdleGrace) <= now:
					gone = append(gone, x.addr)
				}
			}
			errs = append(errs, k.expireSurplus(e, n, len(gone), now, inUse))
			for gone := range slices.Chunk(gone, eventpb.MaxNameAddresses) {
				addresses := make([][]byte, len(gone))
				for i, a := range gone {
					addresses[i] = a.AsSlice()
				}
				events = append(events, &eventpb.DnsCollected{
					Node: k.cfg.Node, Ref: &eventpb.EndpointRef{Namespace: e.key.namespace, Name: e.key.name}, Incarnation: e.key.incarnation,
					Name: n.name, Addresses: addresses,
				})
			}
		}
	}
	return events, errors.Join(errs...)
}

// grace keeps an address that is in use open for IdleGrace. k.mu is held.
func (k *keeper) grace(e *endpointFacts, n *nameFacts, x *addressFact, now int64) error {
	until := now + int64(k.cfg.IdleGrace)
	if k.cfg.IdleGrace == 0 || len(n.classes) == 0 || until <= x.expires || !x.extend(until) {
		return nil
	}
	return k.write(e, x.addr)
}

// expireSurplus closes what a name has beyond MaxAddresses to new connections, those
// that expire first, but none that is in use. The next round collects them, unless
// a connection came in between. k.mu is held.
func (k *keeper) expireSurplus(e *endpointFacts, n *nameFacts, going int, now int64, inUse func(netip.Addr) bool) error {
	surplus := len(n.addresses) - going - k.cfg.MaxAddresses
	if surplus <= 0 {
		return nil
	}
	var open []*addressFact
	for _, x := range n.addresses {
		if x.expires > now && !inUse(x.addr) {
			open = append(open, x)
		}
	}
	slices.SortStableFunc(open, func(x, y *addressFact) int { return cmp.Compare(x.expires, y.expires) })
	var errs []error
	for _, x := range open[:min(surplus, len(open))] {
		x.extend(now)
		errs = append(errs, k.write(e, x.addr))
	}
	return errors.Join(errs...)
}

// remove writes down what goes, and then lets it go. What an answer has renewed
// meanwhile stays.
func (k *keeper) remove(events []*eventpb.DnsCollected) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	var records [][]byte
	events = k.stillExpired(events)
	for _, c := range events {
		data, err := (&eventpb.Event{Payload: &eventpb.Event_DnsCollected{DnsCollected: c}}).MarshalVT()
		if err != nil {
			return fmt.Errorf("event: %w", err)
		}
		records = append(records, data)
	}
	if len(records) == 0 {
		return nil
	}
	if _, err := k.append(records); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	now := k.clock().monotonicNS
	for _, c := range events {
		e := k.facts.endpoints[keyOf(c)]
		for _, a := range addrsOf(c.GetAddresses()) {
			x := e.address(c.GetName(), a)
			switch {
			case x == nil:
			case x.expires > now:
				// Renewed while this was written: to be written down once more.
				x.kept = longAgo
				k.refreshes[e.names[c.GetName()]] = true
			default:
				k.facts.forget(e, c.GetName(), []netip.Addr{a})
				errs = append(errs, k.write(e, a))
				k.metrics.collected.Inc()
			}
		}
	}
	k.gauge()
	return errors.Join(errs...)
}

// stillExpired leaves out what has been renewed since it was picked.
func (k *keeper) stillExpired(events []*eventpb.DnsCollected) []*eventpb.DnsCollected {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock().monotonicNS
	return slices.DeleteFunc(events, func(c *eventpb.DnsCollected) bool {
		e := k.facts.endpoints[keyOf(c)]
		c.Addresses = slices.DeleteFunc(c.Addresses, func(b []byte) bool {
			a, _ := netip.AddrFromSlice(b)
			x := e.address(c.GetName(), a)
			return x == nil || x.expires > now
		})
		return len(c.Addresses) == 0
	})
}
