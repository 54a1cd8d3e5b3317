package dataplane

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
)

func TestTraffic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start([]rule{
		{pod: "b", direction: abi.Ingress, peer: "a"},
		{pod: "b", direction: abi.Ingress, peer: "host"},
		{pod: "c", direction: abi.Ingress, peer: "a", protocol: 6, port: 80},
		{pod: "c", direction: abi.Egress, peer: "host"},
	}, "a", "b", "c")
	for _, p := range w.pods {
		w.serve(p.ns, 80, p.ips()...)
	}
	w.serve(w.node, 80, gateways.gateways()...)
	for _, c := range []struct {
		from, to string
		want     reached
	}{
		{"a", "b", allBack},
		{"b", "a", allBack},            // a has no policy
		{"a", "c", reached{TCP: true}}, // its ingress admits TCP 80 only
		{"b", "c", noneBack},           // its ingress does not admit b
		{"c", "a", noneBack},           // its egress does not admit a
		{"c", "b", noneBack},           // neither side
		{"node", "a", allBack},         // no policy
		{"node", "b", allBack},         // admitted
		{"node", "c", noneBack},        // not admitted
		{"a", "node", allBack},
		{"c", "node", allBack},
	} {
		from, to := w.node, gateways.gateways()
		if p, ok := w.pods[c.from]; ok {
			from = p.ns
		}
		if p, ok := w.pods[c.to]; ok {
			to = p.ips()
		}
		for _, a := range to {
			t.Run(fmt.Sprintf("%s to %s %s", c.from, c.to, a), func(t *testing.T) {
				t.Parallel()
				if got := reach(from, a, 80, c.want); got != c.want {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
			})
		}
	}
}

func TestRevokedAtTheNextPacket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start([]rule{{pod: "b", direction: abi.Ingress, peer: "a"}}, "a", "b")
	w.serve(w.pods["b"].ns, 80, w.pods["b"].ips()...)
	for _, ip := range w.pods["b"].ips() {
		for name, dial := range dialers(w.pods["a"].ns) {
			w.apply(rule{pod: "b", direction: abi.Ingress, peer: "a"})
			c, err := dial(context.Background(), netip.AddrPortFrom(ip, 80))
			w.check(err)
			w.check(testns.RoundTrip(c, "before", patience))
			w.apply(rule{pod: "b", direction: abi.Ingress})
			if err := testns.RoundTrip(c, "after", silence); err == nil {
				t.Errorf("%s to %s goes on after its policy is gone", name, ip)
			}
			w.check(c.Close())
		}
	}
}

var undisturbed = flag.Int("undisturbed.changes", 500, "changes that TestAllowedStaysUndisturbed makes")

func TestAllowedStaysUndisturbed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	changes := [][]rule{
		{{pod: "b", direction: abi.Ingress, peer: "a"}, {pod: "b", direction: abi.Ingress, peer: "c"}},
		{{pod: "b", direction: abi.Ingress, peer: "a"}},
	}
	w.start(changes[0], "a", "b", "c")
	w.serve(w.pods["b"].ns, 80, w.pods["b"].ips()...)
	done := make(chan struct{})
	var trips atomic.Int64
	g, ctx := errgroup.WithContext(context.Background())
	for _, ip := range w.pods["b"].ips() {
		for name, dial := range dialers(w.pods["a"].ns) {
			c, err := dial(context.Background(), netip.AddrPortFrom(ip, 80))
			w.check(err)
			g.Go(func() error {
				if err := roundTrips(c, &trips, done); err != nil {
					return fmt.Errorf("%s to %s: %w", name, ip, err)
				}
				return nil
			})
		}
	}
	// At least so many, and on until the traffic has kept up.
	for i := 0; i < *undisturbed || trips.Load() < int64(*undisturbed) && ctx.Err() == nil; i++ {
		w.apply(changes[(i+1)%2]...)
	}
	close(done)
	w.check(g.Wait())
	if n := w.drops(); n != 0 {
		t.Errorf("%d packets dropped in %d round trips", n, trips.Load())
	}
}

// roundTrips makes round trips and counts them until done is closed, then closes
// the connection.
func roundTrips(c net.Conn, count *atomic.Int64, done <-chan struct{}) error {
	for {
		select {
		case <-done:
			return c.Close()
		default:
		}
		if err := testns.RoundTrip(c, "still here", patience); err != nil {
			return errors.Join(err, c.Close())
		}
		count.Add(1)
	}
}

func dialers(ns *testns.NS) map[string]func(context.Context, netip.AddrPort) (net.Conn, error) {
	return map[string]func(context.Context, netip.AddrPort) (net.Conn, error){"TCP": ns.DialTCP, "UDP": ns.DialUDP}
}

func TestRestartUnderTrafficLosesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	rules := []rule{{pod: "b", direction: abi.Ingress, peer: "a"}}
	w.start(rules, "a", "b")
	w.serve(w.pods["b"].ns, 80, w.pods["b"].ips()...)
	done := make(chan struct{})
	var trips [2]atomic.Int64
	g, ctx := errgroup.WithContext(context.Background())
	for i, ip := range w.pods["b"].ips() {
		// UDP repeats nothing: a lost packet is a failed round trip.
		c, err := w.pods["a"].ns.DialUDP(context.Background(), netip.AddrPortFrom(ip, 80))
		w.check(err)
		g.Go(func() error { return roundTrips(c, &trips[i], done) })
	}
	for range 5 {
		was := [2]int64{trips[0].Load(), trips[1].Load()}
		w.check(w.Close())
		for i := range trips { // traffic while nobody is there
			for trips[i].Load() < was[i]+100 && ctx.Err() == nil {
				runtime.Gosched()
			}
		}
		w.open()
		if stats := w.apply(rules...); stats.Total() != 0 {
			t.Errorf("a restart wrote %+v, want nothing", stats)
		}
	}
	close(done)
	w.check(g.Wait())
	if n := w.drops(); n != 0 {
		t.Errorf("%d packets dropped", n)
	}
	want := w.tables(rules...)
	got, err := w.KernelTables(context.Background())
	w.check(err)
	if got.Digest() != want.Digest() {
		t.Errorf("digest %x, want %x", got.Digest(), want.Digest())
	}
	if d, err := w.Verify(context.Background(), want); err != nil || len(d) != 0 {
		t.Errorf("Verify: %v, %v", d, err)
	}
}
