package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
)

// ctValue0 is a conntrack entry of the made-up layout 0: what VARVE_LAYOUT_0
// stands for in abi.h.
type ctValue0 struct {
	Generation, Flags           uint32
	ExpiresSeconds, SrcIdentity uint32
	Side                        [2]abi.CTSide
	Row                         uint64
}

func (v *ctValue0) convert() abi.CTValue {
	return abi.CTValue{Row: v.Row, Generation: v.Generation, Flags: v.Flags, ExpiresSeconds: v.ExpiresSeconds, SrcIdentity: v.SrcIdentity, Side: v.Side}
}

func init() {
	converters[0] = converter{
		ct4: func(k, v []byte) (abi.CT4Key, abi.CTValue) {
			return *(*abi.CT4Key)(unsafe.Pointer(&k[0])), (*ctValue0)(unsafe.Pointer(&v[0])).convert()
		},
		ct6: func(k, v []byte) (abi.CT6Key, abi.CTValue) {
			return *(*abi.CT6Key)(unsafe.Pointer(&k[0])), (*ctValue0)(unsafe.Pointer(&v[0])).convert()
		},
	}
}

// loadLayout0 loads the programs of layout 0, pinned where they would be.
func loadLayout0(t *testing.T, pinDir string, clsact bool) *Objects {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpec("testdata/layout0_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := spec.Maps["ct4"].ValueSize, uint32(unsafe.Sizeof(ctValue0{})); got != want {
		t.Fatalf("a flow of layout 0 has %d bytes, want %d", got, want)
	}
	dir := filepath.Join(pinDir, "v0")
	for _, sub := range []string{"maps", "links"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	old, err := loadSpec(spec, dir, Options{MapSizes: smallSizes(), Clsact: clsact})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := old.Close(); err != nil {
			t.Error(err)
		}
	})
	return old
}

// copyRows gives a map the entries of another of the same layout.
func copyRows(t *testing.T, to, from *ebpf.Map) {
	t.Helper()
	k, v := make([]byte, from.KeySize()), make([]byte, from.ValueSize())
	it := from.Iterate()
	for it.Next(&k, &v) {
		if err := to.Put(k, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
}

// oldNode is a node whose pods have the programs of layout 0 and the rows that
// the new maps have already. Only TCP and UDP to the port of b is admitted: what
// b answers, and everything to a, depends on conntrack.
func oldNode(t *testing.T, port uint16, oldClsact, newClsact bool) *node {
	t.Helper()
	n := newNode(t)
	n.enforce(&n.b, abi.Ingress, allow(abi.ClassAny, tcp, port), allow(abi.ClassAny, udp, port))
	n.enforce(&n.b, abi.Egress)
	n.enforce(&n.a, abi.Ingress)
	n.o.clsact = newClsact
	pinDir := filepath.Dir(n.o.dir)
	old := loadLayout0(t, pinDir, oldClsact)
	for name, m := range n.o.Maps() {
		switch name {
		case "ipcache", "ipcache_lpm", "endpoints", "classes", "policy", "config", "generations":
			copyRows(t, old.Maps()[name], m)
		}
	}
	do(t, n.ns, func() error {
		for _, p := range []pod{n.a, n.b} {
			if err := errors.Join(n.o.Detach(p.index()), old.Attach(p.index())); err != nil {
				return err
			}
		}
		return nil
	})
	n.forget()
	return n
}

// traffic runs between a and b until it is stopped.
type traffic struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	rounds atomic.Int64 // of connections opened
	mu     sync.Mutex
	errs   []error
}

func (tr *traffic) loop(name string, fn func(i int) error) {
	tr.wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-tr.stop:
				return
			default:
			}
			if err := fn(i); err != nil {
				tr.mu.Lock()
				tr.errs = append(tr.errs, fmt.Errorf("%s, round %d: %w", name, i, err))
				tr.mu.Unlock()
				return
			}
		}
	})
}

func (tr *traffic) end(t *testing.T) {
	t.Helper()
	close(tr.stop)
	tr.wg.Wait()
	for _, err := range tr.errs {
		t.Error(err)
	}
}

// until waits for so many more new connections.
func (tr *traffic) until(t *testing.T, more int64) {
	t.Helper()
	want, deadline := tr.rounds.Load()+more, time.Now().Add(2*patience)
	for tr.rounds.Load() < want {
		if time.Now().After(deadline) {
			tr.end(t)
			t.Fatalf("traffic stands still after %d connections", tr.rounds.Load())
		}
		time.Sleep(time.Millisecond)
	}
}

// startTraffic has a long TCP connection, one UDP flow and ever new ones of both,
// none of which may lose a packet if strict; and b tries to reach a.
func startTraffic(t *testing.T, n *node, to netip.AddrPort, strict bool) *traffic {
	t.Helper()
	tr := &traffic{stop: make(chan struct{})}
	long, err := dial(n.pods[0], to)
	if err != nil {
		t.Fatal(err, n.counters())
	}
	t.Cleanup(func() { long.Close() })
	tr.loop("long connection", func(int) error { return exchange(long, 1<<16) })
	var c net.Conn
	do(t, n.pods[0], func() (err error) {
		c, err = net.Dial("udp", to.String())
		return err
	})
	t.Cleanup(func() { c.Close() })
	tr.loop("datagrams", func(i int) error { return testns.RoundTrip(c, fmt.Sprint("datagram ", i), patience) })
	if strict { // what is lost of TCP is sent again, but not these
		tr.loop("new datagrams", func(int) error { return n.pods[0].ExchangeUDP(to, patience) })
	}
	tr.loop("new connections", func(int) error {
		defer tr.rounds.Add(1)
		return n.pods[0].ExchangeTCP(to, patience)
	})
	denied := netip.AddrPortFrom(n.a.v4, to.Port())
	tr.loop("what is denied", func(int) error {
		if err := n.pods[1].ExchangeUDP(denied, 5*time.Millisecond); err == nil {
			return errors.New("it passed")
		}
		return nil
	})
	return tr
}

func TestMigrate(t *testing.T) {
	ways := []struct {
		name     string
		old, new bool // by clsact
	}{{"clsact to clsact", true, true}}
	if kernelHasTCX(t) {
		ways = append(ways, []struct {
			name     string
			old, new bool
		}{{"TCX to TCX", false, false}, {"clsact to TCX", true, false}}...)
	}
	const port = 7777
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			n := oldNode(t, port, way.old, way.new)
			to := netip.AddrPortFrom(n.b.v4, port)
			for _, serve := range []func(netip.AddrPort) (*testns.Echo, error){n.pods[1].EchoTCP, n.pods[1].EchoUDP} {
				server, err := serve(to)
				if err != nil {
					t.Fatal(err)
				}
				defer server.Close()
			}
			// What would answer if the denied datagrams arrived.
			open, err := n.pods[0].EchoUDP(netip.AddrPortFrom(n.a.v4, port))
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()

			tr := startTraffic(t, n, to, !way.new)
			tr.until(t, 5)
			next, err := Load(Options{PinDir: filepath.Dir(n.o.dir), Clsact: way.new})
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()
			indexes := []int{n.a.index(), n.b.index()}
			var attached, taken []int
			do(t, n.ns, func() error {
				// They are listed, and stay with the old programs until Migrate.
				if err := errors.Join(next.Attach(indexes[0]), next.Attach(indexes[1])); err != nil {
					return err
				}
				attached, err = next.Attached()
				if err == nil && !next.Migrating() {
					err = errors.New("nothing to migrate")
				}
				return err
			})
			if !slices.Equal(attached, indexes) || n.flows() != 0 {
				t.Errorf("attached %v with %d flows, want %v and none", attached, n.flows(), indexes)
			}
			do(t, n.ns, func() error {
				taken, err = next.Migrate(context.Background())
				return err
			})
			tr.until(t, 5)
			tr.end(t)
			slices.Sort(taken)
			if !slices.Equal(taken, indexes) || next.Migrating() {
				t.Errorf("taken over: %v, want %v; migrating: %v", taken, indexes, next.Migrating())
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(n.o.dir), "v0")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("old pins are left: %v", err)
			}
			for _, ifindex := range indexes {
				for h, prog := range map[hook]*ebpf.Program{hookFrom: next.FromContainer, hookTo: next.ToContainer} {
					if got := programs(t, n.world, ifindex, h); got != 1 {
						t.Errorf("interface %d %s: %d programs, want 1", ifindex, h.suffix, got)
					}
					if _, got := attachedProgram(t, n.world, ifindex, h); got != programID(t, prog) {
						t.Errorf("interface %d %s: program %d, want %d", ifindex, h.suffix, got, programID(t, prog))
					}
				}
			}
			if c, err := next.GetConfig(); err != nil || c.Handover {
				t.Errorf("config %+v (%v): handover is still on", c, err)
			}
		})
	}
}

// TestMigrateFlows: each flow arrives with all that it was, to be judged anew.
func TestMigrateFlows(t *testing.T) {
	n := oldNode(t, 7777, true, true)
	dir := filepath.Dir(n.o.dir)
	old, err := ebpf.LoadPinnedMap(filepath.Join(dir, "v0", "maps", "ct4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	want := make(map[abi.CT4Key]abi.CTValue)
	for i := range 100 {
		var k abi.CT4Key
		binary.LittleEndian.PutUint32((*[unsafe.Sizeof(k)]byte)(unsafe.Pointer(&k))[:], uint32(i))
		v := ctValue0{Row: uint64(i), Flags: 4, ExpiresSeconds: 1 << 30, SrcIdentity: 9}
		if err := old.Put(k, v); err != nil {
			t.Fatal(err)
		}
		v.Generation = unjudged
		want[k] = v.convert()
	}
	next, err := Load(Options{PinDir: dir, Clsact: true})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	do(t, n.ns, func() error {
		_, err := next.Migrate(context.Background())
		return err
	})
	for k, w := range want {
		var got abi.CTValue
		if err := next.CT4.Lookup(k, &got); err != nil || got != w {
			t.Errorf("flow %v: %+v (%v), want %+v", k, got, err, w)
		}
	}
}

// TestHandoverWall: an interface that only ours are on drops while they hand on.
func TestHandoverWall(t *testing.T) {
	if !kernelHasTCX(t) {
		return // nothing is handed on by filters
	}
	n := newNode(t)
	n.enforce(&n.b, abi.Ingress)
	n.o.BumpAllGenerations()
	server, err := n.pods[1].EchoUDP(netip.AddrPortFrom(n.b.v4, 7777))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	reach := func(limit time.Duration) error { return n.ns.ExchangeUDP(server.Addr(), limit) }
	do(t, n.ns, func() error {
		h := handover{o: n.o, front: true}
		if h.config, err = n.o.readConfig(); err != nil {
			return err
		}
		if err := h.judge(); err != nil {
			return err
		}
		if err := reach(patience); err != nil {
			t.Errorf("without a wall: %v, so this test shows nothing", err)
		}
		if err := h.wallOff(nil); err != nil {
			return err
		}
		if err := reach(silence); err == nil {
			t.Error("what is denied passed")
		}
		return h.end()
	})
	if err := reach(silence); err == nil {
		t.Error("what is denied passed after the handover")
	}
	for h, prog := range map[hook]*ebpf.Program{hookFrom: n.o.FromContainer, hookTo: n.o.ToContainer} {
		if got := programs(t, n.world, n.b.index(), h); got != 1 {
			t.Errorf("%s: %d programs, want %s alone", h.suffix, got, prog)
		}
	}
}

// TestUnknownLayout: what cannot be taken over from is left alone.
func TestUnknownLayout(t *testing.T) {
	o := load(t, smallSizes())
	dir := filepath.Dir(o.dir)
	if err := os.MkdirAll(filepath.Join(dir, "v4711", "maps"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(Options{PinDir: dir}); !errors.Is(err, ErrUnknownLayout) {
		t.Errorf("error %v, want %v", err, ErrUnknownLayout)
	}
}
