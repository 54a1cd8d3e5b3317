package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
	"github.com/varve-net/varve/projections"
)

// driftWorld is a node where a may talk to b and c may not, by a deny beside an
// allow for all.
type driftWorld struct {
	*world
	want  *projections.Tables
	trips atomic.Int64
}

var driftNode = NodeSpec{
	Gateway4: gateways.Gateway4, Gateway6: gateways.Gateway6,
	Ranges: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("fd77::1:0/112")},
}

func newDriftWorld(t *testing.T) *driftWorld {
	w := &driftWorld{world: newWorld(t, nil)}
	rules := []rule{{pod: "b", direction: abi.Ingress, peer: "any"}, {pod: "b", direction: abi.Ingress, peer: "c", deny: true}}
	w.check(w.SetupNode(t.Context(), driftNode))
	w.start(rules, "a", "b", "c")
	w.want = w.tables(rules...)
	w.serve(w.pods["b"].ns, 80, w.pods["b"].ips()...)
	return w
}

// disturb damages the node while a talks to b and c tries to, and checks and
// repairs until a check finds nothing. It returns what was found.
func (w *driftWorld) disturb(t *testing.T, damage func()) []Drift {
	t.Helper()
	done := make(chan struct{})
	g, ctx := errgroup.WithContext(t.Context())
	for _, ip := range w.pods["b"].ips() {
		c, err := w.pods["a"].ns.DialUDP(ctx, netip.AddrPortFrom(ip, 80))
		w.check(err)
		g.Go(func() error { return roundTrips(c, &w.trips, done) })
		g.Go(func() error { return w.refused(ctx, ip, done) })
	}
	w.await(ctx, 20)
	damage()
	var all []Drift
	for {
		found := w.pass(t)
		if len(found) == 0 {
			break
		}
		for _, f := range found {
			if f.Err != nil {
				t.Errorf("%s", f)
			}
		}
		if all = append(all, found...); len(all) > 50 {
			t.Fatalf("drift without end: %v", all)
		}
	}
	w.await(ctx, 20)
	close(done)
	w.check(g.Wait())
	if d, err := w.Verify(t.Context(), w.want); err != nil || len(d) != 0 {
		t.Errorf("Verify: %v, %v", d, err)
	}
	return all
}

// await waits for some more round trips, among them some of new flows.
func (w *driftWorld) await(ctx context.Context, n int64) {
	w.t.Helper()
	for was := w.trips.Load(); w.trips.Load() < was+n && ctx.Err() == nil; {
		if err := w.pods["a"].ns.ExchangeUDP(netip.AddrPortFrom(w.pods["b"].spec.IPv4, 80), patience); err != nil {
			w.t.Fatalf("a new flow: %v", err)
		}
	}
}

// refused sends from c to b until done is closed; nothing may come back.
func (w *driftWorld) refused(ctx context.Context, ip netip.Addr, done <-chan struct{}) error {
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return nil
		default:
		}
		if err := w.pods["c"].ns.ExchangeUDP(netip.AddrPortFrom(ip, 80), silence/10); err == nil {
			return fmt.Errorf("c reached %s", ip)
		}
	}
}

// pass checks and repairs all.
func (w *driftWorld) pass(t *testing.T) []Drift {
	t.Helper()
	ctx := t.Context()
	out, err := w.CheckShared(ctx, driftNode)
	w.check(err)
	var all []Bound
	by := make(map[string]Bound)
	for _, p := range w.pods {
		b := Bound{InterfaceSpec: p.spec, Ifindex: w.bind[p.id]}
		all, by[p.spec.HostName] = append(all, b), b
	}
	for range sweepPasses { // sysctls are read of a part at a time
		suspects, err := w.SuspectInterfaces(ctx, all)
		w.check(err)
		for _, name := range suspects {
			found, err := w.RepairInterface(ctx, by[name])
			w.check(err)
			out = append(out, found...)
		}
	}
	ds, err := w.CheckRows(ctx, w.want)
	w.check(err)
	for _, d := range ds {
		out = append(out, Drift{Kind: DriftRow, Object: d.Map, What: d.String()})
	}
	if len(ds) > 0 {
		_, err := w.Sync(ctx, w.want, w.bind)
		w.check(err)
	}
	return out
}

func (w *driftWorld) layout() string {
	return filepath.Join(w.config.PinDir, "v"+strconv.Itoa(abi.Layout))
}

// pinned opens a map by its pin, as anybody can.
func (w *driftWorld) pinned(t *testing.T, name string) *ebpf.Map {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.layout(), "maps", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.check(m.Close()) })
	return m
}

func (w *driftWorld) linkPin(pod, suffix string) string {
	return filepath.Join(w.layout(), "links", strconv.Itoa(w.bind[w.pods[pod].id])+"-"+suffix)
}

func (w *driftWorld) link(t *testing.T, pod, suffix string) link.Link {
	t.Helper()
	l, err := link.LoadPinnedLink(w.linkPin(pod, suffix), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.check(l.Close()) })
	return l
}

func (w *driftWorld) ip(args ...string) {
	w.t.Helper()
	if out, err := w.node.Output(w.t.Context(), "ip", args...); err != nil {
		w.t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// row finds a row for which a condition holds.
func row[K, V comparable](t *testing.T, m Map[K, V], is func(K, V) bool) (K, V) {
	t.Helper()
	rows, err := m.Rows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range rows {
		if is(k, v) {
			return k, v
		}
	}
	t.Fatalf("map %s has no such row", m.Name())
	panic("unreachable")
}

// foreign is a program that ends with a verdict.
func foreign(t *testing.T, verdict int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// ahead puts a program before all others of a pod's host side.
func (w *driftWorld) ahead(t *testing.T, pod string, p *ebpf.Program, hooks ...ebpf.AttachType) {
	t.Helper()
	err := w.node.Do(func() error {
		for _, at := range hooks {
			l, err := link.AttachTCX(link.TCXOptions{Interface: w.bind[w.pods[pod].id], Program: p, Attach: at, Anchor: link.Head()})
			if err != nil {
				return err
			}
			t.Cleanup(func() { w.check(l.Close()) })
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

const (
	tcxNext = -1 // include/uapi/linux/bpf.h
	tcxDrop = 2
)

// damage is something that others do to a node.
type damage struct {
	name string
	do   func(t *testing.T)
	want []string // in the findings
}

// hookDamages are those of the way in which this kernel runs programs.
func (w *driftWorld) hookDamages(t *testing.T) []damage {
	if !kernelHasTCX(t) {
		return []damage{
			{"egress filter removed", func(t *testing.T) {
				w.withFilter(t, "b", (*netlink.Handle).FilterDel)
			}, []string{w.pods["b"].spec.HostName + " tcx egress: its filter is gone"}},
			{"another program in the filter", func(t *testing.T) {
				w.withFilter(t, "b", func(nl *netlink.Handle, f netlink.Filter) error {
					f.(*netlink.BpfFilter).Fd = foreign(t, tcxNext).FD()
					return nl.FilterReplace(f)
				})
			}, []string{w.pods["b"].spec.HostName + " tcx egress: its filter is gone"}},
		}
	}
	return []damage{
		{"egress link detached", func(t *testing.T) {
			w.check(w.link(t, "b", "to").Detach())
		}, []string{w.pods["b"].spec.HostName + " tcx egress: its link is detached"}},
		{"another program in the link", func(t *testing.T) {
			w.check(w.link(t, "b", "to").Update(foreign(t, 0)))
		}, []string{"tcx egress: its link runs program", "(foreign)"}},
		{"a program before that of c", func(t *testing.T) {
			w.ahead(t, "c", foreign(t, tcxNext), ebpf.AttachTCXIngress)
		}, []string{w.pods["c"].spec.HostName + " tcx ingress: runs after program ", "(foreign)"}},
	}
}

// withFilter calls fn with the filter of a pod's egress hook.
func (w *driftWorld) withFilter(t *testing.T, pod string, fn func(*netlink.Handle, netlink.Filter) error) {
	t.Helper()
	w.check(w.node.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		host := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: w.bind[w.pods[pod].id]}}
		filters, err := nl.FilterList(host, netlink.HANDLE_MIN_EGRESS)
		if err != nil || len(filters) != 1 {
			return fmt.Errorf("filters %v, want one: %w", filters, err)
		}
		return fn(nl, filters[0])
	}))
}

// firstFilterTaken: clsact has one first place, which cannot be taken from another;
// so it is told for as long as another has it, and repaired after.
func (w *driftWorld) firstFilterTaken(t *testing.T) {
	t.Helper()
	w.withFilter(t, "b", func(nl *netlink.Handle, f netlink.Filter) error {
		theirs := f.(*netlink.BpfFilter)
		theirs.Fd, theirs.Name = foreign(t, tcxNext).FD(), "foreign"
		return nl.FilterReplace(theirs)
	})
	for range 2 {
		found := w.pass(t)
		if len(found) == 0 || !errors.Is(found[0].Err, bpf.ErrForeignFilter) {
			t.Fatalf("found %v, want %v", found, bpf.ErrForeignFilter)
		}
	}
	w.withFilter(t, "b", (*netlink.Handle).FilterDel)
	for _, f := range w.pass(t) {
		if f.Err != nil {
			t.Errorf("found %s", f)
		}
	}
	if got := w.pass(t); len(got) != 0 {
		t.Errorf("found again: %v", got)
	}
	if got := reach(w.pods["a"].ns, w.pods["b"].spec.IPv4, 80, allBack); got != allBack {
		t.Errorf("after the repair: %+v", got)
	}
}

func kernelHasTCX(t *testing.T) bool {
	t.Helper()
	has, err := testns.HasTCX()
	if err != nil {
		t.Fatal(err)
	}
	return has
}

func TestDriftIsFoundAndRepairedUnderTraffic(t *testing.T) {
	t.Parallel()
	w := newDriftWorld(t)
	if found := w.pass(t); len(found) != 0 {
		t.Fatalf("found without any drift: %v", found)
	}
	b := w.pods["b"]
	allow := func(_ abi.PolicyKey, v abi.PolicyValue) bool { return v.Verdict == abi.VerdictAllow }
	ofA := func(k abi.IPCacheKey, _ abi.IPCacheValue) bool { return k.Addr == abi.AddrFrom(w.pods["a"].spec.IPv4) }
	for _, c := range append(w.hookDamages(t), []damage{
		{"policy row added", func(t *testing.T) {
			k, v := row(t, w.Maps().Policy, allow)
			k.Class, v.Row = 4711, 99
			w.check(w.pinned(t, "policy").Put(&k, &v))
		}, []string{"row policy: ", "extra"}},
		{"policy row edited", func(t *testing.T) {
			k, v := row(t, w.Maps().Policy, allow)
			v.Row = 77
			w.check(w.pinned(t, "policy").Put(&k, &v))
		}, []string{"row policy: ", "differs"}},
		{"endpoint row edited", func(t *testing.T) {
			k := abi.EndpointKey{Ifindex: uint32(w.bind[w.pods["a"].id])}
			_, v := row(t, w.Maps().Endpoints, func(have abi.EndpointKey, _ abi.EndpointValue) bool { return have == k })
			v.Identity = 4242
			w.check(w.pinned(t, "endpoints").Put(&k, &v))
		}, []string{"row endpoints: ", "differs: has endpoint 1 identity 4242"}},
		{"ipcache row edited", func(t *testing.T) {
			k, v := row(t, w.Maps().IPCache, ofA)
			v.Peer = 9999
			w.check(w.pinned(t, "ipcache").Put(&k, &v))
		}, []string{"row ipcache: ", "10.77.1.1 differs: has identity 9999"}},
		{"ipcache row deleted", func(t *testing.T) {
			k, _ := row(t, w.Maps().IPCache, ofA)
			w.check(w.pinned(t, "ipcache").Delete(&k))
		}, []string{"10.77.1.1 missing"}},
		{"prefix added", func(t *testing.T) {
			k := prefix{PrefixLen: 104, Addr: allIPv4.Addr}
			k.Addr[12] = 11
			w.check(w.pinned(t, "ipcache_lpm").Put(&k, &abi.IPCacheValue{Peer: 5}))
		}, []string{"11.0.0.0/8 extra"}},
		{"switch turned off", func(t *testing.T) {
			s := w.settings
			s.NewFlowEvents = false
			w.check(w.pinned(t, "config").Put(uint32(0), &s))
		}, []string{"config config: "}},
		{"pins removed", func(*testing.T) {
			for _, pin := range []string{w.linkPin("b", "from"), w.linkPin("b", "to"), w.linkPin("c", "from"), filepath.Join(w.layout(), "maps", "policy")} {
				w.check(os.Remove(pin))
			}
		}, []string{"tcx ingress: its pin is gone", "tcx egress: its pin is gone", "pin maps/policy: it is gone"}},
		{"route and neighbours removed", func(*testing.T) {
			w.ip("route", "del", b.spec.IPv4.String())
			w.ip("-6", "neigh", "del", b.spec.IPv6.String(), "dev", b.spec.HostName)
			w.ip("neigh", "replace", b.spec.IPv4.String(), "lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", b.spec.HostName)
		}, []string{"has no route to 10.77.1.2", "has no permanent neighbour fd77::1:2", "has neighbour 10.77.1.2 at 02:00:00:00:00:99"}},
		{"gateways removed", func(*testing.T) {
			w.ip("addr", "del", "10.77.0.1/32", "dev", "lo")
			w.ip("addr", "del", "fd77::1/128", "dev", "lo")
			w.ip("-6", "route", "del", "unreachable", "fd77::1:0/112", "metric", "2147483647")
		}, []string{"range fd77::1:0/112: has no route", "gateway 10.77.0.1: is not on the loopback", "gateway fd77::1: is not on the loopback"}},
		{"sysctls turned", func(*testing.T) {
			w.check(w.node.Do(func() error {
				return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0),
					os.WriteFile("/proc/sys/net/ipv4/conf/"+b.spec.HostName+"/rp_filter", []byte("1"), 0))
			}))
		}, []string{"net.ipv4.ip_forward: is 0, want 1", "rp_filter: is 1, want 0"}},
		{"MAC changed", func(*testing.T) {
			w.ip("link", "set", b.spec.HostName, "address", "02:00:00:00:00:98")
		}, []string{"has MAC 02:00:00:00:00:98"}},
	}...) {
		t.Run(c.name, func(t *testing.T) {
			found := w.disturb(t, func() { c.do(t) })
			var lines []string
			for _, f := range found {
				lines = append(lines, f.String())
			}
			text := strings.Join(lines, "\n")
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("not found: %q in\n%s", want, text)
				}
			}
		})
	}
}

func TestOursIsFirstAgainAfterOthersAreBeforeIt(t *testing.T) {
	t.Parallel()
	w := newDriftWorld(t)
	if !kernelHasTCX(t) {
		w.firstFilterTaken(t)
		return
	}
	for range 2 { // the second time what the first one loaded is used again
		w.ahead(t, "a", foreign(t, tcxDrop), ebpf.AttachTCXIngress, ebpf.AttachTCXEgress)
		found := w.pass(t)
		if len(found) != 2 {
			t.Fatalf("found %v, want one for each hook", found)
		}
		for _, f := range found {
			if f.Err != nil || !strings.Contains(f.What, "runs after program ") || !strings.Contains(f.What, "(foreign)") {
				t.Errorf("found %s", f)
			}
		}
		if got := reach(w.pods["a"].ns, w.pods["b"].spec.IPv4, 80, allBack); got != allBack {
			t.Errorf("after the repair: %+v", got)
		}
		if got := reach(w.pods["c"].ns, w.pods["b"].spec.IPv4, 80, noneBack); got != noneBack {
			t.Errorf("c reaches b: %+v", got)
		}
		if got := w.pass(t); len(got) != 0 {
			t.Errorf("found again: %v", got)
		}
	}
	// The next agent finds what it needs.
	w.check(w.Close())
	w.open()
	if _, err := w.Sync(t.Context(), w.want, w.bind); err != nil {
		t.Fatal(err)
	}
	if got := w.pass(t); len(got) != 0 {
		t.Errorf("found after a restart: %v", got)
	}
}

func TestDeletedDenyIsBack(t *testing.T) {
	t.Parallel()
	w := newDriftWorld(t)
	for _, damage := range []func(){
		func() {
			k, _ := row(t, w.Maps().Policy, func(_ abi.PolicyKey, v abi.PolicyValue) bool { return v.Verdict == abi.VerdictDeny })
			w.check(w.pinned(t, "policy").Delete(&k))
		},
		func() {
			k, _ := row(t, w.Maps().Classes, func(abi.ClassKey, abi.ClassValue) bool { return true })
			w.check(w.pinned(t, "classes").Delete(&k))
		},
		func() {
			k, v := row(t, w.Maps().Endpoints, func(_ abi.EndpointKey, v abi.EndpointValue) bool { return v.ID == w.pods["c"].id })
			v.Identity = 4242
			w.check(w.pinned(t, "endpoints").Put(&k, &v))
		},
	} {
		damage()
		// What got in meanwhile is out again at its next packet.
		c, err := w.pods["c"].ns.DialUDP(t.Context(), netip.AddrPortFrom(w.pods["b"].spec.IPv4, 80))
		w.check(err)
		if err := testns.RoundTrip(c, "hello", patience); err != nil {
			t.Errorf("the damage does not do what it is made for: %v", err)
		}
		if found := w.pass(t); len(found) != 1 {
			t.Errorf("found %v", found)
		}
		if err := testns.RoundTrip(c, "hello", silence); err == nil {
			t.Error("a flow goes on that is denied")
		}
		w.check(c.Close())
	}
}

func TestInterfaceDownComesUp(t *testing.T) {
	t.Parallel()
	w := newDriftWorld(t)
	b := w.pods["b"]
	w.ip("link", "set", b.spec.HostName, "down")
	found := w.pass(t)
	if len(found) == 0 || !strings.Contains(found[0].What, "is down") {
		t.Errorf("found %v", found)
	}
	if got := reach(w.pods["a"].ns, b.spec.IPv6, 80, allBack); got != allBack {
		t.Errorf("after the repair: %+v", got)
	}
	if found := w.pass(t); len(found) != 0 {
		t.Errorf("found again: %v", found)
	}
}

func TestInterfaceGoneIsTold(t *testing.T) {
	t.Parallel()
	w := newDriftWorld(t)
	b := w.pods["b"]
	news := make(chan struct{}, 1)
	ctx, stop := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() {
		watched <- w.Watch(ctx, func() {
			select {
			case news <- struct{}{}:
			default:
			}
		})
	}()
	for heard := false; !heard; { // until it listens
		w.ip("link", "set", "lo", "mtu", "60000")
		w.ip("link", "set", "lo", "mtu", "65536")
		select {
		case <-news:
			heard = true
		default:
		}
	}
	bound := Bound{b.spec, w.bind[b.id]}
	if out, err := b.ns.Output(t.Context(), "ip", "link", "del", "eth0"); err != nil {
		t.Fatal(err, out)
	}
	for gone := false; !gone; {
		<-news
		suspects, err := w.SuspectInterfaces(t.Context(), []Bound{bound})
		w.check(err)
		gone = len(suspects) == 1 && suspects[0] == b.spec.HostName
	}
	stop()
	w.check(<-watched)
	found, err := w.RepairInterface(t.Context(), bound)
	w.check(err)
	if len(found) != 1 || !errors.Is(found[0].Err, ErrNoInterface) {
		t.Errorf("found %v", found)
	}
}

func TestEveryRowIsComparedWithinTheBound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]uint32{"classes": 200_000})
	w.add("a")
	w.apply(rule{pod: "a", direction: abi.Ingress, peer: "any"})
	const rows = 100_000
	keys, values := make([]abi.ClassKey, rows), make([]abi.ClassValue, rows)
	for i := range keys {
		keys[i], values[i] = abi.ClassKey{Scope: 7, Peer: uint64(i)}, abi.ClassValue{Class: uint64(i)}
	}
	_, err := w.Maps().Classes.Put(keys, values)
	w.check(err)
	want := w.syncer.have
	for i, k := range keys {
		want.classes[k] = values[i]
	}
	m := w.objs.Classes
	for name, damage := range map[string]func(i int) error{
		"deleted": func(i int) error { return m.Delete(&keys[i]) },
		"edited":  func(i int) error { return m.Put(&keys[i], &abi.ClassValue{Class: 1 << 40}) },
		"added":   func(i int) error { return m.Put(&abi.ClassKey{Scope: 8, Peer: uint64(i)}, &values[i]) },
	} {
		for i := range 3 {
			w.check(damage(i * 40_000))
			var found []Difference
			passes := 0
			for ; len(found) == 0 && passes < 3*sweepPasses; passes++ {
				found, err = w.CheckRows(t.Context(), nil)
				w.check(err)
			}
			// One sweep may have gone by the row already.
			if len(found) != 1 || passes > 2*sweepPasses {
				t.Errorf("%s: found %v after %d passes", name, found, passes)
			}
			w.syncer.have = want // as the Sync would find it that comes then
		}
	}
}
