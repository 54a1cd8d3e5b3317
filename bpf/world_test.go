package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
)

// Verdicts of a TCX program.
const (
	passed     = 0
	dropped    = 2
	redirected = 7
)

var gateway = mac{2, 0, 0, 0, 0, 1}

// pod is an endpoint of the world under test.
type pod struct {
	value   abi.EndpointValue
	ifindex uint32
	mac     mac
	v4, v6  netip.Addr
}

// Addresses that are no local pod's.
var (
	remote4, remote6   = netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("fd00::909")
	outside4, outside6 = netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")
	cidr4, cidr6       = netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:c::9")
	host4, host6       = netip.MustParseAddr("10.1.0.254"), netip.MustParseAddr("fd00::fe")
	link6              = netip.MustParseAddr("fe80::a")
)

const (
	remoteIdentity = 300
	cidrPeer       = abi.PeerCIDR | 7
	namedPorts     = 0xabc << 32 // in the ipcache rows of b and remote
)

// world is a set of loaded programs with two local pods, a and b, and the
// addresses above in its ipcache. No policy is enforced at first.
type world struct {
	t     testing.TB
	o     *Objects
	ns    *testns.NS
	a, b  pod
	ring  *ringbuf.Reader
	table uint64 // last one used
	// unraised leaves the generations alone when rows are written.
	unraised bool
}

func newNS(t testing.TB, name string) *testns.NS {
	t.Helper()
	ns, err := testns.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// smallSizes keep a test's maps small.
func smallSizes() map[string]uint32 {
	return map[string]uint32{
		"ipcache": 1024, "ipcache_lpm": 1024, "classes": 1024, "policy": 1024, "ct4": 1024, "ct6": 1024, "events": 65536,
	}
}

func load(t testing.TB, sizes map[string]uint32) *Objects {
	t.Helper()
	dir := filepath.Join(pins, strings.NewReplacer("/", "_", ".", "_").Replace(t.Name()))
	o, err := Load(Options{PinDir: dir, MapSizes: sizes})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(o.Close(), RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return o
}

func newWorld(t testing.TB, sizes map[string]uint32) *world {
	t.Helper()
	w := &world{t: t, o: load(t, sizes), ns: newNS(t, "host")}
	var indexes [2]uint32
	err := w.ns.Do(func() error {
		for i, name := range []string{"a", "b"} {
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-pod"}); err != nil {
				return err
			}
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			indexes[i] = uint32(l.Attrs().Index)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.ring, err = ringbuf.NewReader(w.o.Events)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ring.Close() })
	w.config(func(*abi.Config) {})

	w.a = w.pod(indexes[0], 11, 257, 0, "10.1.0.1", "fd00::1", mac{2, 0, 0, 0, 0, 0xa})
	w.b = w.pod(indexes[1], 12, 258, namedPorts, "10.1.0.2", "fd00::2", mac{2, 0, 0, 0, 0, 0xb})
	for _, r := range []struct {
		addr netip.Addr
		peer uint64
	}{
		{remote4, remoteIdentity | namedPorts}, {remote6, remoteIdentity | namedPorts},
		{host4, uint64(abi.IdentityHost)}, {host6, uint64(abi.IdentityHost)},
	} {
		w.put(w.o.IPCache, abi.IPCacheKey{Addr: abi.AddrFrom(r.addr)}, abi.IPCacheValue{Peer: r.peer})
	}
	for _, p := range []netip.Prefix{netip.PrefixFrom(cidr4, 24+96), netip.PrefixFrom(cidr6, 48)} {
		bits := uint32(24 + 96)
		if p.Addr().Is6() {
			bits = 48
		}
		w.put(w.o.IPCacheLPM, abi.IPCacheLPMKey{PrefixLen: bits, Addr: abi.AddrFrom(p.Addr())}, abi.IPCacheValue{Peer: cidrPeer})
	}
	return w
}

func (w *world) pod(ifindex, id, identity uint32, ports uint64, v4, v6 string, m mac) pod {
	p := pod{ifindex: ifindex, mac: m, v4: netip.MustParseAddr(v4), v6: netip.MustParseAddr(v6)}
	p.value = abi.EndpointValue{ID: id, Identity: identity, IPv4: p.v4.As4(), IPv6: p.v6.As16(), MAC: m}
	w.put(w.o.Endpoints, abi.EndpointKey{Ifindex: ifindex}, p.value)
	for _, addr := range []netip.Addr{p.v4, p.v6} {
		w.put(w.o.IPCache, abi.IPCacheKey{Addr: abi.AddrFrom(addr)}, abi.IPCacheValue{Peer: uint64(identity) | ports, Ifindex: ifindex})
	}
	return p
}

// put writes a row and, as whoever writes one does, raises the generations after it,
// unless w.unraised is set.
func (w *world) put(m *ebpf.Map, key, value any) {
	w.t.Helper()
	if err := m.Put(key, value); err != nil {
		w.t.Fatalf("%s: %v", m, err)
	}
	if !w.unraised {
		w.o.BumpAllGenerations()
	}
}

func (w *world) config(edit func(*abi.Config)) {
	w.t.Helper()
	c := abi.DefaultConfig(gateway)
	edit(&c)
	if err := w.o.SetConfig(c); err != nil {
		w.t.Fatal(err)
	}
}

// row is a policy row; its id in the map is its index, from 1.
type row struct {
	class   uint64
	proto   uint8
	port    uint16
	bits    uint8
	verdict abi.Verdict
}

func allow(class uint64, proto uint8, port uint16) row {
	return row{class, proto, port, 16, abi.VerdictAllow}
}

// enforce gives one direction of p a new table with these rows and its default
// deny.
func (w *world) enforce(p *pod, d abi.Direction, rows ...row) { w.policy(p, d, true, rows...) }

func (w *world) policy(p *pod, d abi.Direction, enforced bool, rows ...row) {
	w.t.Helper()
	w.table++
	ref := abi.PolicyRef{Table: w.table, Scope: 1000 + w.table}
	if enforced {
		ref.Flags = abi.PolicyEnforced
	}
	for i, r := range rows {
		lens := &ref.ClassLens
		if r.class == abi.ClassAny {
			lens = &ref.AnyLens
		} else if !abi.IsOwnClass(r.class) {
			lens = &ref.BaseLens
		}
		if r.proto == 0 {
			*lens |= abi.LensAllProtocols
		} else {
			*lens |= 1 << r.bits
		}
		w.put(w.o.Policy, abi.PolicyKey{Table: w.table, Class: r.class, PortBE: [2]byte(be16(r.port)), Protocol: r.proto, PortBits: r.bits},
			abi.PolicyValue{Row: uint64(i + 1), Verdict: r.verdict})
	}
	if d == abi.Egress {
		p.value.Egress = ref
	} else {
		p.value.Ingress = ref
	}
	w.put(w.o.Endpoints, abi.EndpointKey{Ifindex: p.ifindex}, p.value)
}

// class puts peer into a class of p's current scope.
func (w *world) class(p *pod, d abi.Direction, peer, class uint64) {
	w.t.Helper()
	ref := p.value.Ingress
	if d == abi.Egress {
		ref = p.value.Egress
	}
	w.put(w.o.Classes, abi.ClassKey{Scope: ref.Scope, Peer: peer}, abi.ClassValue{Class: class})
}

// result is what one packet brought about.
type result struct {
	verdict  uint32
	out      []byte
	events   []abi.Event
	counters map[string]uint64 // "reason direction" -> packets, only what changed
}

// from runs f through from_container of p, to through to_container.
func (w *world) from(p pod, f frame) result {
	w.t.Helper()
	return w.run(w.o.FromContainer, p, f)
}

func (w *world) to(p pod, f frame) result { w.t.Helper(); return w.run(w.o.ToContainer, p, f) }

// skbContext is struct __sk_buff up to ifindex; the kernel takes a prefix.
type skbContext struct {
	_       [10]uint32 // len to ingress_ifindex: must be zero
	Ifindex uint32
	_       [37]uint32
}

func (w *world) run(prog *ebpf.Program, p pod, f frame) result {
	w.t.Helper()
	before := w.counters()
	r := result{out: make([]byte, 2048), counters: make(map[string]uint64)}
	r.verdict, r.out = w.send(prog, p, f, r.out)
	for k, n := range w.counters() {
		if n != before[k] {
			r.counters[k] = n - before[k]
		}
	}
	r.events = w.events()
	return r
}

// events are those that nobody has read yet.
func (w *world) events() (events []abi.Event) {
	w.t.Helper()
	for w.ring.AvailableBytes() > 0 {
		record, err := w.ring.Read()
		if err != nil {
			w.t.Fatal(err)
		}
		if len(record.RawSample) != int(unsafe.Sizeof(abi.Event{})) {
			w.t.Fatalf("event of %d bytes, want %d", len(record.RawSample), unsafe.Sizeof(abi.Event{}))
		}
		events = append(events, *(*abi.Event)(unsafe.Pointer(&record.RawSample[0])))
	}
	return events
}

// send is run without a look at what it left behind.
func (w *world) send(prog *ebpf.Program, p pod, f frame, out []byte) (verdict uint32, _ []byte) {
	w.t.Helper()
	in := f.bytes()
	opts := &ebpf.RunOptions{Data: in, DataOut: out, Context: skbContext{Ifindex: p.ifindex}}
	err := w.ns.Do(func() (err error) {
		if err := onOneCPU(); err != nil {
			return err
		}
		verdict, err = prog.Run(opts)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return verdict, opts.DataOut
}

// onOneCPU binds the thread to the CPU of all packets: what one admits, the next can
// find.
func onOneCPU() error {
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &may); err != nil {
		return fmt.Errorf("CPUs: %w", err)
	}
	for cpu := 0; ; cpu++ {
		if may.IsSet(cpu) {
			one.Set(cpu)
			return unix.SchedSetaffinity(0, &one)
		}
	}
}

func (w *world) counters() map[string]uint64 {
	w.t.Helper()
	counters, lost, err := w.o.ReadCounters()
	if err != nil {
		w.t.Fatal(err)
	}
	m := map[string]uint64{"lost events": lost}
	for _, c := range counters {
		name := counterName(c.Reason, c.Direction)
		if c.Audited {
			name += " audited"
		}
		m[name] = c.Packets
	}
	return m
}

func counterName(r abi.Reason, d abi.Direction) string {
	return fmt.Sprintf("%s %s", r, [...]string{"egress", "ingress"}[d])
}

// forget empties conntrack.
func (w *world) forget() {
	w.t.Helper()
	empty[abi.CT4Key](w, w.o.CT4)
	empty[abi.CT6Key](w, w.o.CT6)
}

func empty[K any](w *world, m *ebpf.Map) {
	for _, k := range keys[K](w, m) {
		if err := m.Delete(k); err != nil {
			w.t.Fatal(err)
		}
	}
}

func keys[K any](w *world, m *ebpf.Map) (ks []K) {
	w.t.Helper()
	var k K
	v := make([]byte, m.ValueSize())
	it := m.Iterate()
	for it.Next(&k, &v) {
		ks = append(ks, k)
	}
	if err := it.Err(); err != nil {
		w.t.Fatal(err)
	}
	return ks
}

// flow returns the only conntrack entry there is.
func (w *world) flow() abi.CTValue {
	w.t.Helper()
	var flows []abi.CTValue
	for _, m := range []*ebpf.Map{w.o.CT4, w.o.CT6} {
		var k [40]byte
		key := k[:m.KeySize()]
		var v abi.CTValue
		it := m.Iterate()
		for it.Next(&key, &v) {
			flows = append(flows, v)
		}
		if err := it.Err(); err != nil {
			w.t.Fatal(err)
		}
	}
	if len(flows) != 1 {
		w.t.Fatalf("%d conntrack entries, want 1: %+v", len(flows), flows)
	}
	return flows[0]
}

// flows is the number of conntrack entries.
func (w *world) flows() int {
	w.t.Helper()
	return len(keys[abi.CT4Key](w, w.o.CT4)) + len(keys[abi.CT6Key](w, w.o.CT6))
}

// editFlow overwrites the only conntrack entry.
func (w *world) editFlow(edit func(*abi.CTValue)) {
	w.t.Helper()
	v := w.flow()
	edit(&v)
	var err error
	for _, k := range keys[abi.CT4Key](w, w.o.CT4) {
		err = errors.Join(err, w.o.CT4.Put(k, v))
	}
	for _, k := range keys[abi.CT6Key](w, w.o.CT6) {
		err = errors.Join(err, w.o.CT6.Put(k, v))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// accepted fails unless the packet went on with this verdict, counted in these
// directions, without any drop.
func (r result) accepted(t testing.TB, verdict uint32, directions ...abi.Direction) {
	t.Helper()
	if r.verdict != verdict {
		t.Errorf("verdict %d, want %d (counters %v)", r.verdict, verdict, r.counters)
	}
	want := make(map[string]uint64)
	for _, d := range directions {
		want[counterName(abi.Forwarded, d)] = 1
	}
	if fmt.Sprint(r.counters) != fmt.Sprint(want) {
		t.Errorf("counters %v, want %v", r.counters, want)
	}
}

// refused fails unless the packet was dropped, counted and, for what is not
// noise, reported exactly once.
func (r result) refused(t testing.TB, reason abi.Reason, d abi.Direction) {
	t.Helper()
	if r.verdict != dropped {
		t.Errorf("verdict %d, want %d (drop: %s)", r.verdict, dropped, reason)
	}
	want := map[string]uint64{counterName(reason, d): 1}
	if fmt.Sprint(r.counters) != fmt.Sprint(want) {
		t.Errorf("counters %v, want %v", r.counters, want)
	}
	if reason == abi.Multicast || reason == abi.NeighbourUnhandled {
		if len(r.events) != 0 {
			t.Errorf("noise made events: %+v", r.events)
		}
		return
	}
	if len(r.events) != 1 {
		t.Fatalf("%d events, want 1", len(r.events))
	}
	e := r.events[0]
	if e.Type != abi.EventDrop || e.Reason != reason || e.Direction != d {
		t.Errorf("event type %d reason %q direction %d, want drop, %q, %d", e.Type, e.Reason, e.Direction, reason, d)
	}
}
