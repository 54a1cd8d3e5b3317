package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
)

// A Guard finds out whether the pins and links of Objects are as they were left,
// and puts them right without a packet in between that meets no program of ours,
// where the kernel still has one. It keeps every link that it has seen open: a pin
// that somebody removes does not take the program off the interface.
//
// Safe for concurrent use. As to Attach, interfaces are those of the caller's
// network namespace.
type Guard struct {
	o *Objects

	mu   sync.Mutex
	held map[string]link.Link // by pin
	// spare are second copies of the programs: the kernel refuses one program twice
	// on a hook, and to move a link is to attach it anew before it goes.
	spare *ebpf.Collection
}

// NewGuard makes the Guard of o, which stays the caller's to close, after the Guard.
func NewGuard(o *Objects) *Guard { return &Guard{o: o, held: make(map[string]link.Link)} }

// Close lets go of the links; those that are pinned stay.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, l := range g.held {
		errs = append(errs, l.Close())
	}
	clear(g.held)
	if g.spare != nil {
		g.spare.Close()
		g.spare = nil
	}
	return errors.Join(errs...)
}

// Finding is a pin or link that is not as it was left.
type Finding struct {
	// Object is "pin maps/policy", or "tcx ingress" or "tcx egress" of the interface.
	Object string
	// What differs, in people's words.
	What string
	// Err is why it is not repaired; nil: it is.
	Err error
}

// Attach is Objects.Attach, and keeps the links.
func (g *Guard) Attach(ifindex int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.o.Attach(ifindex); err != nil {
		return err
	}
	for _, h := range hooks {
		if err := g.hold(g.o.linkPin(ifindex, h)); err != nil {
			return fmt.Errorf("interface %d: %s: %w", ifindex, h.attach, err)
		}
	}
	return nil
}

// hold keeps the link that is pinned at path, in place of one from before.
func (g *Guard) hold(path string) error {
	l, err := pinnedTCX(path)
	if err != nil {
		return err
	}
	if old := g.held[path]; old != nil {
		delete(g.held, path)
		if err := old.Close(); err != nil {
			return err
		}
	}
	if l != nil {
		g.held[path] = l
	}
	return nil
}

// pinnedTCX opens a pinned link; nil if nothing is pinned, or if the kernel has no
// TCX and a filter's program is pinned instead.
func pinnedTCX(path string) (link.Link, error) {
	pinned, err := pin.Load(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pin %s: %w", path, err)
	}
	if l, ok := pinned.(link.Link); ok {
		return l, nil
	}
	return nil, pinned.Close()
}

// Release lets go of the links whose interface is gone.
func (g *Guard) Release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for path, l := range g.held {
		if info, err := l.Info(); err == nil && info.TCX() != nil && info.TCX().Ifindex != 0 {
			continue
		}
		errs = append(errs, l.Close())
		delete(g.held, path)
	}
	return errors.Join(errs...)
}

// Sound tells whether Interface would find nothing. An interface that has the
// programs of another layout until Migrate is sound.
func (g *Guard) Sound(ifindex int) (bool, error) {
	if kept, err := g.o.keptByPredecessor(ifindex); err != nil || kept {
		return kept, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range hooks {
		if what, err := g.check(ifindex, h); err != nil || len(what) > 0 {
			return false, err
		}
	}
	return true, nil
}

// Interface checks both hooks of an interface on which the programs must be, and
// repairs them: a removed pin, a detached link, another program in the link,
// programs of others before ours.
func (g *Guard) Interface(ifindex int) ([]Finding, error) {
	if kept, err := g.o.keptByPredecessor(ifindex); err != nil || kept {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var found []Finding
	for _, h := range hooks {
		what, err := g.check(ifindex, h)
		if err != nil {
			return nil, fmt.Errorf("interface %d: %s: %w", ifindex, h, err)
		}
		if len(what) > 0 {
			found = append(found, Finding{Object: h.String(), What: strings.Join(what, "; ")})
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	err := g.repair(ifindex)
	for i := range found {
		found[i].Err = err
	}
	return found, nil
}

// hooks are both, in the order in which they are attached.
var hooks = []hook{hookTo, hookFrom}

// String is the hook as bpftool calls it.
func (h hook) String() string {
	if h.attach == ebpf.AttachTCXIngress {
		return "tcx ingress"
	}
	return "tcx egress"
}

func (g *Guard) program(h hook) *ebpf.Program {
	if h.attach == ebpf.AttachTCXIngress {
		return g.o.FromContainer
	}
	return g.o.ToContainer
}

// check says what is wrong with a hook.
func (g *Guard) check(ifindex int, h hook) (what []string, err error) {
	path := g.o.linkPin(ifindex, h)
	l, err := pinnedTCX(path)
	if err != nil {
		return []string{err.Error()}, nil // what is pinned there is none of ours
	}
	if l == nil {
		if _, err := os.Stat(path); err == nil {
			return g.checkFilter(ifindex)
		}
		what = append(what, "its pin is gone")
		if l = g.held[path]; l == nil {
			return append(what, "the program may be off the interface"), nil
		}
	} else {
		defer l.Close()
	}
	info, err := l.Info()
	if err != nil {
		return nil, fmt.Errorf("link info: %w", err)
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ifindex || ebpf.AttachType(tcx.AttachType) != h.attach {
		return append(what, "its link is detached"), nil
	}
	ours, err := idOfProgram(g.program(h))
	if err != nil {
		return nil, err
	}
	if info.Program != ours {
		what = append(what, "its link runs "+programName(info.Program))
	}
	before, err := g.before(ifindex, h, info.ID)
	if len(before) > 0 {
		what = append(what, "runs after "+strings.Join(before, ", "))
	}
	return what, err
}

// checkFilter is check where the kernel has no TCX.
func (g *Guard) checkFilter(ifindex int) ([]string, error) {
	attached, err := g.o.Attached()
	if err != nil || slices.Contains(attached, ifindex) {
		return nil, err
	}
	return []string{"its filter is gone"}, nil
}

// before names the programs that run before a link.
func (g *Guard) before(ifindex int, h hook, ours link.ID) ([]string, error) {
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: h.attach})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range result.Programs {
		if id, ok := p.LinkID(); ok && id == ours {
			return names, nil
		}
		names = append(names, programName(p.ID))
	}
	return append(names, "and not at all"), nil
}

// repair makes check content: pins first, since a program that is on a hook
// without one cannot be attached again.
func (g *Guard) repair(ifindex int) error {
	for _, h := range hooks {
		if err := g.repin(ifindex, h); err != nil {
			return fmt.Errorf("%s: %w", h, err)
		}
	}
	// What is pinned is replaced in place, or attached anew if it is on no hook.
	if err := g.o.Attach(ifindex); err != nil {
		return err
	}
	for _, h := range hooks {
		if err := g.first(ifindex, h); err != nil {
			return fmt.Errorf("%s: %w", h, err)
		}
		if what, err := g.check(ifindex, h); err != nil || len(what) > 0 {
			return errors.Join(err, fmt.Errorf("%s: still wrong: %s", h, strings.Join(what, "; ")))
		}
	}
	return nil
}

// repin pins the link that is on a hook.
func (g *Guard) repin(ifindex int, h hook) error {
	path := g.o.linkPin(ifindex, h)
	l, err := pinnedTCX(path)
	if err != nil {
		// Only the pin goes: what it holds is somebody's.
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("foreign pin: %w", err)
		}
	}
	if l != nil {
		return l.Close()
	}
	held := g.held[path]
	if held == nil {
		return nil
	}
	if info, err := held.Info(); err != nil || info.TCX() == nil || int(info.TCX().Ifindex) != ifindex {
		return err
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err // a filter's program
	}
	return g.pin(held, path)
}

// first holds the link of a hook and puts it before all others.
func (g *Guard) first(ifindex int, h hook) error {
	path := g.o.linkPin(ifindex, h)
	if err := g.hold(path); err != nil {
		return err
	}
	held := g.held[path]
	if held == nil {
		return nil // a filter, which is always the first
	}
	info, err := held.Info()
	if err != nil {
		return fmt.Errorf("link info: %w", err)
	}
	if before, err := g.before(ifindex, h, info.ID); err != nil || len(before) == 0 {
		return err
	}
	return g.promote(ifindex, h)
}

// promote puts our program first: a copy of it goes to the head, then the link
// behind it goes, then the copy's link gets the program itself. A crash in between
// leaves one of the two links pinned.
func (g *Guard) promote(ifindex int, h hook) error {
	if err := g.loadSpare(); err != nil {
		return fmt.Errorf("programs to put first: %w", err)
	}
	first, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: g.spare.Programs[programNames[h.suffix]], Attach: h.attach, Anchor: link.Head(),
	})
	if err != nil {
		return err
	}
	path := g.o.linkPin(ifindex, h)
	err = g.pin(first, path)
	if err == nil {
		err = g.held[path].Detach()
	}
	if err == nil {
		err = first.Update(g.program(h))
	}
	// Closing a link that is not pinned detaches it.
	return errors.Join(err, g.hold(path), first.Close())
}

var programNames = map[string]string{hookFrom.suffix: "from_container", hookTo.suffix: "to_container"}

// loadSpare loads the programs once more, on the same maps.
func (g *Guard) loadSpare() error {
	if g.spare != nil {
		return nil
	}
	spec, err := loadEndpoint()
	if err != nil {
		return fmt.Errorf("embedded object: %w", err)
	}
	replacements := g.o.Maps()
	maps.DeleteFunc(replacements, func(name string, _ *ebpf.Map) bool { return spec.Maps[name] == nil })
	for name, m := range replacements {
		spec.Maps[name].MaxEntries, spec.Maps[name].Pinning = m.MaxEntries(), ebpf.PinNone
	}
	g.spare, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Maps:            ebpf.MapOptions{PinPath: filepath.Join(g.o.dir, "maps")},
		MapReplacements: replacements,
	})
	return err
}

// pin pins what may have been pinned elsewhere before, in one step also where
// something is pinned already. The directory's name is that of no pin.
func (g *Guard) pin(p pin.Pinner, path string) error {
	next := filepath.Join(g.o.dir, "guard", filepath.Base(path))
	if err := os.MkdirAll(filepath.Dir(next), 0o700); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin left by a crash: %w", err)
	}
	if err := p.Pin(next); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	if err := os.Rename(next, path); err != nil {
		return errors.Join(fmt.Errorf("pin: %w", err), os.Remove(next))
	}
	return nil
}

// MapPins checks that every map is pinned where the next agent will look for it,
// and repairs that.
func (g *Guard) MapPins() []Finding {
	var found []Finding
	all := g.o.Maps()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		what, err := g.checkMapPin(name, all[name])
		if what == "" && err == nil {
			continue
		}
		f := Finding{Object: "pin maps/" + name, What: what, Err: err}
		if err == nil {
			f.Err = g.pinMap(name, all[name])
		}
		found = append(found, f)
	}
	return found
}

func (g *Guard) checkMapPin(name string, m *ebpf.Map) (what string, err error) {
	want, err := mapID(m)
	if err != nil {
		return "", err
	}
	pinned, err := pin.Load(filepath.Join(g.o.dir, "maps", name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return "it is gone", nil
	}
	if err != nil {
		return "", err
	}
	defer pinned.Close()
	there, ok := pinned.(*ebpf.Map)
	if !ok {
		return "it is no map", nil
	}
	id, err := mapID(there)
	if err == nil && id != want {
		what = fmt.Sprintf("it is map %d, not %d", id, want)
	}
	return what, err
}

func (g *Guard) pinMap(name string, m *ebpf.Map) error {
	// A map remembers where it is pinned.
	c, err := m.Clone()
	if err != nil {
		return err
	}
	return errors.Join(g.pin(c, filepath.Join(g.o.dir, "maps", name)), c.Close())
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("map info: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("map info: the kernel tells no id")
	}
	return id, nil
}

func idOfProgram(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("program info: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("program info: the kernel tells no id")
	}
	return id, nil
}

// programName names a program of somebody, "program 17 (name)".
func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Sprintf("program %d", id)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return fmt.Sprintf("program %d", id)
	}
	return fmt.Sprintf("program %d (%s)", id, info.Name)
}
