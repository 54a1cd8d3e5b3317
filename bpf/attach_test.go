package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
)

// do runs fn inside ns.
func do(t *testing.T, ns *testns.NS, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatalf("%+v", err)
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

// eachWay runs a test for each way to attach that the kernel has. The rest of
// this package's tests take the better one.
func eachWay(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	ways := map[string]bool{"clsact": true}
	if kernelHasTCX(t) {
		ways["TCX"] = false
	}
	for name, clsact := range ways {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, smallSizes())
			w.o.clsact = clsact
			test(t, w)
		})
	}
}

// attachedProgram is the program that a hook runs, and the TCX link by which it
// does, 0 if it is a filter.
func attachedProgram(t *testing.T, w *world, ifindex int, h hook) (id link.ID, prog ebpf.ProgramID) {
	t.Helper()
	held, err := openPin(w.o.linkPin(ifindex, h))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if l, ok := held.(*tcxLink); ok {
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		return info.ID, info.Program
	}
	do(t, w.ns, func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		f, err := first(nl, ifindex, h)
		if f != nil {
			prog = ebpf.ProgramID(f.(*netlink.BpfFilter).Id)
		}
		return err
	})
	return 0, prog
}

func programID(t *testing.T, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

func TestAttach(t *testing.T) { eachWay(t, testAttach) }

func testAttach(t *testing.T, w *world) {
	ifindex := int(w.a.ifindex)
	want := func(attached ...int) {
		t.Helper()
		var got []int
		err := w.ns.Do(func() (err error) {
			got, err = w.o.Attached()
			return err
		})
		if err != nil || !slices.Equal(got, attached) {
			t.Errorf("attached %v (%v), want %v", got, err, attached)
		}
	}
	want()
	do(t, w.ns, func() error { return w.o.Attach(ifindex) })
	want(ifindex)
	links := make(map[hook]link.ID)
	for h, prog := range map[hook]*ebpf.Program{hookFrom: w.o.FromContainer, hookTo: w.o.ToContainer} {
		id := programID(t, prog)
		var got ebpf.ProgramID
		if links[h], got = attachedProgram(t, w, ifindex, h); got != id {
			t.Errorf("%s runs program %d, want %d", h.suffix, got, id)
		}
	}

	// Another process: the same maps, other programs, the same links.
	next, err := Load(Options{PinDir: filepath.Dir(w.o.dir), Clsact: w.o.clsact})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if got, err := next.GetConfig(); err != nil || got != abi.DefaultConfig(gateway) {
		t.Errorf("config %+v (%v) is not what was set before", got, err)
	}
	if got := next.CT4.MaxEntries(); got != smallSizes()["ct4"] {
		t.Errorf("ct4 has %d entries, want those of its pin", got)
	}
	do(t, w.ns, func() error { return errors.Join(next.Attach(ifindex), next.Attach(ifindex)) })
	for h, prog := range map[hook]*ebpf.Program{hookFrom: next.FromContainer, hookTo: next.ToContainer} {
		id := programID(t, prog)
		if l, got := attachedProgram(t, w, ifindex, h); got != id || l != links[h] {
			t.Errorf("%s: link %d program %d, want link %d program %d", h.suffix, l, got, links[h], id)
		}
	}

	// Half attached, as a crash leaves it.
	if err := os.Remove(w.o.linkPin(ifindex, hookFrom)); err != nil {
		t.Fatal(err)
	}
	want()
	do(t, w.ns, func() error { return w.o.Attach(ifindex) })
	want(ifindex)

	// An interface that goes, and another that gets its number.
	do(t, w.ns, func() error { return w.o.Attach(int(w.b.ifindex)) })
	want(ifindex, int(w.b.ifindex))
	do(t, w.ns, func() error {
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(l); err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "again", Index: ifindex}, PeerName: "again-pod"})
	})
	want(int(w.b.ifindex))
	do(t, w.ns, func() error { return w.o.Attach(ifindex) })
	want(ifindex, int(w.b.ifindex))
	do(t, w.ns, func() error {
		l, err := netlink.LinkByName("again")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	var pruned []int
	err = w.ns.Do(func() (err error) {
		pruned, err = w.o.PruneLinks()
		return err
	})
	if err != nil || !slices.Equal(pruned, []int{ifindex}) {
		t.Errorf("pruned %v (%v), want %d", pruned, err, ifindex)
	}
	want(int(w.b.ifindex))

	for range 2 {
		do(t, w.ns, func() error { return w.o.Detach(int(w.b.ifindex)) })
		want()
	}
	do(t, w.ns, func() error {
		if err := w.o.Attach(4711); err == nil {
			t.Error("attached to an interface that does not exist")
		}
		return nil
	})
	want()
}

// TestDetachGone: an interface that went away with its links pinned.
func TestDetachGone(t *testing.T) { eachWay(t, testDetachGone) }

func testDetachGone(t *testing.T, w *world) {
	do(t, w.ns, func() error {
		l, err := netlink.LinkByIndex(int(w.a.ifindex))
		return errors.Join(err, w.o.Attach(int(w.a.ifindex)), netlink.LinkDel(l))
	})
	do(t, w.ns, func() error { return w.o.Detach(int(w.a.ifindex)) })
	if left, err := filepath.Glob(filepath.Join(w.o.dir, "links", "*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	o := load(t, smallSizes())
	dir := filepath.Dir(o.dir)
	larger := smallSizes()
	larger["ct4"] = 4096
	for _, tt := range []struct {
		name string
		opts Options
		want error
	}{
		{"other size than the pin", Options{PinDir: dir, MapSizes: larger}, ErrIncompatiblePin},
		{"no such map", Options{PinDir: dir, MapSizes: map[string]uint32{"ct5": 1}}, ErrUnknownMap},
		{"map of fixed size", Options{PinDir: dir, MapSizes: map[string]uint32{"config": 2}}, ErrUnknownMap},
		{"not a bpffs", Options{PinDir: t.TempDir()}, ErrNotBPFFS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Load(tt.opts); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
	if _, err := Load(Options{PinDir: dir, MapSizes: map[string]uint32{"ct4": 0}}); err == nil {
		t.Error("a map of 0 entries was accepted")
	}
	if _, err := Load(Options{PinDir: dir, MapSizes: smallSizes()}); err != nil {
		t.Errorf("the size of the pin was refused: %v", err)
	}
}

// TestLoadIncompatiblePin: a pin of that name with another layout.
func TestLoadIncompatiblePin(t *testing.T) {
	dir := filepath.Join(pins, t.Name())
	if err := os.MkdirAll(filepath.Join(layoutDir(dir), "maps"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(layoutDir(dir), "maps", "endpoints")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(Options{PinDir: dir, MapSizes: smallSizes()}); !errors.Is(err, ErrIncompatiblePin) {
		t.Errorf("error %v, want %v", err, ErrIncompatiblePin)
	}
}

func TestMountBPFFS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bpf")
	mounted, err := MountBPFFS(dir)
	if err != nil || !mounted {
		t.Fatalf("mounted %v (%v), want a mount", mounted, err)
	}
	defer func() {
		if err := UnmountBPFFS(dir); err != nil {
			t.Error(err)
		}
	}()
	below := filepath.Join(dir, "varve")
	for _, d := range []string{dir, below} {
		if mounted, err := MountBPFFS(d); err != nil || mounted {
			t.Errorf("%s: mounted %v (%v), want it to be there already", d, mounted, err)
		}
	}
	if _, err := os.Stat(below); err != nil {
		t.Error(err)
	}
}

// TestRemoveAll takes out layouts and nothing else.
func TestRemoveAll(t *testing.T) { eachWay(t, testRemoveAll) }

func testRemoveAll(t *testing.T, w *world) {
	do(t, w.ns, func() error { return w.o.Attach(int(w.a.ifindex)) })
	dir := filepath.Dir(w.o.dir)
	other := filepath.Join(dir, "various")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(other)
	for range 2 {
		do(t, w.ns, func() error { return RemoveAll(dir) })
	}
	if _, err := os.Stat(w.o.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", w.o.dir, err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	if err := RemoveAll(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
	if n := programs(t, w, int(w.a.ifindex), hookFrom); n != 0 {
		t.Errorf("%d programs are still attached", n)
	}
}

// programs counts those on a hook, by TCX and by filters.
func programs(t *testing.T, w *world, ifindex int, h hook) (n int) {
	t.Helper()
	do(t, w.ns, func() error {
		if kernelHasTCX(t) {
			q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: h.attach})
			if err != nil {
				return err
			}
			n = len(q.Programs)
		}
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(l, h.parent)
		n += len(filters)
		return err
	})
	return n
}

// TestTakeOverFilters: programs go by filters until a binary comes that uses
// TCX, and the other way round a link is kept.
func TestTakeOverFilters(t *testing.T) {
	w := newWorld(t, smallSizes())
	ifindex := int(w.a.ifindex)
	both := []hook{hookFrom, hookTo}
	w.o.clsact = true
	do(t, w.ns, func() error { return w.o.Attach(ifindex) })
	w.o.clsact = false
	do(t, w.ns, func() error { return errors.Join(w.o.Attach(ifindex), w.o.Attach(ifindex)) })
	tcx := kernelHasTCX(t)
	links := make(map[hook]link.ID)
	for _, h := range both {
		if links[h], _ = attachedProgram(t, w, ifindex, h); (links[h] != 0) != tcx {
			t.Errorf("%s: link %d, kernel has TCX: %v", h.suffix, links[h], tcx)
		}
		if n := programs(t, w, ifindex, h); n != 1 {
			t.Errorf("%s: %d programs, want 1", h.suffix, n)
		}
	}
	w.o.clsact = true
	do(t, w.ns, func() error { return w.o.Attach(ifindex) })
	for _, h := range both {
		if l, _ := attachedProgram(t, w, ifindex, h); l != links[h] {
			t.Errorf("%s: link %d, want %d", h.suffix, l, links[h])
		}
		if n := programs(t, w, ifindex, h); n != 1 {
			t.Errorf("%s: %d programs, want 1", h.suffix, n)
		}
	}
}

// TestPinLeftByACrash: whatever it is, the next Attach clears it away.
func TestPinLeftByACrash(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world) {
		ifindex := int(w.a.ifindex)
		next := filepath.Join(w.o.dir, "next", filepath.Base(w.o.linkPin(ifindex, hookFrom)))
		if err := os.MkdirAll(filepath.Dir(next), 0o700); err != nil {
			t.Fatal(err)
		}
		other, err := w.o.ToContainer.Clone()
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.Pin(next); err != nil {
			t.Fatal(err)
		}
		do(t, w.ns, func() error { return w.o.Attach(ifindex) })
		if _, err := os.Stat(next); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", next, err)
		}
		if _, got := attachedProgram(t, w, ifindex, hookFrom); got != programID(t, w.o.FromContainer) {
			t.Errorf("program %d, want %d", got, programID(t, w.o.FromContainer))
		}
	})
}

// TestForeignFilter: a filter in our place is left alone, and another's elsewhere
// does not matter.
func TestForeignFilter(t *testing.T) {
	w := newWorld(t, smallSizes())
	ifindex := int(w.a.ifindex)
	w.o.clsact = true
	do(t, w.ns, func() error { return w.o.Attach(ifindex) })
	theirs := func(priority uint16) netlink.Filter {
		a := filterAttrs(ifindex, hookTo)
		a.Priority = priority
		return &netlink.BpfFilter{FilterAttrs: a, Fd: w.o.ToContainer.FD(), Name: "theirs", DirectAction: true}
	}
	do(t, w.ns, func() error {
		return errors.Join(netlink.FilterAdd(theirs(2)), w.o.Attach(ifindex), w.o.Detach(ifindex), netlink.FilterAdd(theirs(filterPriority)))
	})
	if err := w.ns.Do(func() error { return w.o.Attach(ifindex) }); !errors.Is(err, ErrForeignFilter) {
		t.Errorf("error %v, want %v", err, ErrForeignFilter)
	}
	do(t, w.ns, func() error { return w.o.Detach(ifindex) })
	if n := programs(t, w, ifindex, hookTo); n != 2 {
		t.Errorf("%d filters are left, want their 2", n)
	}
}
