package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane/dns/relay"
	"github.com/varve-net/varve/dataplane/dns/wire"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/journal"
)

// keeper keeps what answers said: in memory, in the journal, in the map `fqdn`. It
// alone writes the latter two. Safe for concurrent use.
type keeper struct {
	cfg     *Config
	maps    *bpf.Objects
	journal *journal.Journal
	rules   *atomic.Pointer[rules]
	flush   func() // sends the answers that were released
	metrics *Metrics
	logger  *slog.Logger

	// writing is held from the choice of what to append until it is applied, so that
	// facts are applied in the order of the journal. It comes before mu.
	writing sync.Mutex
	// mu guards what follows, and writes to the map.
	mu    sync.Mutex
	facts *facts
	// refreshes are names of which an expiry has moved beyond what the journal says.
	refreshes map[*nameFacts]bool
	broken    error // why the last append failed
	// row is what the map is written from.
	row struct {
		key   abi.FQDNKey
		value abi.FQDNValue
	}
	// opened counts the rows that may be new in the map, after they are there.
	opened atomic.Uint64

	clock  func() clock // readClock, but in tests
	offset int64        // of the clocks, by which the journal's times are; guarded by writing

	queueMu sync.Mutex
	queue   []*lesson
	ready   chan struct{}

	collectNow chan struct{}
}

var _ relay.Learner = (*keeper)(nil)

// lesson is an observation that is not known yet.
type lesson struct {
	endpoint  uint32
	name      string
	chain     []string
	addresses []wire.Address
	at        int64 // of the monotonic clock
	waiter    relay.Waiter
}

func newKeeper(cfg *Config, maps *bpf.Objects, j *journal.Journal, r *atomic.Pointer[rules], m *Metrics) *keeper {
	return &keeper{
		cfg: cfg, maps: maps, journal: j, rules: r, metrics: m, logger: cfg.Logger, flush: func() {},
		facts: newFacts(), refreshes: map[*nameFacts]bool{}, clock: readClock, offset: readClock().offset(),
		ready: make(chan struct{}, 1), collectNow: make(chan struct{}, 1),
	}
}

// lifetime is how long an address with a TTL is open.
func (k *keeper) lifetime(ttlSeconds uint32) time.Duration {
	return max(time.Duration(ttlSeconds)*time.Second, k.cfg.MinTTL, minLifetime)
}

// refreshShare is how much of an address's lifetime the journal may be behind: a name
// that is asked for all the time then has four events a TTL. After a crash of the
// machine, and only then, its addresses may expire so much earlier.
const refreshShare = 4

// Known implements relay.Learner.
func (k *keeper) Known(o *relay.Observation) bool {
	r := k.rules.Load().endpoints[o.Endpoint]
	if r == nil || !keepable(o.Name) {
		return true // no rule is about what it may reach
	}
	now := k.clock().monotonicNS
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.facts.endpoints[r.key()]
	if e == nil {
		return false
	}
	n := e.names[string(o.Name)]
	if n == nil {
		return false
	}
	var buf [8]*addressFact
	known := buf[:0]
	for i := range o.Addresses {
		x := n.addresses.of(o.Addresses[i].Addr)
		if x == nil {
			return false
		}
		known = append(known, x)
	}
	for i, x := range known {
		a := &o.Addresses[i]
		lifetime := k.lifetime(a.TTLSeconds)
		expires := now + int64(lifetime)
		if expires <= x.expires || !x.extend(expires) {
			continue
		}
		if len(n.classes) > 0 {
			if err := k.extend(e, a.Addr); err != nil {
				k.logger.Error("address not opened", "name", n.name, "address", a.Addr, "error", err)
				return false
			}
		}
		if x.expires-x.kept > int64(lifetime)/refreshShare {
			k.refreshes[n] = true
		}
	}
	return true
}

// keepable tells whether a name can be in an event. Others no rule matches either.
func keepable(name []byte) bool {
	if len(name) > 255 {
		return false
	}
	for _, b := range name {
		if b == '\\' || b <= ' ' || b >= 0x7f || b == '/' {
			return false
		}
	}
	return true
}

// Learn implements relay.Learner.
func (k *keeper) Learn(o *relay.Observation, w relay.Waiter) {
	l := &lesson{
		endpoint: o.Endpoint, name: string(o.Name), addresses: slices.Clone(o.Addresses), at: k.clock().monotonicNS, waiter: w,
	}
	for _, n := range o.Chain {
		l.chain = append(l.chain, string(n))
	}
	k.queueMu.Lock()
	k.queue = append(k.queue, l)
	k.queueMu.Unlock()
	select {
	case k.ready <- struct{}{}:
	default:
	}
}

// refreshEvery is how often expiries that moved are written down.
const refreshEvery = time.Second

// run makes what waits durable and applies it, batch after batch: all that came
// while one was written is the next.
func (k *keeper) run(ctx context.Context) error {
	t := time.NewTicker(refreshEvery)
	defer t.Stop()
	for {
		refresh := false
		select {
		case <-ctx.Done():
			for k.batch(true) {
			}
			return nil
		case <-k.ready:
		case <-t.C:
			k.followClock()
			refresh = true
		}
		for more := k.batch(refresh); more; {
			more = k.batch(true)
		}
	}
}

// batch handles all lessons that wait and, if asked to, some of the refreshes, and tells
// whether more of these wait.
func (k *keeper) batch(refresh bool) (more bool) {
	k.queueMu.Lock()
	lessons := k.queue
	k.queue = nil
	k.queueMu.Unlock()
	k.writing.Lock()
	b := newBatch(k)
	for _, l := range lessons {
		b.add(l)
	}
	if refresh {
		more = b.refresh()
	}
	err := b.commit()
	k.writing.Unlock()
	for _, l := range lessons {
		l.waiter.Learned(err)
	}
	if len(lessons) > 0 {
		k.flush()
	}
	return more
}

// observed is one event of a batch.
type observed struct {
	key     endpointKey
	event   *eventpb.DnsObserved
	expires []expiry // an address may be there twice until events is called
	// anew: what the journal says of the addresses is taken back first.
	anew   bool
	record int // the event's, among those of the batch
}

// expiry is when an address expires by the monotonic clock.
type expiry struct {
	addr netip.Addr
	at   int64
}

// batch is what becomes durable together.
type batch struct {
	k      *keeper
	events []*observed
	by     map[batchKey]*observed
}

type batchKey struct {
	endpoint endpointKey
	name     string
}

func newBatch(k *keeper) *batch { return &batch{k: k, by: map[batchKey]*observed{}} }

// of is the event of a name, new if the batch has none.
func (b *batch) of(key endpointKey, name string) *observed {
	id := batchKey{key, name}
	o := b.by[id]
	if o == nil {
		o = &observed{key: key, event: &eventpb.DnsObserved{
			Node: b.k.cfg.Node, Ref: &eventpb.EndpointRef{Namespace: key.namespace, Name: key.name}, Incarnation: key.incarnation, Name: name,
		}}
		b.by[id] = o
		b.events = append(b.events, o)
	}
	return o
}

func (o *observed) add(a netip.Addr, expires int64) {
	o.expires = append(o.expires, expiry{a, expires})
}

// events are what it has become once all was added: one, or several if an event cannot
// have that many addresses, ascending; none if nothing was added.
func (o *observed) events() (out []*observed) {
	// Of an address that is there twice the later expiry counts.
	slices.SortFunc(o.expires, func(a, b expiry) int { return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(b.at, a.at)) })
	o.expires = slices.CompactFunc(o.expires, func(a, b expiry) bool { return a.addr == b.addr })
	if len(o.expires) <= eventpb.MaxNameAddresses && len(o.expires) > 0 {
		return []*observed{o}
	}
	for part := range slices.Chunk(o.expires, eventpb.MaxNameAddresses) {
		out = append(out, &observed{key: o.key, expires: part, anew: o.anew, event: &eventpb.DnsObserved{
			Node: o.event.Node, Ref: o.event.Ref, Incarnation: o.event.Incarnation, Name: o.event.Name, Chain: o.event.Chain,
		}})
	}
	return out
}

// records are what the journal gets, with times of the wall clock.
func (o *observed) records(now clock) (records [][]byte, err error) {
	o.event.Addresses = make([]*eventpb.DnsAddress, len(o.expires))
	for i, x := range o.expires {
		o.event.Addresses[i] = &eventpb.DnsAddress{Address: x.addr.AsSlice(), ExpiresUnixNs: now.unix(x.at)}
	}
	events := []*eventpb.Event{{Payload: &eventpb.Event_DnsObserved{DnsObserved: o.event}}}
	if o.anew {
		var all [][]byte
		for _, a := range o.event.Addresses {
			all = append(all, a.Address)
		}
		events = slices.Insert(events, 0, &eventpb.Event{Payload: &eventpb.Event_DnsCollected{DnsCollected: &eventpb.DnsCollected{
			Node: o.event.Node, Ref: o.event.Ref, Incarnation: o.event.Incarnation, Name: o.event.Name, Addresses: all,
		}}})
	}
	for _, e := range events {
		data, err := e.MarshalVT()
		if err != nil {
			return nil, fmt.Errorf("event: %w", err)
		}
		records = append(records, data)
	}
	return records, nil
}

func (b *batch) add(l *lesson) {
	r := b.k.rules.Load().endpoints[l.endpoint]
	if r == nil {
		return // it has gone
	}
	o := b.of(r.key(), l.name)
	o.event.Chain = l.chain
	for _, a := range l.addresses {
		o.add(a.Addr, l.at+int64(b.k.lifetime(a.TTLSeconds)))
	}
}

// refreshAtOnce is how many names are refreshed in one batch: answers wait for it.
const refreshAtOnce = 128

// refresh adds expiries that moved, of some names, and tells whether there are more.
func (b *batch) refresh() (more bool) {
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	some := 0
	for n := range b.k.refreshes {
		if some == refreshAtOnce {
			return true
		}
		some++
		delete(b.k.refreshes, n)
		o := b.of(n.endpoint.key, n.name)
		if o.event.Chain == nil {
			o.event.Chain = n.chain
		}
		for _, x := range n.addresses {
			if x.expires > x.kept {
				o.add(x.addr, x.expires)
			}
		}
	}
	return false
}

// commit writes the events to the journal and then applies them. After an error
// nothing has changed.
func (b *batch) commit() error {
	k := b.k
	now := k.clock()
	var records [][]byte
	var events []*observed
	for _, o := range b.events {
		events = append(events, o.events()...)
	}
	for _, o := range events {
		rs, err := o.records(now)
		if err != nil {
			return err
		}
		records = append(records, rs...)
		o.record = len(records) - 1
	}
	if len(records) == 0 {
		return nil
	}
	first, err := k.append(records)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.rules.Load()
	var errs []error
	for _, o := range events {
		e := k.facts.endpoint(o.key, r)
		for _, a := range k.facts.observe(e, first+uint64(o.record), o.event, now) {
			errs = append(errs, k.write(e, a))
		}
		if n := e.names[o.event.Name]; n != nil && len(n.addresses) > k.cfg.MaxAddresses {
			k.wakeCollector()
		}
	}
	k.gauge()
	return errors.Join(errs...)
}

// append makes records durable, and keeps why it could not for Status.
func (k *keeper) append(records [][]byte) (uint64, error) {
	first, err := k.journal.Append(records...)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && k.broken == nil {
		k.logger.Error("DNS answers are refused: they cannot be made durable", "error", err)
	}
	if err == nil && k.broken != nil {
		k.logger.Info("DNS answers are durable again")
	}
	k.broken = err
	return first, err
}

// write puts what is known of an address into the map. k.mu is held.
func (k *keeper) write(e *endpointFacts, addr netip.Addr) error {
	err := k.update(e, addr, ebpf.UpdateAny)
	k.opened.Add(1)
	return err
}

// extend is write for an address whose row is there already, so that nobody needs to
// be told of a new one.
func (k *keeper) extend(e *endpointFacts, addr netip.Addr) error {
	err := k.update(e, addr, ebpf.UpdateExist)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return k.write(e, addr)
	}
	return err
}

func (k *keeper) update(e *endpointFacts, addr netip.Addr, flags ebpf.MapUpdateFlags) error {
	if e.rules == nil {
		return nil
	}
	key, value := &k.row.key, &k.row.value
	*key = abi.FQDNKey{Endpoint: e.rules.ID, Addr: abi.AddrFrom(addr)}
	var unfit int
	var ok bool
	*value, unfit, ok = e.row(addr)
	if unfit > 0 {
		k.metrics.unfit.Add(float64(unfit))
		k.logger.Warn("an address has more classes of names than fit; some rules do not open it", "endpoint", e.key.name, "address", addr, "left_out", unfit)
	}
	if !ok {
		err := k.maps.FQDN.Delete(key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		return err
	}
	if err := k.maps.FQDN.Update(key, value, flags); err != nil {
		return fmt.Errorf("map fqdn: %s: %w", addr, err)
	}
	return nil
}

// gauge shows how much is known. k.mu is held.
func (k *keeper) gauge() {
	k.metrics.names.Set(float64(k.facts.names))
	k.metrics.addresses.Set(float64(k.facts.addresses))
}

func (k *keeper) wakeCollector() {
	select {
	case k.collectNow <- struct{}{}:
	default:
	}
}
