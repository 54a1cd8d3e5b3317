package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/journal"
)

// around tells whether got has these classes, each to expire so many seconds after some
// moment of the test.
func (n *node) around(got map[uint64]int, want map[uint64]int) {
	n.t.Helper()
	passed := int(monotonicSeconds()-n.began) + 1
	for c, s := range want {
		if g, ok := got[c]; !ok || g < s-passed || g > s+1 {
			n.t.Errorf("class %x expires in %d s (%t), want %d", c, g, ok, s)
		}
	}
	if len(got) != len(want) {
		n.t.Errorf("classes %v, want %v", got, want)
	}
}

func TestLearn(t *testing.T) {
	n := newNode(t, nil)
	if !n.learn(observation(podID, "api.domain.com.", 60, far)) {
		t.Fatal("known before it was learned")
	}
	n.around(n.row(podID, far), map[uint64]int{classA: 60, classB: 60})
	if n.row(otherID, far) != nil {
		t.Error("what one endpoint learned opens the address to another")
	}
	want := []string{"observed api.domain.com. 192.0.2.1"}
	if got := n.facts(0); !slices.Equal(got, want) {
		t.Errorf("facts %q", got)
	}
	// The same again adds nothing, a longer TTL moves the kernel's expiry at once.
	if n.learn(observation(podID, "api.domain.com.", 60, far)) || n.learn(observation(podID, "api.domain.com.", 600, far)) {
		t.Error("a repeat had to wait")
	}
	n.around(n.row(podID, far), map[uint64]int{classA: 600, classB: 600})
	if got := n.facts(0); !slices.Equal(got, want) {
		t.Errorf("facts %q", got)
	}
	n.keeper.batch(true) // it is written down later, once
	n.keeper.batch(true)
	if got := n.facts(0); !slices.Equal(got, append(want, want[0])) {
		t.Errorf("facts after a refresh %q", got)
	}
	// Another name with the same address: each class keeps its own expiry.
	n.learn(observation(podID, "www.domain.com.", 3000, far))
	n.around(n.row(podID, far), map[uint64]int{classA: 3000, classB: 600})
	// A name of no class opens nothing and is known all the same.
	n.learn(observation(podID, "www.example.org.", 60, netip.MustParseAddr("192.0.2.9")))
	if r := n.row(podID, netip.MustParseAddr("192.0.2.9")); r != nil {
		t.Errorf("opened %v", r)
	}
	if got := len(n.Names(Of{})); got != 3 {
		t.Errorf("%d names", got)
	}
}

func TestLifetime(t *testing.T) {
	n := newNode(t, func(c *Config) { c.MinTTL = 30 * time.Second })
	n.learn(observation(podID, "www.domain.com.", 0, far))
	n.around(n.row(podID, far), map[uint64]int{classA: 30})
	m := newNode(t, nil)
	before := monotonicSeconds()
	m.learn(observation(podID, "www.domain.com.", 0, far))
	if got := m.row(podID, far)[classA]; got+int(monotonicSeconds()-before) < 1 || got > 3 {
		t.Errorf("a TTL of 0 is open for %d s", got)
	}
}

// TestRestart: a new process knows what the one before knew, without an agent.
func TestRestart(t *testing.T) {
	n := newNode(t, nil)
	gone := netip.MustParseAddr("192.0.2.7")
	n.learn(observation(podID, "api.domain.com.", 600, far, gone))
	n.learn(observation(podID, "api.domain.com.", 6000, far)) // moves the kernel's row only
	n.expire("api.domain.com.", gone, time.Second)
	n.put(n.keeper.collect(context.Background()))
	n.restart()
	n.around(n.row(podID, far), map[uint64]int{classA: 6000, classB: 6000})
	if n.row(podID, gone) != nil {
		t.Error("a collected address came back")
	}
	if n.learn(observation(podID, "api.domain.com.", 60, far)) {
		t.Error("a name was forgotten")
	}
	// After a reboot the map is empty, and the journal has what was written down.
	n.put(n.maps.FQDN.Delete(&abi.FQDNKey{Endpoint: podID, Addr: abi.AddrFrom(far)}))
	n.restart()
	n.around(n.row(podID, far), map[uint64]int{classA: 600, classB: 600})
	// What somebody else put there goes.
	stray := abi.FQDNKey{Endpoint: 99, Addr: abi.AddrFrom(far)}
	n.put(n.maps.FQDN.Put(&stray, &abi.FQDNValue{Class: [8]uint64{classA}, ExpiresSeconds: [8]uint32{1 << 30}}))
	n.put(n.maps.FQDN.Delete(&abi.FQDNKey{Endpoint: podID, Addr: abi.AddrFrom(far)}))
	// An edited row of a name, for a class that no rule gives it.
	edited := abi.FQDNKey{Endpoint: podID, Addr: abi.AddrFrom(gone)}
	n.learn(observation(podID, "api.domain.com.", 600, gone))
	n.put(n.maps.FQDN.Put(&edited, &abi.FQDNValue{Class: [8]uint64{classA + 1}, ExpiresSeconds: [8]uint32{1 << 30}}))
	want := map[string]bool{"99 extra": true, "edited": true, "missing": true}
	for _, compare := range []func(context.Context) (int, []dnslink.Difference, error){n.Verify, n.Repair} {
		before := n.maps.GenerationSum(abi.AddrFrom(far), abi.AddrFrom(far))
		differed, told, err := compare(context.Background())
		got := map[string]bool{}
		for _, d := range told {
			switch {
			case d.Endpoint == 99 && d.Addr == far && d.Have != nil && d.Want == nil:
				got["99 extra"] = true
			case d.Endpoint == podID && d.Addr == gone && d.Have != nil && d.Have.Class[0] == classA+1 && d.Want != nil:
				got["edited"] = true
			case d.Endpoint == podID && d.Addr == far && d.Have == nil && d.Want != nil:
				got["missing"] = true
			}
		}
		if err != nil || differed != 3 || !maps.Equal(got, want) {
			t.Errorf("%d rows differ, %v: %v", differed, got, err)
		}
		// Flows that such a row admitted are judged again once it is gone.
		repaired := n.row(podID, far) != nil
		if raised := n.maps.GenerationSum(abi.AddrFrom(far), abi.AddrFrom(far)) != before; raised != repaired {
			t.Errorf("generations raised %v, rows repaired %v", raised, repaired)
		}
	}
	if differed, _, err := n.Verify(context.Background()); err != nil || differed != 0 {
		t.Errorf("after the repair %d rows differ: %v", differed, err)
	}
	n.around(n.row(podID, far), map[uint64]int{classA: 600, classB: 600})
	if n.row(99, far) != nil {
		t.Error("a stray row stays")
	}
}

// TestRulesChange: rows follow the rules, new ones before the agent uses them.
func TestRulesChange(t *testing.T) {
	n := newNode(t, nil)
	n.learn(observation(podID, "www.domain.com.", 600, far))
	before := n.maps.GenerationSum(abi.AddrFrom(far), abi.AddrFrom(far))
	r := nodeRules()
	r.Revision = 6
	r.Endpoints[0].Tables = []uint64{podTable, newTable}
	n.rules(r)
	n.put(n.Load(context.Background()))
	n.around(n.row(podID, far), map[uint64]int{classA: 600, classB: 600})
	if n.maps.GenerationSum(abi.AddrFrom(far), abi.AddrFrom(far)) == before {
		t.Error("flows to an address that got rows are not judged again")
	}
	r.Endpoints[0].Tables = []uint64{newTable}
	n.rules(r)
	n.put(n.Load(context.Background()))
	n.around(n.row(podID, far), map[uint64]int{classB: 600})
	r.Endpoints = r.Endpoints[1:]
	n.rules(r)
	n.put(n.Load(context.Background()))
	if n.row(podID, far) != nil {
		t.Error("an endpoint without rules has rows")
	}
	if s, _ := n.Status(context.Background()); s.Rules != 6 || s.Last != 1 || s.Err != "" || s.Node != "n1" {
		t.Errorf("status %+v", s)
	}
	r.Node = "n2"
	n.rules(r)
	if err := n.Load(context.Background()); !errors.Is(err, dnslink.ErrOtherNode) {
		t.Errorf("rules of another node: %v", err)
	}
}

func TestTooManyClasses(t *testing.T) {
	n := newNode(t, nil)
	r := nodeRules()
	r.Classes = nil
	for i := range abi.FQDNPairs + 3 {
		r.Classes = append(r.Classes, dnslink.Class{Table: podTable, ID: classA + uint64(i), Set: 0})
	}
	n.rules(r)
	n.put(n.Load(context.Background()))
	n.learn(observation(podID, "www.domain.com.", 60, far))
	if got := n.row(podID, far); len(got) != abi.FQDNPairs {
		t.Errorf("%d classes in a row", len(got))
	}
}

// TestCollect: what has expired goes unless a connection lives, and the journal says so.
func TestCollect(t *testing.T) {
	n := newNode(t, nil)
	used, fresh := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	n.learn(observation(podID, "www.domain.com.", 60, far, used, fresh))
	n.flow(used)
	n.expire("www.domain.com.", far, time.Second)
	n.expire("www.domain.com.", used, time.Second)
	n.put(n.keeper.collect(context.Background()))
	if n.row(podID, far) != nil {
		t.Error("an expired address stays")
	}
	n.around(n.row(podID, fresh), map[uint64]int{classA: 60})
	if got := n.row(podID, used); len(got) != 1 || got[classA] > 0 {
		t.Errorf("the row of a live connection: %v", got)
	}
	n.noFlow(used)
	n.put(n.keeper.collect(context.Background()))
	if n.row(podID, used) != nil {
		t.Error("the address of an ended connection stays")
	}
	want := []string{"collected www.domain.com. 192.0.2.1", "collected www.domain.com. 192.0.2.2"}
	if got := n.facts(1); !slices.Equal(got, want) {
		t.Errorf("facts %q", got)
	}
	// Learned again it is new.
	if !n.learn(observation(podID, "www.domain.com.", 60, far)) {
		t.Error("a collected address is known")
	}
	n.expire("www.domain.com.", fresh, time.Second)
	n.expire("www.domain.com.", far, time.Second)
	n.put(n.keeper.collect(context.Background()))
	if len(n.Names(Of{})) != 0 || len(n.keeper.facts.backing) != 0 {
		t.Errorf("left: %v, %v", n.Names(Of{}), n.keeper.facts.backing)
	}
}

// TestRenewedWhileCollected: an answer that renews an address while it is being
// collected wins, in the kernel and in the journal.
func TestRenewedWhileCollected(t *testing.T) {
	n := newNode(t, nil)
	n.learn(observation(podID, "www.domain.com.", 60, far))
	n.expire("www.domain.com.", far, time.Second)
	gone := []*eventpb.DnsCollected{{
		Node: "n1", Ref: &eventpb.EndpointRef{Namespace: "default", Name: "pod"}, Incarnation: 1, Name: "www.domain.com.", Addresses: [][]byte{far.AsSlice()},
	}}
	n.learn(observation(podID, "www.domain.com.", 60, far))
	n.put(n.keeper.remove(gone))
	n.around(n.row(podID, far), map[uint64]int{classA: 60})
	if got := n.facts(1); len(got) != 0 {
		t.Errorf("facts %q", got)
	}
}

// TestSurplus: of the addresses above the bound those go that expire first and are
// not in use.
func TestSurplus(t *testing.T) {
	n := newNode(t, func(c *Config) { c.MaxAddresses = 3 })
	var addrs []netip.Addr
	for i := range 6 {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)})
		addrs = append(addrs, a)
		n.learn(observation(podID, "www.domain.com.", uint32(100+i), a))
	}
	n.flow(addrs[0])
	for range 2 { // closed, then collected
		n.put(n.keeper.collect(context.Background()))
	}
	var left []netip.Addr
	for _, a := range addrs {
		if n.row(podID, a) != nil {
			left = append(left, a)
		}
	}
	if want := []netip.Addr{addrs[0], addrs[4], addrs[5]}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	if got := n.row(podID, addrs[0])[classA]; got < 50 {
		t.Errorf("the address in use expires in %d s", got)
	}
}

func TestIdleGrace(t *testing.T) {
	n := newNode(t, func(c *Config) { c.IdleGrace = time.Minute })
	n.learn(observation(podID, "www.domain.com.", 60, far))
	n.flow(far)
	n.expire("www.domain.com.", far, time.Second)
	n.put(n.keeper.collect(context.Background()))
	n.around(n.row(podID, far), map[uint64]int{classA: 60})
	n.noFlow(far)
	n.put(n.keeper.collect(context.Background()))
	n.around(n.row(podID, far), map[uint64]int{classA: 60})
}

// TestSeed: a proxy that has lost its journal is told what the log knows, and keeps it.
func TestSeed(t *testing.T) {
	n := newNode(t, nil)
	seed := dnslink.Seed{Last: 41, Facts: []*eventpb.DnsObserved{{
		Node: "n1", Ref: &eventpb.EndpointRef{Namespace: "default", Name: "pod"}, Incarnation: 1, Name: "www.domain.com.",
		Addresses: []*eventpb.DnsAddress{{Address: far.AsSlice(), ExpiresUnixNs: time.Now().Add(time.Hour).UnixNano()}},
	}}}
	n.put(n.Seed(context.Background(), seed))
	n.around(n.row(podID, far), map[uint64]int{classA: 3600})
	n.restart()
	n.around(n.row(podID, far), map[uint64]int{classA: 3600})
	n.learn(observation(podID, "api.domain.com.", 60, far))
	if s, _ := n.Status(context.Background()); s.Last != 42 {
		t.Errorf("the first fact after 41 has number %d", s.Last)
	}
	// One that has facts keeps them.
	n.put(n.Seed(context.Background(), dnslink.Seed{Last: 7}))
	if s, _ := n.Status(context.Background()); s.Last != 42 || len(n.Names(Of{})) != 2 {
		t.Errorf("a second seed left %+v, %v", s, n.Names(Of{}))
	}
	path := filepath.Join(n.cfg.StateDir, "seed")
	raw, err := os.ReadFile(path)
	n.put(err)
	for i := range raw {
		bad := slices.Clone(raw)
		bad[i] ^= 1
		n.put(os.WriteFile(path, bad, 0o600))
		if s, err := readSeed(path); err == nil && (i < len(seedMagic) || i >= len(seedMagic)+8) {
			t.Fatalf("byte %d flipped: read %v", i, s)
		}
	}
}

// TestNotDurable: what cannot be written down is not given.
func TestNotDurable(t *testing.T) {
	n := newNode(t, nil)
	n.put(n.journal.Close())
	var w waiter
	n.keeper.Learn(observation(podID, "www.domain.com.", 60, far), &w)
	n.keeper.batch(false)
	if w.told != 1 || !errors.Is(w.err, journal.ErrClosed) {
		t.Errorf("told %d times: %v", w.told, w.err)
	}
	if n.row(podID, far) != nil || n.Health() == nil {
		t.Errorf("opened what is not durable, health %v", n.Health())
	}
}

// TestShipped: facts go out once, in order, and what nothing rests on is forgotten.
func TestShipped(t *testing.T) {
	n := newNode(t, nil)
	for i := range 5 {
		n.learn(observation(podID, fmt.Sprintf("n%d.domain.com.", i), 600, far))
	}
	// As many as were asked for are there: it lingers for no others.
	fs, err := n.Facts(context.Background(), 2, 2, time.Hour)
	if err != nil || len(fs) != 2 || fs[0].Seq != 3 {
		t.Fatalf("%v %v", fs, err)
	}
	if e, err := fs[1].Event(); err != nil || e.GetDnsObserved().GetName() != "n3.domain.com." {
		t.Fatalf("%v %v", e, err)
	}
	// One that comes while it lingers is among them, and the end of the time is no error.
	more := make(chan []dnslink.Fact)
	go func() {
		fs, err := n.Facts(context.Background(), 4, 2, time.Hour)
		if err != nil {
			t.Error(err)
		}
		more <- fs
	}()
	n.learn(observation(podID, "n5.domain.com.", 600, far))
	if fs := <-more; len(fs) != 2 || fs[0].Seq != 5 || fs[1].Seq != 6 {
		t.Errorf("lingered for %v", fs)
	}
	if fs, err := n.Facts(context.Background(), 4, 3, time.Millisecond); err != nil || len(fs) != 2 {
		t.Errorf("lingered in vain: %v %v", fs, err)
	}
	n.put(n.Shipped(context.Background(), 6))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if fs, err := n.Facts(ctx, 6, 10, time.Hour); err != nil || len(fs) != 0 {
		t.Errorf("after the end: %v %v", fs, err)
	}
}

// TestBacking: each address rests on the newest record that has it.
func TestBacking(t *testing.T) {
	n := newNode(t, nil)
	n.learn(observation(podID, "a.domain.com.", 60, far))
	n.learn(observation(podID, "a.domain.com.", 600, far, netip.MustParseAddr("192.0.2.2")))
	if got := n.keeper.facts.backing; !maps.Equal(got, map[uint64]int{2: 2}) {
		t.Errorf("%v", got)
	}
}

// TestMoreThanAnEvent: giant answers of one name that are handled at once are more
// than one event can have. None of their addresses is left out of the journal, neither
// when they come nor when they go.
func TestMoreThanAnEvent(t *testing.T) {
	n := newNode(t, func(c *Config) { c.MaxAddresses = 20_000 })
	const answers, each = 2, 3000
	var ws [answers]waiter
	for i := range answers {
		var addrs []netip.Addr
		for j := range each {
			addrs = append(addrs, netip.AddrFrom4([4]byte{198, byte(18 + i), byte(j >> 8), byte(j)}))
		}
		n.keeper.Learn(observation(podID, "www.domain.com.", 60, addrs...), &ws[i])
	}
	n.keeper.batch(false)
	for i := range ws {
		if ws[i].told != 1 || ws[i].err != nil {
			t.Fatalf("answer %d: told %d times: %v", i, ws[i].told, ws[i].err)
		}
	}
	count := func(after uint64) (all int) {
		t.Helper()
		fs, err := n.Facts(t.Context(), after, 10000, 0)
		n.put(err)
		for _, f := range fs {
			e, err := f.Event()
			n.put(err)
			has := len(e.GetDnsObserved().GetAddresses()) + len(e.GetDnsCollected().GetAddresses())
			if all += has; has == 0 || has > eventpb.MaxNameAddresses {
				t.Errorf("fact %d has %d addresses", f.Seq, has)
			}
		}
		return all
	}
	if got := count(0); got != answers*each {
		t.Errorf("%d addresses in the journal, want %d", got, answers*each)
	}
	n.restart()
	if got := n.keeper.facts.addresses; got != answers*each {
		t.Errorf("%d addresses after a restart, want %d", got, answers*each)
	}
	learned := n.journal.Last()
	n.keeper.mu.Lock()
	for _, x := range n.keeper.facts.endpoints[endpointKey{"default", "pod", 1}].names["www.domain.com."].addresses {
		x.extend(monotonic() - int64(time.Second))
	}
	n.keeper.mu.Unlock()
	n.put(n.keeper.collect(context.Background()))
	if got := count(learned); got != answers*each || n.keeper.facts.addresses != 0 {
		t.Errorf("%d addresses collected of %d, %d are left", got, answers*each, n.keeper.facts.addresses)
	}
}
