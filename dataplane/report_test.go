package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/varve-net/varve/bpf/abi"
)

func TestEventsFlowsAndCounters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start([]rule{{pod: "b", direction: abi.Ingress, peer: "a", protocol: 17, port: 80}}, "a", "b")
	a, b := w.pods["a"], w.pods["b"]
	w.serve(b.ns, 80, b.ips()...)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := make(chan Event, 1024)
	done := make(chan error, 1)
	go func() {
		done <- w.Events(ctx, func(e Event) error {
			events <- e
			return nil
		})
	}()
	next := func(want abi.EventType, dst netip.AddrPort, protocol uint8) Event {
		t.Helper()
		for timeout := time.After(patience); ; {
			select {
			case e := <-events:
				if e.Type == want && e.Dst == dst.Addr() && e.DstPort == dst.Port() && e.Protocol == protocol {
					return e
				}
			case <-timeout:
				t.Fatalf("no event of type %d to %s", want, dst)
			}
		}
	}
	for _, ip := range b.ips() {
		at := netip.AddrPortFrom(ip, 80)
		w.check(a.ns.ExchangeUDP(at, patience))
		if e := next(abi.EventNewFlow, at, 17); e.Row == 0 || uint32(e.SrcPeer) != a.identity {
			t.Errorf("new flow: %+v", e)
		}
		if err := a.ns.ExchangeTCP(at, silence); err == nil {
			t.Error("TCP was let through")
		}
		e := next(abi.EventDrop, at, 6)
		if e.Reason != abi.PolicyDefaultDeny || e.Endpoint != b.id || e.Direction != abi.Ingress || e.Length == 0 || e.SinceBoot == 0 || e.Ifindex != w.bind[a.id] {
			t.Errorf("drop: %+v", e)
		}
	}
	cancel()
	w.check(<-done)

	flows := make(map[netip.AddrPort]Flow)
	w.check(w.Flows(context.Background(), func(f Flow) error {
		flows[f.Dst] = f
		return nil
	}))
	for i, ip := range b.ips() {
		f, ok := flows[netip.AddrPortFrom(ip, 80)]
		if !ok || f.Src.Addr() != a.ips()[i] || f.Protocol != 17 || f.SrcIdentity != a.identity || !f.SeenReply || f.Denied ||
			f.SrcIfindex != w.bind[a.id] || f.DstIfindex != w.bind[b.id] || f.ExpiresIn <= 0 || f.ExpiresIn > 61*time.Second || f.Row == 0 {
			t.Errorf("flow to %s: %+v", ip, f)
		}
	}
	counters, lost, err := w.Counters()
	w.check(err)
	if lost != 0 {
		t.Errorf("%d events lost", lost)
	}
	var denied uint64
	for _, c := range counters {
		if c.Reason == abi.PolicyDefaultDeny {
			denied += c.Packets
		}
	}
	if denied < 2 {
		t.Errorf("%d packets denied by default, want 2 at least: %+v", denied, counters)
	}
}

func TestCollectFlowsRemovesExpiredOnesOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	now, err := bootSeconds()
	w.check(err)
	for i := range 100 {
		v := abi.CTValue{ExpiresSeconds: now + 3600}
		if i%4 == 0 {
			v.ExpiresSeconds = now - collectGrace - 1
		}
		k4 := abi.CT4Key{Addr: [2][4]byte{{10, 0, 0, byte(i)}, {10, 1, 0, 0}}, Protocol: 6}
		w.check(w.objs.CT4.Put(&k4, &v))
		k6 := abi.CT6Key{Addr: [2][16]byte{{0xfd, 15: byte(i)}, {0xfd, 1}}, Protocol: 6}
		w.check(w.objs.CT6.Put(&k6, &v))
	}
	if n, err := w.CollectFlows(context.Background()); err != nil || n != 50 {
		t.Errorf("collected %d, %v, want 50", n, err)
	}
	left := 0
	w.check(w.Flows(context.Background(), func(f Flow) error {
		left++
		if f.ExpiresIn <= 0 {
			t.Errorf("expired and still there: %+v", f)
		}
		return nil
	}))
	if left != 150 {
		t.Errorf("%d flows left, want 150", left)
	}
}

func TestAFullMapKeepsTheOldPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]uint32{"policy": 4})
	closed := []rule{{pod: "b", direction: abi.Ingress}}
	w.start(closed, "a", "b")
	a, b := w.pods["a"], w.pods["b"]
	w.serve(b.ns, 80, b.ips()...)
	var wide []rule
	for port := range uint16(10) {
		wide = append(wide, rule{pod: "b", direction: abi.Ingress, peer: "a", protocol: 17, port: 80 + port})
	}
	_, err := w.Sync(context.Background(), w.tables(wide...), w.bind)
	full := new(FullError)
	if !errors.As(err, &full) || !errors.Is(err, ErrMapFull) {
		t.Fatalf("Sync: %v, want a FullError", err)
	}
	if full.Map != "policy" || full.MaxEntries != 4 || full.Need != 10 || full.Unfit != 6 {
		t.Errorf("%+v, want policy, 4, 10, 6", full)
	}
	if err := a.ns.ExchangeUDP(netip.AddrPortFrom(b.spec.IPv4, 80), silence); err == nil {
		t.Error("half of a policy is in force")
	}
	if d, err := w.Verify(context.Background(), w.tables(closed...)); err != nil || len(d) > 0 {
		t.Errorf("the old tables do not hold any more: %v, %v", d, err)
	}
	w.apply(wide[:3]...)
	w.check(a.ns.ExchangeUDP(netip.AddrPortFrom(b.spec.IPv4, 80), patience))
}

func TestVerifySaysWhatDiffers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start([]rule{{pod: "b", direction: abi.Ingress, peer: "a", protocol: 6, port: 443}}, "a", "b")
	desired := w.tables(rule{pod: "b", direction: abi.Ingress, peer: "a", protocol: 6, port: 443})
	a := abi.AddrFrom(w.pods["a"].spec.IPv4)
	w.check(w.objs.IPCache.Put(abi.IPCacheKey{Addr: a}, abi.IPCacheValue{Peer: 7}))
	w.check(w.objs.Classes.Put(abi.ClassKey{Scope: 1, Peer: 2}, abi.ClassValue{Class: abi.ClassPod}))
	for row := range desired.Policy.All() {
		w.check(w.objs.Policy.Delete(row.Key))
	}
	d, err := w.Verify(context.Background(), desired)
	w.check(err)
	var lines []string
	for _, d := range d {
		lines = append(lines, d.String())
	}
	got := strings.Join(lines, "\n")
	for _, want := range []string{
		"ipcache: 10.77.1.1 differs: has identity 7, want identity 1001 at interface",
		"classes: scope 0000000000000001 identity 2 extra: has class any pod",
		"protocol 6 port 443 missing: want allow by row 0000000000000001",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if len(d) != 3 {
		t.Errorf("%d differences, want 3:\n%s", len(d), got)
	}
	w.Forget()
	if stats, err := w.Sync(context.Background(), desired, w.bind); err != nil || stats.Total() != 3 || !stats.AllFlows {
		t.Errorf("repair: %+v, %v, want 3 rows and all flows", stats, err)
	}
	if d, err := w.Verify(context.Background(), desired); err != nil || len(d) > 0 {
		t.Errorf("after the repair: %v, %v", d, err)
	}
}

func TestUnboundEndpointsHaveNoRow(t *testing.T) {
	m := NewMemoryMaps(1000)
	tables, bind := model{pods: []modelPod{
		{id: 1, addr: netip.MustParseAddr("10.0.0.1"), label: 'a'},
		{id: 2, addr: netip.MustParseAddr("10.0.0.2"), label: 'b'},
	}, enforced: map[string]bool{}}.build()
	delete(bind, 2)
	stats, err := NewSyncer(m).Sync(context.Background(), tables, bind)
	if err != nil || len(stats.Unbound) != 1 || stats.Unbound[0] != 2 {
		t.Fatalf("%+v, %v, want endpoint 2 unbound", stats, err)
	}
	rows, _ := m.IPCache.Rows(context.Background())
	for _, p := range []struct {
		addr string
		at   uint32
	}{{"10.0.0.1", 101}, {"10.0.0.2", 0}} {
		if v := rows[abi.IPCacheKey{Addr: abi.AddrFrom(netip.MustParseAddr(p.addr))}]; v.Ifindex != p.at || v.Peer == 0 {
			t.Errorf("%s: %+v, want interface %d", p.addr, v, p.at)
		}
	}
	d, err := Verify(context.Background(), m, tables, bind)
	if err != nil || len(d) != 1 || d[0].Kind != Missing {
		t.Errorf("Verify: %v, %v, want endpoint 2 missing", d, err)
	}
}

func TestPrefixesOfBothFamilies(t *testing.T) {
	r := newResolver(map[prefix]abi.IPCacheValue{
		cidrKey("::/0"): {Peer: 1}, cidrKey("10.0.0.0/8"): {Peer: 2}, cidrKey("10.1.0.0/16"): {Peer: 3},
	})
	for of, want := range map[string]uint64{"10.1.2.3/32": 3, "10.2.0.0/16": 2, "10.0.0.0/8": 2, "8.8.8.8/32": 1, "fd00::/8": 1} {
		if got := r.peer(cidrKey(of)); got != want {
			t.Errorf("%s: peer %d, want %d", of, got, want)
		}
	}
	none := newResolver(nil)
	if none.peer(cidrKey("10.0.0.0/8")) != uint64(abi.IdentityWorldIPv4) || none.peer(cidrKey("::/0")) != uint64(abi.IdentityWorldIPv6) {
		t.Error("what no row covers is not the world of its family")
	}
	// ::/0 comes: IPv4 addresses leave their world for it, on their own account.
	c := newChange(&rows{}, &rows{prefixes: map[prefix]abi.IPCacheValue{cidrKey("::/0"): {Peer: 1}}})
	if m := c.moved[allIPv4]; m.before != uint64(abi.IdentityWorldIPv4) || m.after != 1 {
		t.Errorf("0.0.0.0/0 moves %+v", m)
	}
}

func TestDecodeEventRefusesShortRecords(t *testing.T) {
	if _, err := decodeEvent(make([]byte, 8)); err == nil {
		t.Error("a record of 8 bytes was decoded")
	}
}
