package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/journal"
)

// restore fills the facts: from what the agent once told, then from the journal.
func (k *keeper) restore(seed *dnslink.Seed) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, now := k.rules.Load(), k.clock()
	if seed != nil {
		for _, o := range seed.Facts {
			k.facts.observe(k.facts.endpoint(keyOf(o), r), 0, o, now)
		}
	}
	err := k.journal.Replay(func(rec journal.Record) error {
		e, err := decode(rec)
		if err != nil {
			return err
		}
		if o := e.GetDnsObserved(); o != nil {
			k.facts.observe(k.facts.endpoint(keyOf(o), r), rec.Seq, o, now)
		} else if c := e.GetDnsCollected(); c != nil {
			key := keyOf(c)
			if e := k.facts.endpoints[key]; e != nil {
				k.facts.forget(e, c.GetName(), addrsOf(c.GetAddresses()))
			}
		}
		return nil
	})
	k.gauge()
	return err
}

func decode(rec journal.Record) (*eventpb.Event, error) {
	e := new(eventpb.Event)
	if err := e.UnmarshalVT(rec.Data); err != nil {
		return nil, fmt.Errorf("journal: record %d: %w", rec.Seq, err)
	}
	return e, nil
}

func keyOf(e interface {
	GetRef() *eventpb.EndpointRef
	GetIncarnation() uint64
}) endpointKey {
	return endpointKey{e.GetRef().GetNamespace(), e.GetRef().GetName(), e.GetIncarnation()}
}

func addrsOf(raw [][]byte) (out []netip.Addr) {
	for _, b := range raw {
		if a, ok := netip.AddrFromSlice(b); ok {
			out = append(out, a)
		}
	}
	return out
}

// adopt takes over the expiries that an earlier process gave the kernel: later ones that
// it had not written down yet, and earlier ones than the journal has, since then the wall
// clock was set back.
func (k *keeper) adopt() error {
	rows, err := k.rows(context.Background())
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.rules.Load()
	for key, v := range rows {
		x := r.endpoints[key.Endpoint]
		if x == nil {
			continue
		}
		e := k.facts.endpoints[x.key()]
		if e == nil {
			continue
		}
		for _, n := range e.by[key.Addr.Addr()] {
			// A class is open as long as any name of it: the least of all is the name's.
			var least uint32
			for _, class := range n.classes {
				if i := slices.Index(v.Class[:], class); i >= 0 && (least == 0 || v.ExpiresSeconds[i] < least) {
					least = v.ExpiresSeconds[i]
				}
			}
			if f := n.addresses.of(key.Addr.Addr()); least != 0 && least != f.at {
				f.extend(int64(least) * int64(time.Second))
			}
		}
	}
	return nil
}

// load puts rules in force: first the rows that they add, then without those that
// they no longer have.
func (k *keeper) load(raw *dnslink.Rules) error {
	before := k.rules.Load()
	r, err := compile(raw, before)
	if err != nil {
		return err
	}
	k.mu.Lock()
	for key, e := range k.facts.endpoints {
		e.rules = r.byKey[key]
		for _, n := range e.names {
			n.classes = e.classes(n.name)
		}
	}
	k.rules.Store(r)
	k.mu.Unlock()
	_, err = k.repair(context.Background())
	return err
}
