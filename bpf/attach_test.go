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

// attachedProgram is the program that a pinned link runs.
func attachedProgram(t *testing.T, o *Objects, ifindex int, h hook) (link.ID, ebpf.ProgramID) {
	t.Helper()
	l, err := link.LoadPinnedLink(o.linkPin(ifindex, h), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.ID, info.Program
}

func TestAttach(t *testing.T) {
	w := newWorld(t, smallSizes())
	ifindex := int(w.a.ifindex)
	want := func(attached ...int) {
		t.Helper()
		got, err := w.o.Attached()
		if err != nil || !slices.Equal(got, attached) {
			t.Errorf("attached %v (%v), want %v", got, err, attached)
		}
	}
	want()
	do(t, w.ns, func() error { return w.o.Attach(ifindex) })
	want(ifindex)
	links := make(map[hook]link.ID)
	for h, prog := range map[hook]*ebpf.Program{hookFrom: w.o.FromContainer, hookTo: w.o.ToContainer} {
		info, err := prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		var got ebpf.ProgramID
		if links[h], got = attachedProgram(t, w.o, ifindex, h); got != id {
			t.Errorf("%s runs program %d, want %d", h.suffix, got, id)
		}
	}

	// Another process: the same maps, other programs, the same links.
	next, err := Load(Options{PinDir: filepath.Dir(w.o.dir)})
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
		info, err := prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		if l, got := attachedProgram(t, next, ifindex, h); got != id || l != links[h] {
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
	pruned, err := w.o.PruneLinks()
	if err != nil || !slices.Equal(pruned, []int{ifindex}) {
		t.Errorf("pruned %v (%v), want %d", pruned, err, ifindex)
	}
	want(int(w.b.ifindex))

	for range 2 {
		if err := w.o.Detach(int(w.b.ifindex)); err != nil {
			t.Fatal(err)
		}
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
func TestDetachGone(t *testing.T) {
	w := newWorld(t, smallSizes())
	do(t, w.ns, func() error {
		l, err := netlink.LinkByIndex(int(w.a.ifindex))
		return errors.Join(err, w.o.Attach(int(w.a.ifindex)), netlink.LinkDel(l))
	})
	if err := w.o.Detach(int(w.a.ifindex)); err != nil {
		t.Fatal(err)
	}
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
func TestRemoveAll(t *testing.T) {
	w := newWorld(t, smallSizes())
	do(t, w.ns, func() error { return w.o.Attach(int(w.a.ifindex)) })
	dir := filepath.Dir(w.o.dir)
	other := filepath.Join(dir, "various")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(other)
	for range 2 {
		if err := RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
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
	do(t, w.ns, func() error {
		q, err := link.QueryPrograms(link.QueryOptions{Target: int(w.a.ifindex), Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		if len(q.Programs) != 0 {
			t.Errorf("%d programs are still attached", len(q.Programs))
		}
		return nil
	})
}
