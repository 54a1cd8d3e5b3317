package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
)

// A converter turns a conntrack entry of an older layout into one of this. The
// slices are the entry's in memory, of the older map's sizes. Whatever it gives
// for the generation is overwritten, so that the flow is judged anew.
type converter struct {
	ct4 func(key, value []byte) (abi.CT4Key, abi.CTValue)
	ct6 func(key, value []byte) (abi.CT6Key, abi.CTValue)
}

// tcActShot is TC_ACT_SHOT of linux/pkt_cls.h.
const tcActShot = 2

// converters by layout. Layout 1 is the first.
var converters = map[int]converter{}

// predecessor is a directory of pins of another layout whose programs run.
type predecessor struct {
	dir      string
	convert  converter
	ct4, ct6 *ebpf.Map
}

func (p *predecessor) close() error { return errors.Join(p.ct4.Close(), p.ct6.Close()) }

// has tells whether the interface has a program of p.
func (p *predecessor) has(ifindex int) (bool, error) {
	pins, err := pinsIn(p.dir)
	if err != nil {
		return false, err
	}
	for _, pin := range pins {
		if pin.ifindex == ifindex && pin.live {
			return true, nil
		}
	}
	return false, nil
}

// isLayout reads the name of a layout's directory.
func isLayout(name string) (int, bool) {
	number, ok := strings.CutPrefix(name, "v")
	n, err := strconv.ParseUint(number, 10, 31)
	return int(n), ok && err == nil
}

// findPredecessors opens the layouts in pinDir that are not o's own.
func (o *Objects) findPredecessors(pinDir string) error {
	entries, err := os.ReadDir(pinDir)
	if err != nil {
		return fmt.Errorf("pins: %w", err)
	}
	for _, e := range entries {
		layout, ok := isLayout(e.Name())
		if !ok || !e.IsDir() || layout == abi.Layout {
			continue
		}
		dir := filepath.Join(pinDir, e.Name())
		convert, ok := converters[layout]
		if !ok {
			return fmt.Errorf("pins %s: %w", dir, ErrUnknownLayout)
		}
		p := &predecessor{dir: dir, convert: convert}
		if p.ct4, err = ebpf.LoadPinnedMap(filepath.Join(dir, "maps", "ct4"), nil); err == nil {
			p.ct6, err = ebpf.LoadPinnedMap(filepath.Join(dir, "maps", "ct6"), nil)
		}
		if errors.Is(err, fs.ErrNotExist) {
			// Nothing can run without maps: a load or a removal that was cut short.
			if err := errors.Join(p.close(), removeLayout(dir)); err != nil {
				return fmt.Errorf("pins %s: %w", dir, err)
			}
			continue
		}
		if err != nil {
			return errors.Join(fmt.Errorf("pins %s: %w", dir, err), p.close())
		}
		o.predecessors = append(o.predecessors, p)
	}
	return nil
}

// keptByPredecessor tells whether the interface has, until Migrate, the programs of
// another layout.
func (o *Objects) keptByPredecessor(ifindex int) (bool, error) {
	o.attaching.Lock()
	defer o.attaching.Unlock()
	for _, p := range o.predecessors {
		if has, err := p.has(ifindex); err != nil || has {
			return has, err
		}
	}
	return false, nil
}

// Migrating tells whether programs of another layout still run, so that Migrate
// is due.
func (o *Objects) Migrating() bool {
	o.attaching.Lock()
	defer o.attaching.Unlock()
	return len(o.predecessors) > 0
}

// Migrate takes over from the programs of other layouts, under traffic, and
// removes them and their pins. Call it, like Attach, in the interfaces' network
// namespace, once the configuration and the rows of all endpoints are in the new
// maps. It returns the interfaces taken over. If it fails, or is cut short, both
// sets of programs may be attached, which is safe; call it again.
//
// No packet is lost: the new programs come in front of the old with a switch on
// (abi.Config.Handover) by which what they would drop goes on to the old. At first
// that is everything, until the new are on every interface: a flow that one of them
// opens must be known to the one that sees the answer. Then it is only what the new
// do not admit, such as answers of flows that they have not got yet. From then on
// the old open no flow that the new admit, one more copy finds all that are
// missing, and the switch goes off before the old programs go. Until then an old
// verdict holds where the new one is to drop; flows that were copied are judged by
// the new rows at their next packet.
//
// Where programs go by filters, which has but one place for ours, the old ones are
// replaced, and flows are copied before and after: what answers a flow opened
// between the first copy and the second can be dropped once.
func (o *Objects) Migrate(ctx context.Context) (taken []int, err error) {
	o.attaching.Lock()
	defer o.attaching.Unlock()
	for len(o.predecessors) > 0 {
		p := o.predecessors[0]
		ifindexes, err := o.takeOver(ctx, p)
		if err != nil {
			return taken, fmt.Errorf("take over from %s: %w", p.dir, err)
		}
		taken = append(taken, ifindexes...)
		if err := errors.Join(removeLayout(p.dir), p.close()); err != nil {
			return taken, fmt.Errorf("remove %s: %w", p.dir, err)
		}
		o.predecessors = o.predecessors[1:]
	}
	return taken, nil
}

// takeOver leaves p's programs behind ours and without effect.
func (o *Objects) takeOver(ctx context.Context, p *predecessor) (taken []int, err error) {
	pins, err := pinsIn(p.dir)
	if err != nil {
		return nil, err
	}
	hooks := make(map[int][]hookPin)
	for _, pin := range pins {
		if pin.live {
			hooks[pin.ifindex] = append(hooks[pin.ifindex], pin)
		}
	}
	copied := newFlowCopy(o, p)
	if err := copied.run(ctx); err != nil {
		return nil, err
	}
	h, err := o.beginHandover(hooks)
	if err != nil {
		return nil, err
	}
	var half []int
	for ifindex, there := range hooks {
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(err, h.end())
		}
		if len(there) != 2 {
			half = append(half, ifindex)
			continue
		}
		if err := o.attachBoth(ifindex); err != nil {
			return nil, errors.Join(fmt.Errorf("interface %d: %w", ifindex, err), h.end())
		}
		taken = append(taken, ifindex)
	}
	// Before the old programs go: without one behind it, the switch would let pass
	// what is to be dropped.
	if err := errors.Join(h.judge(), copied.run(ctx), h.end()); err != nil {
		return nil, err
	}
	for _, ifindex := range half {
		if err := o.attachBoth(ifindex); err != nil {
			return nil, fmt.Errorf("interface %d: %w", ifindex, err)
		}
		taken = append(taken, ifindex)
	}
	return taken, nil
}

// standsInFront tells whether ours come in front of the old ones: not if ours are
// filters, which would take the place of theirs.
func (o *Objects) standsInFront(hooks map[int][]hookPin) (bool, error) {
	if o.clsact {
		return false, nil
	}
	for ifindex := range hooks {
		_, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: hookFrom.attach})
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL): // EINVAL: before 6.6
			return false, nil
		case !errors.Is(err, unix.ENODEV):
			return false, fmt.Errorf("interface %d: %w", ifindex, err)
		}
	}
	return false, nil // no interface is left
}

// handover is the switch by which ours hand on to the old.
type handover struct {
	o      *Objects
	config abi.Config // as it was
	front  bool
	walls  []link.Link // behind ours where there are no old ones
}

// beginHandover makes ours hand on everything: with both address families off,
// they would drop all.
func (o *Objects) beginHandover(hooks map[int][]hookPin) (h handover, err error) {
	h.o = o
	if h.front, err = o.standsInFront(hooks); err != nil {
		return h, err
	}
	if h.config, err = o.readConfig(); err != nil {
		return h, err
	}
	h.config.Handover = false // of one that was cut short
	if !h.front {
		return h, nil
	}
	if err := h.wallOff(hooks); err != nil {
		return h, errors.Join(err, h.end())
	}
	c := h.config
	c.EnableIPv4, c.EnableIPv6, c.Handover = false, false, true
	return h, o.putConfig(c)
}

// wallOff puts a program that drops everything behind ours where no old one is,
// on interfaces that were made since: what is handed on there must not pass.
func (h *handover) wallOff(old map[int][]hookPin) error {
	pins, err := pinsIn(h.o.dir)
	if err != nil {
		return err
	}
	wall, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "wall", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, tcActShot), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("program wall: %w", err)
	}
	defer wall.Close()
	for _, p := range pins {
		if !p.live || len(old[p.ifindex]) == 2 {
			continue
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: p.ifindex, Program: wall, Attach: p.hook.attach, Anchor: link.Tail()})
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return fmt.Errorf("interface %d: %w", p.ifindex, err)
		}
		h.walls = append(h.walls, l)
	}
	return nil
}

// judge makes ours hand on only what they would drop.
func (h handover) judge() error {
	c := h.config
	c.Handover = h.front
	return h.o.putConfig(c)
}

// end puts the switch off, and then what was needed while it was on.
func (h handover) end() error {
	err := h.o.putConfig(h.config)
	for _, l := range h.walls {
		err = errors.Join(err, l.Close()) // not pinned, so this detaches it
	}
	return err
}
