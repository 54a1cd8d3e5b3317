package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
)

// picture is all that a namespace and the pins hold of our making.
func (w *world) picture() string {
	w.t.Helper()
	var out strings.Builder
	for _, args := range [][]string{
		{"-o", "link"}, {"-o", "addr"}, {"-4", "route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"neigh"}, {"rule"},
	} {
		s, err := w.node.Output(context.Background(), "ip", args...)
		w.check(err)
		out.WriteString(s)
	}
	pins, err := filepath.Glob(filepath.Join(w.config.PinDir, "v*", "links", "*"))
	w.check(err)
	out.WriteString(strings.Join(pins, "\n"))
	return out.String()
}

func TestRemoveLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx := context.Background()
	w.check(w.TeardownNode(gateways))
	bare := w.picture()
	w.check(w.SetupNode(ctx, gateways))
	empty := w.picture()
	w.start(everything("a", "b"), "a", "b")
	a, b := w.pods["a"], w.pods["b"]
	w.serve(b.ns, 80, b.ips()...)
	if got := reach(a.ns, b.spec.IPv6, 80, allBack); got != allBack {
		t.Fatalf("no traffic before the removal: %+v", got)
	}

	w.check(b.ns.Do(func() error { return nil }))
	for range 2 {
		for _, p := range []*pod{a, b} {
			w.check(w.RemoveInterface(ctx, p.spec.HostName))
		}
	}
	if diff := cmp.Diff(empty, w.picture()); diff != "" {
		t.Errorf("after removal (-before +after):\n%s", diff)
	}
	for _, p := range []*pod{a, b} {
		if s, err := p.ns.Output(ctx, "ip", "-o", "link", "show", "type", "veth"); err != nil || s != "" {
			t.Errorf("in %s: %q, %v, want no interface", p.name, s, err)
		}
	}
	w.pods = nil
	clear(w.bind)
	w.apply()
	if eps, err := w.Maps().Endpoints.Rows(ctx); err != nil || len(eps) != 0 {
		t.Errorf("endpoints map: %v, %v, want empty", eps, err)
	}
	for range 2 {
		w.check(w.TeardownNode(gateways))
	}
	if diff := cmp.Diff(bare, w.picture()); diff != "" {
		t.Errorf("after TeardownNode (-before +after):\n%s", diff)
	}
	w.check(w.Destroy())
	if left, err := os.ReadDir(w.config.PinDir); err == nil && len(left) > 0 {
		t.Errorf("Destroy left %v", left)
	}
}

func TestRemoveAfterTheNamespace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	empty := w.picture()
	w.start(everything("a"), "a")
	a := w.pods["a"]
	w.check(a.ns.Close())
	w.check(w.RemoveInterface(context.Background(), a.spec.HostName))
	if diff := cmp.Diff(empty, w.picture()); diff != "" {
		t.Errorf("after removal (-before +after):\n%s", diff)
	}
	_, err := w.EnsureInterface(context.Background(), a.spec)
	if !errors.Is(err, ErrNoNamespace) || !strings.Contains(err.Error(), a.spec.NetnsPath) {
		t.Errorf("EnsureInterface: %v, want ErrNoNamespace and the path", err)
	}
	if diff := cmp.Diff(empty, w.picture()); diff != "" {
		t.Errorf("after a refused EnsureInterface (-before +after):\n%s", diff)
	}
}

func TestNothingLeavesBeforeActivate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.add("a")
	a := w.pods["a"]
	state := func() string {
		s, err := a.ns.Output(context.Background(), "ip", "-o", "link", "show", "eth0")
		w.check(err)
		return s
	}
	if s := state(); strings.Contains(s, ",UP") || strings.Contains(s, "<UP") {
		t.Errorf("container side is up: %s", s)
	}
	var attached []int
	w.check(w.Dataplane.node.do(func() (err error) {
		attached, err = w.objs.Attached()
		return err
	}))
	if len(attached) != 1 || attached[0] != w.bind[a.id] {
		t.Errorf("programs on %v, want %d", attached, w.bind[a.id])
	}
	counters, _, err := w.Counters()
	w.check(err)
	for _, c := range counters {
		if c.Direction == abi.Egress {
			t.Errorf("the container has sent: %+v", c)
		}
	}
	w.apply(everything("a")...)
	for range 2 {
		w.check(w.ActivateInterface(context.Background(), a.spec))
	}
	if s := state(); !strings.Contains(s, ",UP") {
		t.Errorf("container side is down: %s", s)
	}
	w.serve(w.node, 80, gateways.gateways()...)
	for _, g := range gateways.gateways() {
		if got := reach(a.ns, g, 80, allBack); got != allBack {
			t.Errorf("to %s: %+v", g, got)
		}
	}
}

// A crash can come after any step; the next EnsureInterface completes or redoes
// what is there.
func TestHalfMadeInterfaces(t *testing.T) {
	t.Parallel()
	for name, ruin := range map[string]func(w *world, p *pod){
		"only the pair": func(w *world, p *pod) {
			pod := w.openNS(p.ns)
			defer pod.close()
			_, err := createPair(w.Dataplane.node, pod, ownerOf(w.Dataplane.config), p.spec)
			w.check(err)
		},
		"container side elsewhere": func(w *world, p *pod) {
			pod := w.openNS(newNS(w.t, "elsewhere"))
			defer pod.close()
			_, err := createPair(w.Dataplane.node, pod, ownerOf(w.Dataplane.config), p.spec)
			w.check(err)
		},
		"no programs": func(w *world, p *pod) {
			ifindex, err := w.EnsureInterface(context.Background(), p.spec)
			w.check(err)
			w.check(w.Dataplane.node.do(func() error { return w.objs.Detach(ifindex) }))
		},
		"no routes, other MAC and address": func(w *world, p *pod) {
			other := p.spec
			other.MAC[4]++
			other.IPv4, other.IPv6 = other.IPv4.Next(), other.IPv6.Next()
			_, err := w.EnsureInterface(context.Background(), other)
			w.check(err)
			_, err = w.node.Output(context.Background(), "ip", "route", "flush", "dev", p.spec.HostName)
			w.check(err)
		},
		"container side gone": func(w *world, p *pod) {
			_, err := w.EnsureInterface(context.Background(), p.spec)
			w.check(err)
			_, err = p.ns.Output(context.Background(), "ip", "link", "del", "eth0")
			w.check(err)
		},
		"complete": func(w *world, p *pod) {
			_, err := w.EnsureInterface(context.Background(), p.spec)
			w.check(err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			p := w.spec("a")
			ruin(w, p)
			ifindex, err := w.EnsureInterface(context.Background(), p.spec)
			w.check(err)
			again, err := w.EnsureInterface(context.Background(), p.spec)
			w.check(err)
			if again != ifindex {
				t.Errorf("a second EnsureInterface gave interface %d, the first %d", again, ifindex)
			}
			w.bind[p.id] = ifindex
			w.apply(everything("a")...)
			w.check(w.ActivateInterface(context.Background(), p.spec))
			w.serve(p.ns, 80, p.ips()...)
			for _, a := range p.ips() {
				if got := reach(w.node, a, 80, allBack); got != allBack {
					t.Errorf("host to %s: %+v", a, got)
				}
			}
			if n, want := len(w.hostRoutes(p)), 2; n != want {
				t.Errorf("%d host routes of the pod, want %d", n, want)
			}
		})
	}
}

func (w *world) openNS(n *testns.NS) *namespace {
	w.t.Helper()
	ns, err := openNamespace(n.Path())
	w.check(err)
	return ns
}

// hostRoutes are the routes through the host side other than the kernel's own.
func (w *world) hostRoutes(p *pod) []netlink.Route {
	w.t.Helper()
	node := w.openNS(w.node)
	defer node.close()
	l, err := node.link(p.spec.HostName)
	w.check(err)
	routes, err := dump(context.Background(), func() ([]netlink.Route, error) { return node.handle.RouteList(l, netlink.FAMILY_ALL) })
	w.check(err)
	return routes
}

// What a crash leaves before programs are attached is found by who made it.
func TestListInterfacesHasWhatHasNoPrograms(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.add("whole")
	half, other := w.spec("half"), w.spec("other")
	mine := ownerOf(w.Dataplane.config)
	for p, by := range map[*pod]owner{half: mine, other: {gatewayMAC: mine.gatewayMAC, group: mine.group + 1}} {
		ns := w.openNS(p.ns)
		defer ns.close()
		_, err := createPair(w.Dataplane.node, ns, by, p.spec)
		w.check(err)
	}
	want := []string{w.pods["whole"].spec.HostName, half.spec.HostName}
	slices.Sort(want)
	got, err := w.ListInterfaces(context.Background())
	w.check(err)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("all but another agent's (-want +got):\n%s", d)
	}
	w.check(w.RemoveInterface(context.Background(), half.spec.HostName))
	_, err = half.ns.Output(context.Background(), "ip", "link", "show", "eth0")
	if err == nil {
		t.Error("the container's side is still there")
	}
}

func TestForeignInterfacesAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx := context.Background()
	a, b := w.spec("a"), w.spec("b")
	for _, args := range [][]string{
		{"link", "add", "eth0", "type", "veth", "peer", "name", "other"},
	} {
		_, err := a.ns.Output(ctx, "ip", args...)
		w.check(err)
	}
	_, err := w.node.Output(ctx, "ip", "link", "add", b.spec.HostName, "type", "veth", "peer", "name", "other")
	w.check(err)
	before := w.picture()

	_, err = w.EnsureInterface(ctx, a.spec)
	if !errors.Is(err, ErrForeignInterface) || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("EnsureInterface with a foreign eth0: %v", err)
	}
	_, err = w.EnsureInterface(ctx, b.spec)
	if !errors.Is(err, ErrForeignInterface) || !strings.Contains(err.Error(), b.spec.HostName) {
		t.Errorf("EnsureInterface with a foreign host side: %v", err)
	}
	if err := w.RemoveInterface(ctx, b.spec.HostName); !errors.Is(err, ErrForeignInterface) {
		t.Errorf("RemoveInterface: %v, want ErrForeignInterface", err)
	}
	if diff := cmp.Diff(before, w.picture()); diff != "" {
		t.Errorf("after the refusals (-before +after):\n%s", diff)
	}
}

func TestOneFamily(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.spec("a")
	v4 := p.spec.IPv4
	p.spec.IPv6 = netip.Addr{}
	ifindex, err := w.EnsureInterface(context.Background(), p.spec)
	w.check(err)
	w.check(w.ActivateInterface(context.Background(), p.spec))
	s, err := p.ns.Output(context.Background(), "ip", "-o", "addr", "show", "dev", "eth0")
	w.check(err)
	if strings.Contains(s, "inet6") || !strings.Contains(s, v4.String()+"/32") {
		t.Errorf("addresses of interface %d: %s", ifindex, s)
	}
}

func TestBadInterfaceSpecs(t *testing.T) {
	good := InterfaceSpec{HostName: "vv0", MAC: [6]byte{2}, IPv4: netip.MustParseAddr("10.0.0.2"), Gateway4: netip.MustParseAddr("10.0.0.1")}
	for want, spoil := range map[string]func(*InterfaceSpec){
		"HostName":      func(s *InterfaceSpec) { s.HostName = "a-name-that-is-too-long" },
		"ContainerName": func(s *InterfaceSpec) { s.ContainerName = "a-name-that-is-too-long" },
		"unicast":       func(s *InterfaceSpec) { s.MAC = [6]byte{1} },
		"no gateway":    func(s *InterfaceSpec) { s.Gateway4 = netip.Addr{} },
		"wrong family":  func(s *InterfaceSpec) { s.IPv6, s.Gateway6 = s.IPv4, s.Gateway4 },
	} {
		s := good
		spoil(&s)
		if _, err := s.withDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
	if s, err := good.withDefaults(); err != nil || s.ContainerName != "eth0" {
		t.Errorf("a good spec gave %+v, %v", s, err)
	}
}

func TestNetnsID(t *testing.T) {
	a, b := newNS(t, "a"), newNS(t, "b")
	idA, errA := NetnsID(a.Path())
	idB, errB := NetnsID(b.Path())
	if errA != nil || errB != nil || idA == idB || !strings.Contains(idA, ":") {
		t.Errorf("ids %q, %v and %q, %v, want two different ones", idA, errA, idB, errB)
	}
	if _, err := NetnsID(a.Path() + "x"); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("id of nothing: %v, want ErrNoNamespace", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openNamespace(file); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("open of a file: %v, want ErrNoNamespace", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	empty := w.picture()
	var pods []*pod
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		pods = append(pods, w.spec(name))
	}
	for _, step := range []func(*pod) error{
		func(p *pod) error {
			_, err := w.EnsureInterface(context.Background(), p.spec)
			return err
		},
		func(p *pod) error { return w.ActivateInterface(context.Background(), p.spec) },
		func(p *pod) error { return w.RemoveInterface(context.Background(), p.spec.HostName) },
	} {
		var g errgroup.Group
		for _, p := range pods {
			g.Go(func() error { return step(p) })
		}
		w.check(g.Wait())
	}
	if diff := cmp.Diff(empty, w.picture()); diff != "" {
		t.Errorf("after removal (-before +after):\n%s", diff)
	}
}
