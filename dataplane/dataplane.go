// Package dataplane makes the kernel equal to the desired tables: it writes BPF
// maps in an order that never opens a gap (Syncer), makes and removes the
// containers' interfaces, and reads back what the programs report.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"sync/atomic"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// DefaultGatewayMAC is the MAC of every host side if no other is configured:
// locally administered, "varve" in ASCII.
var DefaultGatewayMAC = [6]byte{0x02, 'v', 'a', 'r', 'v', 'e'}

// Config says what to open.
type Config struct {
	// PinDir is where maps and links are pinned. A bpffs is mounted there if it
	// is not on one.
	PinDir string
	// GatewayMAC is the MAC of the host side of every pair; zero:
	// DefaultGatewayMAC. It must stay the same as long as interfaces exist: by it
	// they are known as ours.
	GatewayMAC [6]byte
	// MapSizes is the number of entries by map name; a map that is not named
	// keeps its size.
	MapSizes               map[string]uint32
	EnableIPv4, EnableIPv6 bool
	NewFlowEvents          bool // an event for each admitted flow
	// Netns is the path of the node's network namespace; empty: this process's.
	Netns string
	// Owner identifies the log that the tables come from: letters, digits and
	// underscores. Pins with containers on them are not taken from another owner.
	// Empty: not checked.
	Owner  string
	Logger *slog.Logger // nil: none
}

// Dataplane is the datapath of one node. Safe for concurrent use except Close
// and Destroy.
type Dataplane struct {
	config  Config
	log     *slog.Logger
	objs    *bpf.Objects
	node    *namespace
	mounted bool
	lock    *os.File // on the directory of pins

	maps   Maps
	syncer *Syncer

	settings abi.Config // as written
	guard    *bpf.Guard
	rows     *rowChecker
	syncs    atomic.Uint64 // that wrote, or failed to
	turn     int           // of SuspectInterfaces

	mu   sync.Mutex
	bind map[uint32]int // of the last Sync

	// pins serialises what makes, lists and removes pinned links: a listing fails
	// if one of them goes meanwhile.
	pins sync.Mutex

	eventsBusy sync.Mutex
}

// Open loads the programs and takes over the pinned maps and links of an earlier
// run, if there are any: what flows goes on, under the rows that are there, and
// programs on existing interfaces are replaced one by one without a gap. Links of
// interfaces that are gone are removed. Nothing is written to the maps of rows
// until Sync. ErrPinsBusy if another process has the pins, ErrPinsForeign if they
// belong to another owner.
func Open(c Config) (*Dataplane, error) {
	if c.GatewayMAC == [6]byte{} {
		c.GatewayMAC = DefaultGatewayMAC
	}
	if c.GatewayMAC[0]&1 != 0 {
		return nil, fmt.Errorf("dataplane: gateway MAC %x must be a unicast address", c.GatewayMAC)
	}
	if !c.EnableIPv4 && !c.EnableIPv6 {
		return nil, errors.New("dataplane: IPv4 and IPv6 are both off: enable one")
	}
	d := &Dataplane{config: c, log: c.Logger}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("dataplane: %w", err), d.Close())
	}
	return d, nil
}

func (d *Dataplane) open() (err error) {
	if d.node, err = openNamespace(d.config.Netns); err != nil {
		return err
	}
	if d.mounted, err = bpf.MountBPFFS(d.config.PinDir); err != nil {
		return err
	}
	if d.lock, err = lockPins(d.config.PinDir); err != nil {
		return err
	}
	if d.objs, err = bpf.Load(bpf.Options{PinDir: d.config.PinDir, MapSizes: d.config.MapSizes}); err != nil {
		return err
	}
	if err := d.claim(); err != nil {
		return err
	}
	d.maps = MapsOf(d.objs)
	d.syncer = NewSyncer(d.maps)
	settings := abi.DefaultConfig(d.config.GatewayMAC)
	settings.EnableIPv4, settings.EnableIPv6 = d.config.EnableIPv4, d.config.EnableIPv6
	settings.NewFlowEvents = d.config.NewFlowEvents
	if err := d.objs.SetConfig(settings); err != nil {
		return err
	}
	d.settings = settings
	d.guard = bpf.NewGuard(d.objs)
	d.rows = newRowChecker(d.syncer, d.syncs.Load)
	return d.takeOver()
}

// claim takes the pins for our log, once the links of interfaces that are gone
// are out of the way.
func (d *Dataplane) claim() error {
	if err := d.node.do(func() error {
		_, err := d.objs.PruneLinks()
		return err
	}); err != nil {
		return err
	}
	connected, err := d.ListInterfaces(context.Background())
	if err != nil {
		return err
	}
	return claimPins(d.config.PinDir, d.config.Owner, connected)
}

// takeOver puts this binary's programs on the interfaces of an earlier run.
func (d *Dataplane) takeOver() error {
	return d.node.do(func() error {
		gone, err := d.objs.PruneLinks()
		if err != nil {
			return err
		}
		attached, err := d.objs.Attached()
		if err != nil {
			return err
		}
		for _, ifindex := range attached {
			if err := d.guard.Attach(ifindex); err != nil {
				return err
			}
		}
		d.log.Info("datapath loaded", "interfaces", len(attached), "stale_links", len(gone), "mounted_bpffs", d.mounted)
		return nil
	})
}

// Close gives up this process's hold. What is pinned stays: traffic and policy
// go on.
func (d *Dataplane) Close() error {
	var errs []error
	if d.guard != nil {
		errs = append(errs, d.guard.Close())
		d.guard = nil
	}
	if d.objs != nil {
		errs = append(errs, d.objs.Close())
		d.objs = nil
	}
	if d.node != nil {
		errs = append(errs, d.node.close())
		d.node = nil
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
		d.lock = nil
	}
	return errors.Join(errs...)
}

// Destroy closes and takes everything pinned out of the kernel, and unmounts the
// bpffs if this process mounted it. Interfaces are removed by RemoveInterface
// before; those left over lose their programs and go unguarded.
func (d *Dataplane) Destroy() error {
	removeAll := func() error { return bpf.RemoveAll(d.config.PinDir) }
	if node := d.node; node != nil {
		inner := removeAll
		removeAll = func() error { return node.do(inner) }
	}
	errs := []error{removeAll(), d.Close()}
	if d.mounted {
		errs = append(errs, bpf.UnmountBPFFS(d.config.PinDir))
		d.mounted = false
	}
	return errors.Join(errs...)
}

// SetupNode puts the gateways on the loopback, makes the node a router and lets it
// deliver to the DNS proxy. Idempotent.
func (d *Dataplane) SetupNode(ctx context.Context, s NodeSpec) error {
	if err := setupNode(ctx, d.node, s); err != nil {
		return err
	}
	if s.DNSProxy {
		return d.refreshDevices(ctx)
	}
	return nil
}

// TeardownNode takes the gateways away. Forwarding stays on, since others may
// have come to rely on it. Idempotent.
func (d *Dataplane) TeardownNode(s NodeSpec) error { return teardownNode(d.node, s) }

// EnsureInterface makes an endpoint's veth pair, or completes and repairs what
// is there of it, and returns the index of its host side. The programs are on it
// before either side is up, and the container's side stays down until
// ActivateInterface; one that is up already stays up. Idempotent.
//
// Errors: ErrNoNamespace, ErrForeignInterface.
func (d *Dataplane) EnsureInterface(ctx context.Context, s InterfaceSpec) (ifindex int, err error) {
	return ensureInterface(ctx, d.node, ownerOf(d.config), s, func(ifindex int) error {
		d.pins.Lock()
		defer d.pins.Unlock()
		return d.node.do(func() error { return d.guard.Attach(ifindex) })
	})
}

// ActivateInterface brings the container's side up and gives it its routes. Call
// it once Sync has written the endpoint's rows. Idempotent.
func (d *Dataplane) ActivateInterface(ctx context.Context, s InterfaceSpec) error {
	return activateInterface(ctx, s)
}

// RemoveInterface removes an endpoint's veth pair by the name of its host side,
// with routes, neighbours and pins. The programs stay on it to the end: no packet
// passes unguarded. No error if there is none, or if the container's namespace
// is gone. ErrForeignInterface if the interface was not made here.
func (d *Dataplane) RemoveInterface(ctx context.Context, hostName string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := removeInterface(d.node, d.config.GatewayMAC, hostName); err != nil {
		return err
	}
	d.pins.Lock()
	defer d.pins.Unlock()
	if err := d.node.do(func() error {
		_, err := d.objs.PruneLinks()
		return err
	}); err != nil {
		return fmt.Errorf("interface %s: %w", hostName, err)
	}
	return nil
}

// Sync makes the maps equal to desired; see Syncer.Sync.
func (d *Dataplane) Sync(ctx context.Context, desired *projections.Tables, bind map[uint32]int) (Stats, error) {
	return d.SyncDelta(ctx, desired, projections.Delta{}, bind)
}

// SyncDelta makes the maps equal to desired at the cost of what changed; see
// Syncer.SyncDelta.
func (d *Dataplane) SyncDelta(ctx context.Context, desired *projections.Tables, delta projections.Delta, bind map[uint32]int) (Stats, error) {
	stats, err := d.Enforce(ctx, desired, delta, bind)
	if err != nil {
		return stats, err
	}
	return stats, d.Clean()
}

// Enforce is SyncDelta up to the moment from which on every packet meets the new
// tables; see Syncer.Enforce.
func (d *Dataplane) Enforce(ctx context.Context, desired *projections.Tables, delta projections.Delta, bind map[uint32]int) (Stats, error) {
	stats, err := d.syncer.Enforce(ctx, desired, delta, bind)
	if err != nil || stats.Total() > 0 {
		d.syncs.Add(1)
	}
	if err != nil {
		return stats, fmt.Errorf("sync to revision %d: %w", desired.Revision, err)
	}
	d.mu.Lock()
	d.bind = maps.Clone(bind)
	d.mu.Unlock()
	return stats, d.migrate(ctx)
}

// Clean removes the rows that Enforce left.
func (d *Dataplane) Clean() error { return d.syncer.Clean() }

// Forget makes the next Sync read the maps anew and repair what differs.
func (d *Dataplane) Forget() { d.syncer.Forget() }

// KernelTables reads the maps back as logical rows; see ReadTables.
func (d *Dataplane) KernelTables(ctx context.Context) (*projections.Tables, error) {
	return ReadTables(ctx, d.maps)
}

// Verify compares the maps row by row with desired, under the interfaces of the
// last Sync.
func (d *Dataplane) Verify(ctx context.Context, desired *projections.Tables) ([]Difference, error) {
	d.mu.Lock()
	bind := d.bind
	d.mu.Unlock()
	return Verify(ctx, d.maps, desired, bind)
}

// Maps are the maps that Sync writes, for reading.
func (d *Dataplane) Maps() Maps { return d.maps }
