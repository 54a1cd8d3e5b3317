package policytest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// NewKernel makes the engine that writes the tables to BPF maps and runs a packet
// through the programs for each question. Objects are loaded once for each
// goroutine and rewritten from case to case; they touch nothing that the node
// enforces. The error is an os.ErrPermission without CAP_BPF and CAP_NET_ADMIN.
func NewKernel() (Engine, error) {
	first, err := newKernel()
	if err != nil {
		return nil, err
	}
	return &kernelEngine{idle: []*kernel{first}}, nil
}

type kernelEngine struct {
	mu   sync.Mutex
	idle []*kernel
}

func (*kernelEngine) Name() string { return "bpf" }

func (e *kernelEngine) Load(ctx context.Context, t *projections.Tables) (Judge, error) {
	k, err := e.take()
	if err != nil {
		return nil, err
	}
	j, err := k.load(ctx, t)
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	j.release = e.put
	return j, nil
}

func (e *kernelEngine) take() (*kernel, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := len(e.idle); n > 0 {
		k := e.idle[n-1]
		e.idle = e.idle[:n-1]
		return k, nil
	}
	return newKernel()
}

func (e *kernelEngine) put(k *kernel) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.idle = append(e.idle, k)
}

// Close implements Engine.
func (e *kernelEngine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for _, k := range e.idle {
		errs = append(errs, k.close())
	}
	e.idle = nil
	return errors.Join(errs...)
}

// loopback is the interface that the kernel gives to a test run, of which the
// subject of a question is said to be.
const loopback = 1

// gatewayMAC is the host side's.
var gatewayMAC = [6]byte{2, 'g', 'a', 't', 'e', 'w'}

// Sizes for tables that are small, and conntrack that is always empty.
var kernelSizes = map[string]uint32{
	"ipcache": 16384, "endpoints": 16, "ct4": 256, "ct6": 256, "fragments": 256, "events": 1 << 16,
}

// kernel is a set of loaded objects. One goroutine uses it at a time.
type kernel struct {
	objs   *bpf.Objects
	syncer *dataplane.Syncer
	events *ringbuf.Reader
	record ringbuf.Record
}

func newKernel() (*kernel, error) {
	objs, err := bpf.LoadUnpinned(kernelSizes)
	if err != nil {
		return nil, fmt.Errorf("engine bpf: %w", err)
	}
	k := &kernel{objs: objs}
	config := abi.DefaultConfig(gatewayMAC)
	config.EnableIPv4, config.EnableIPv6 = true, true
	if err = objs.SetConfig(config); err == nil {
		k.events, err = ringbuf.NewReader(objs.Events)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("engine bpf: %w", err), k.close())
	}
	maps := dataplane.MapsOf(objs)
	maps.Endpoints = dataplane.NewMemoryMap[abi.EndpointKey, abi.EndpointValue]("endpoints", 1) // written here
	maps.Quiesce = nil
	k.syncer = dataplane.NewSyncer(maps)
	return k, nil
}

func (k *kernel) close() error {
	var errs []error
	if k.events != nil {
		errs = append(errs, k.events.Close())
	}
	return errors.Join(append(errs, k.objs.Close())...)
}

// load writes the tables, but for the endpoints: each question puts its subject
// where the packet comes through, alone, so that a run judges one direction. Who
// is known by identity alone gets an address.
func (k *kernel) load(ctx context.Context, t *projections.Tables) (*kernelJudge, error) {
	j := &kernelJudge{kernel: k, tables: t, addrs: make(map[identityIn]netip.Addr)}
	rows := make([]*projections.Row[projections.Prefix, abi.IPCacheValue], 0, t.IPCache.Len()+2*int(abi.IdentityWorldIPv6))
	for row := range t.IPCache.All() {
		rows = append(rows, row)
	}
	for _, from := range []netip.Addr{firstIPv4, firstIPv6} {
		next := from
		for id := abi.IdentityHost; id <= abi.IdentityWorldIPv6; id++ {
			for {
				next = next.Next()
				if _, taken := t.IPCache.Get(projections.PrefixFrom(netip.PrefixFrom(next, next.BitLen()))); !taken {
					break
				}
			}
			j.addrs[identityIn{id, next.Is6()}] = next
			rows = append(rows, &projections.Row[projections.Prefix, abi.IPCacheValue]{
				Key: projections.PrefixFrom(netip.PrefixFrom(next, next.BitLen())), Value: abi.IPCacheValue{Peer: uint64(id)},
			})
		}
	}
	with := *t
	var err error
	if with.IPCache, err = projections.NewIPCache(rows); err != nil {
		return nil, err
	}
	_, err = k.syncer.Sync(ctx, &with, nil)
	return j, err
}

// Where the addresses of identities begin: reserved ranges that nobody routes.
var (
	firstIPv4 = netip.MustParseAddr("240.0.0.0") // RFC 1112
	firstIPv6 = netip.MustParseAddr("100::")     // RFC 6666
)

type identityIn struct {
	identity uint32
	ipv6     bool
}

// kernelJudge answers for the tables that are in the maps.
type kernelJudge struct {
	*kernel
	tables  *projections.Tables
	addrs   map[identityIn]netip.Addr
	subject uint32 // whose row is written
	release func(*kernel)
}

// Close implements Judge.
func (j *kernelJudge) Close() error {
	j.release(j.kernel)
	return nil
}

// Verdicts of a TC program (linux/pkt_cls.h).
const (
	tcOK   = 0
	tcShot = 2
)

// Allows implements Judge.
func (j *kernelJudge) Allows(q Question) (bool, error) {
	own, ok := j.tables.Endpoints.Get(projections.EndpointKey{ID: q.Endpoint})
	if !ok {
		return false, fmt.Errorf("endpoint %d: %w", q.Endpoint, projections.ErrUnknownEndpoint)
	}
	if j.subject != q.Endpoint {
		if err := j.objs.Endpoints.Put(abi.EndpointKey{Ifindex: loopback}, own.Value); err != nil {
			return false, fmt.Errorf("map endpoints: %w", err)
		}
		// As whoever writes a row that changes verdicts does: admissions are kept until then.
		j.objs.BumpAllGenerations()
		j.subject = q.Endpoint
	}
	peer := q.PeerAddr
	if !peer.IsValid() {
		peer = j.addrs[identityIn{uint32(q.Peer), q.Subject.Is6()}]
	}
	var frame []byte
	prog := j.objs.FromContainer
	if q.Direction == abi.Egress {
		frame, ok = packet(own.Value.MAC, gatewayMAC, q.Subject, peer, q.Protocol, q.Port)
	} else {
		prog = j.objs.ToContainer
		frame, ok = packet(gatewayMAC, own.Value.MAC, peer, q.Subject, q.Protocol, q.Port)
	}
	if !ok || isNeighbourDiscovery(q) {
		return false, ErrNotAsked
	}
	// What passes leaves events too, of audit mode; the next are to be this packet's.
	if _, _, err := j.newest(); err != nil {
		return false, err
	}
	verdict, err := prog.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		return false, fmt.Errorf("run: %w", err)
	}
	switch verdict {
	case tcOK:
		return true, j.forget(q.Subject)
	case tcShot:
		allowed, err := j.whyDropped()
		if err != nil || !allowed {
			return false, err
		}
		return true, j.forget(q.Subject)
	}
	return false, fmt.Errorf("the program answered %d, neither pass nor drop", verdict)
}

// isNeighbourDiscovery tells of messages that no policy is asked about.
func isNeighbourDiscovery(q Question) bool {
	const first, last = 133, 137 // RFC 4861
	return q.Protocol == policy.ProtoICMPv6 && first <= q.Port && q.Port <= last
}

// forget empties conntrack of the flow that a packet opened.
func (j *kernelJudge) forget(a netip.Addr) error {
	if a.Is4() {
		return empty[abi.CT4Key](j.objs.CT4)
	}
	return empty[abi.CT6Key](j.objs.CT6)
}

func empty[K any](m *ebpf.Map) error {
	for {
		var k K
		err := m.NextKey(nil, &k)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil {
			err = m.Delete(&k)
		}
		if err != nil {
			return fmt.Errorf("emptying conntrack: %w", err)
		}
	}
}

// newest takes all events out of the ring buffer, and returns the last and their
// number.
func (j *kernelJudge) newest() (event abi.Event, seen int, err error) {
	for ; j.events.AvailableBytes() > 0; seen++ {
		if err := j.events.ReadInto(&j.record); err != nil {
			return event, seen, fmt.Errorf("ring buffer: %w", err)
		}
		if len(j.record.RawSample) < int(unsafe.Sizeof(event)) {
			return event, seen, fmt.Errorf("ring buffer: an event of %d bytes", len(j.record.RawSample))
		}
		event = *(*abi.Event)(unsafe.Pointer(&j.record.RawSample[0]))
	}
	return event, seen, nil
}

// whyDropped tells of a dropped packet whether policy allowed it all the same: for
// the DNS proxy alone, which is not there. The error is ErrNotAsked if policy was not
// what dropped it.
func (j *kernelJudge) whyDropped() (allowed bool, err error) {
	event, seen, err := j.newest()
	if err != nil {
		return false, err
	}
	switch event.Reason {
	case abi.PolicyDefaultDeny, abi.PolicyDenied:
		return false, nil
	case abi.ProxyMissing:
		return true, nil
	case abi.ICMPUnsolicited:
		return false, ErrNotAsked
	case abi.Malformed: // an ICMP error that cites nothing
		if event.Protocol == policy.ProtoICMP || event.Protocol == policy.ProtoICMPv6 {
			return false, ErrNotAsked
		}
	}
	if seen == 0 { // noise makes no event
		return false, ErrNotAsked
	}
	return false, fmt.Errorf("the packet was dropped before any policy was asked: %s", event.Reason)
}

// Explain implements Judge.
func (j *kernelJudge) Explain(q Question) string { return tablesJudge{j.tables}.Explain(q) }
