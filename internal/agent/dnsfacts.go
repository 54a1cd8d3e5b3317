package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

const (
	// shipBatch is how many facts of the DNS proxy go into the log at once.
	shipBatch = 2048
	// shipLinger is how long facts wait for others before they go: a name that is
	// asked for often then costs one event, not many.
	shipLinger = 250 * time.Millisecond
	// shipShare is what part of the time shipping takes at most while many facts come in:
	// whoever waits for an answer needs the processors more than the log needs the facts
	// this second. They are durable in the proxy's journal meanwhile.
	shipShare = 10
	// shipBehind is how many facts may wait for that; beyond, all of the time is theirs.
	shipBehind = 200_000
	// shipRetry is how soon a proxy that does not answer is called again.
	shipRetry = 500 * time.Millisecond
)

// dnsFacts brings what the DNS proxy learned into the log: in its order, each once,
// whichever of the two processes dies in between. The log's own count of the
// proxy's numbers is the only one that is trusted.
//
//	proxy's journal   ... 17 18 19 20 21 22
//	log: DNSSeq = 18         ^  |----- asked for
//	appended up to 21, then a crash: asked for again, and ignored by Apply
type dnsFacts struct {
	log     log.Appender
	view    func() fsm.View
	proxy   dnslink.Proxy
	cluster string
	node    string
	actor   string
	logger  *slog.Logger
}

// run ships until ctx ends.
func (d *dnsFacts) run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := d.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); err != nil && text != said {
			d.logger.Warn("facts of the DNS proxy stay in its journal until it answers", "error", err)
			said = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(shipRetry):
		}
	}
}

// follow ships until something fails.
func (d *dnsFacts) follow(ctx context.Context) error {
	s, err := d.proxy.Status(ctx)
	if err != nil {
		return err
	}
	if s.Cluster != d.cluster || s.Node != d.node {
		return fmt.Errorf("%w: cluster %q node %q, want %q and %q", dnslink.ErrOtherNode, s.Cluster, s.Node, d.cluster, d.node)
	}
	after := d.seen()
	if s.Last < after {
		if err := d.proxy.Seed(ctx, d.seed()); err != nil {
			return err
		}
		d.logger.Info("the DNS proxy had lost its journal and was told what the log knows", "facts", after)
	}
	for {
		facts, err := d.proxy.Facts(ctx, after, shipBatch, shipLinger)
		if err != nil || len(facts) == 0 || ctx.Err() != nil {
			return err
		}
		said, err := decode(facts)
		if err != nil {
			return err
		}
		began, last := time.Now(), facts[len(facts)-1].Seq
		if err := d.append(ctx, coalesce(said)); err != nil {
			return err
		}
		// Not those behind it that were known already: if this agent starts again, it
		// asks for them, and they must be there.
		if err := d.proxy.Shipped(ctx, d.seen()); err != nil {
			return err
		}
		after = last
		if len(facts) == shipBatch {
			if err := d.pause(ctx, time.Since(began), after); err != nil {
				return err
			}
		}
	}
}

// pause lets others at the processors after facts were shipped, the last of them with a
// number, in some time.
func (d *dnsFacts) pause(ctx context.Context, took time.Duration, last uint64) error {
	s, err := d.proxy.Status(ctx)
	if err != nil || s.Last > last+shipBehind {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After((shipShare - 1) * took):
	}
	return nil
}

// seen is the highest number of the proxy's facts in the log.
func (d *dnsFacts) seen() uint64 {
	if n, ok := d.view().Node(d.node); ok {
		return n.DNSSeq
	}
	return 0
}

// seed is what the log knows of names on this node.
func (d *dnsFacts) seed() dnslink.Seed {
	view := d.view()
	out := dnslink.Seed{Last: d.seen()}
	for n := range view.Names() {
		e, ok := view.Endpoint(n.Endpoint)
		if !ok || e.Node != d.node {
			continue
		}
		o := &eventpb.DnsObserved{
			Node: d.node, Ref: &eventpb.EndpointRef{Namespace: n.Endpoint.Namespace, Name: n.Endpoint.Name},
			Incarnation: e.Incarnation, Name: n.Name, Chain: n.Chain,
		}
		for _, a := range n.Addresses {
			o.Addresses = append(o.Addresses, &eventpb.DnsAddress{Address: a.Addr.AsSlice(), ExpiresUnixNs: a.ExpiresNS})
		}
		out.Facts = append(out.Facts, o)
	}
	return out
}

// fact is a fact of the proxy, decoded.
type fact struct {
	seq   uint64
	event *eventpb.Event
}

func decode(facts []dnslink.Fact) ([]fact, error) {
	out := make([]fact, len(facts))
	for i := range facts {
		e, err := facts[i].Event()
		if err != nil {
			return nil, err
		}
		out[i] = fact{facts[i].Seq, e}
	}
	return out, nil
}

// append adds facts that say something new. That the state refuses one, as of an
// endpoint that is gone, is its answer and ends nothing.
func (d *dnsFacts) append(ctx context.Context, facts []fact) error {
	view := d.view()
	var events []*eventpb.Event
	for _, f := range facts {
		if o := f.event.GetDnsObserved(); o != nil && known(view, o) {
			continue
		}
		e := &eventpb.Event{
			Actor:  &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: d.actor},
			Origin: &eventpb.Origin{Cluster: d.cluster, Node: d.node}, JournalSeq: f.seq, Payload: f.event.Payload,
		}
		var err error
		if e.Stream, err = log.StreamOf(e); err != nil {
			return fmt.Errorf("fact %d of the DNS proxy: %w", f.seq, err)
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, factTimeout)
	defer cancel()
	results, err := d.log.Append(wait, events...)
	if err != nil {
		return fmt.Errorf("%d facts of the DNS proxy: %w", len(events), err)
	}
	for i, r := range results {
		if r.Outcome == log.OutcomeRejected {
			d.logger.Debug("fact of the DNS proxy refused", "seq", events[i].JournalSeq, "reason", r.Reason)
		}
	}
	return nil
}

// known tells whether the state has all that o says.
func known(view fsm.View, o *eventpb.DnsObserved) bool {
	ref := fsm.EndpointRef{Namespace: o.GetRef().GetNamespace(), Name: o.GetRef().GetName()}
	e, ok := view.Endpoint(ref)
	if !ok || e.Incarnation != o.Incarnation {
		return false
	}
	n, ok := view.NameOf(ref, o.Name)
	if !ok || !slices.Equal(n.Chain, o.Chain) {
		return false
	}
	for _, a := range o.Addresses {
		addr, ok := netip.AddrFromSlice(a.Address)
		i, found := slices.BinarySearchFunc(n.Addresses, addr, func(x fsm.NameAddress, a netip.Addr) int { return x.Addr.Compare(a) })
		if !ok || !found || n.Addresses[i].ExpiresNS < a.ExpiresUnixNs {
			return false
		}
	}
	return true
}

// coalesce joins observations of one name that nothing stands between: the last has
// what all of them say.
func coalesce(facts []fact) []fact {
	type key struct {
		namespace, name, asked string
		incarnation            uint64
	}
	newest := make(map[key]int) // of the observation in out that later ones join
	gone := make([]bool, len(facts))
	out := slices.Clone(facts)
	for i, f := range facts {
		if c := f.event.GetDnsCollected(); c != nil {
			delete(newest, key{c.GetRef().GetNamespace(), c.GetRef().GetName(), c.Name, c.Incarnation})
			continue
		}
		o := f.event.GetDnsObserved()
		k := key{o.GetRef().GetNamespace(), o.GetRef().GetName(), o.GetName(), o.GetIncarnation()}
		if j, ok := newest[k]; ok {
			merged := &eventpb.DnsObserved{
				Node: o.Node, Ref: o.Ref, Incarnation: o.Incarnation, Name: o.Name, Chain: o.Chain,
				Addresses: joinAddresses(out[j].event.GetDnsObserved().Addresses, o.Addresses),
			}
			if gone[j] = len(merged.Addresses) <= eventpb.MaxNameAddresses; gone[j] { // else one event cannot have them
				out[i].event = &eventpb.Event{Payload: &eventpb.Event_DnsObserved{DnsObserved: merged}}
			}
		}
		newest[k] = i
	}
	kept := out[:0]
	for i := range out {
		if !gone[i] {
			kept = append(kept, out[i])
		}
	}
	return kept
}

// joinAddresses is both lists as one, ascending, each address with its later expiry.
func joinAddresses(a, b []*eventpb.DnsAddress) []*eventpb.DnsAddress {
	out := slices.Concat(a, b)
	addr := func(x *eventpb.DnsAddress) netip.Addr { a, _ := netip.AddrFromSlice(x.Address); return a }
	slices.SortStableFunc(out, func(x, y *eventpb.DnsAddress) int { return addr(x).Compare(addr(y)) })
	joined := out[:0]
	for _, x := range out {
		if n := len(joined); n > 0 && addr(joined[n-1]) == addr(x) {
			if x.ExpiresUnixNs > joined[n-1].ExpiresUnixNs {
				joined[n-1] = x
			}
			continue
		}
		joined = append(joined, x)
	}
	return joined
}
