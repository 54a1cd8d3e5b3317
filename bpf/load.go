package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/varve-net/varve/bpf/abi"
)

// Options says where to pin and how large maps are.
type Options struct {
	// PinDir is a directory on a bpffs; it is made if its parent is on one.
	PinDir string
	// MapSizes overrides the number of entries by map name (bytes for events,
	// a power of two and a multiple of the page size). A map that is not named
	// keeps the size of its pin or, without one, its default.
	MapSizes map[string]uint32
	// Clsact attaches by filters on a clsact qdisc even if the kernel has TCX.
	Clsact bool
}

// Objects are the loaded programs and the maps they use. Safe for concurrent
// use except Close.
type Objects struct {
	IPCache     *ebpf.Map // abi.IPCacheKey -> abi.IPCacheValue
	IPCacheLPM  *ebpf.Map // abi.IPCacheLPMKey -> abi.IPCacheValue
	Endpoints   *ebpf.Map // abi.EndpointKey -> abi.EndpointValue
	Classes     *ebpf.Map // abi.ClassKey -> abi.ClassValue
	Policy      *ebpf.Map // abi.PolicyKey -> abi.PolicyValue
	FQDN        *ebpf.Map // abi.FQDNKey -> abi.FQDNValue
	Proxy       *ebpf.Map // 0 -> abi.Proxy
	Devices     *ebpf.Map // uint32, the index of an interface -> abi.Device
	CT4         *ebpf.Map // abi.CT4Key -> abi.CTValue
	CT6         *ebpf.Map // abi.CT6Key -> abi.CTValue
	Generations *ebpf.Map // 0 -> abi.Generations; see BumpGenerations
	Config      *ebpf.Map // 0 -> abi.Config; see SetConfig
	Counters    *ebpf.Map // abi.CounterIndex -> []abi.CounterValue, one a CPU
	Events      *ebpf.Map // ring buffer of abi.Event

	FromContainer *ebpf.Program
	ToContainer   *ebpf.Program

	dir    string // PinDir/v1
	clsact bool   // of Options
	gen    *generations

	attaching    sync.Mutex     // Attach and Migrate exclude each other
	predecessors []*predecessor // whose programs still run
}

// fixed are the maps whose number of entries is part of the layout.
var fixed = map[string]bool{"generations": true, "config": true, "counters": true, "held": true, "clock": true, "proxy": true, "admitted": true}

// withPrograms are the maps that are no more than the programs that use them
// remember: they go with these, and are not pinned.
var withPrograms = map[string]bool{"admitted": true}

// Load loads the programs, with the maps pinned in PinDir where there are any
// and new, pinned ones for the rest. Programs that run on in the kernel are not
// touched; Attach replaces them. It needs CAP_BPF and CAP_NET_ADMIN, and no
// locked memory limit is raised: maps are charged to the memory cgroup.
func Load(opts Options) (*Objects, error) {
	dir := layoutDir(opts.PinDir)
	if err := os.MkdirAll(filepath.Join(dir, "maps"), 0o700); err != nil {
		return nil, fmt.Errorf("pin directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "links"), 0o700); err != nil {
		return nil, fmt.Errorf("pin directory: %w", err)
	}
	if ok, err := onBPFFS(dir); err != nil {
		return nil, fmt.Errorf("pin directory %s: %w", opts.PinDir, err)
	} else if !ok {
		return nil, fmt.Errorf("pin directory %s: %w", opts.PinDir, ErrNotBPFFS)
	}
	spec, err := loadEndpoint()
	if err != nil {
		return nil, fmt.Errorf("embedded object: %w", err)
	}
	objs, err := loadSpec(spec, dir, opts)
	if err != nil {
		return nil, err
	}
	if err := objs.findPredecessors(opts.PinDir); err != nil {
		return nil, errors.Join(err, objs.Close())
	}
	return objs, nil
}

// LoadUnpinned loads the programs with maps of their own that go with Close: to run
// packets through them by Program.Run, beside whatever the node enforces. Nothing
// can be attached. sizes are as Options.MapSizes.
func LoadUnpinned(sizes map[string]uint32) (*Objects, error) {
	spec, err := loadEndpoint()
	if err != nil {
		return nil, fmt.Errorf("embedded object: %w", err)
	}
	return loadSpec(spec, "", Options{MapSizes: sizes})
}

// loadSpec loads with the pins of dir; none are made if that is empty.
func loadSpec(spec *ebpf.CollectionSpec, dir string, opts Options) (_ *Objects, err error) {
	pins := ""
	if dir != "" {
		pins = filepath.Join(dir, "maps")
	}
	if err := sizeMaps(spec, opts.MapSizes, pins); err != nil {
		return nil, err
	}
	var o struct {
		IPCache       *ebpf.Map     `ebpf:"ipcache"`
		IPCacheLPM    *ebpf.Map     `ebpf:"ipcache_lpm"`
		Endpoints     *ebpf.Map     `ebpf:"endpoints"`
		Classes       *ebpf.Map     `ebpf:"classes"`
		Policy        *ebpf.Map     `ebpf:"policy"`
		FQDN          *ebpf.Map     `ebpf:"fqdn"`
		Proxy         *ebpf.Map     `ebpf:"proxy"`
		Devices       *ebpf.Map     `ebpf:"devices"`
		CT4           *ebpf.Map     `ebpf:"ct4"`
		CT6           *ebpf.Map     `ebpf:"ct6"`
		Generations   *ebpf.Map     `ebpf:"generations"`
		Config        *ebpf.Map     `ebpf:"config"`
		Counters      *ebpf.Map     `ebpf:"counters"`
		Events        *ebpf.Map     `ebpf:"events"`
		FromContainer *ebpf.Program `ebpf:"from_container"`
		ToContainer   *ebpf.Program `ebpf:"to_container"`
	}
	err = spec.LoadAndAssign(&o, &ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: pins},
	})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, fmt.Errorf("%w: %w", ErrIncompatiblePin, err)
	}
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	objs := &Objects{
		IPCache: o.IPCache, IPCacheLPM: o.IPCacheLPM, Endpoints: o.Endpoints,
		Classes: o.Classes, Policy: o.Policy, FQDN: o.FQDN, Proxy: o.Proxy, Devices: o.Devices, CT4: o.CT4, CT6: o.CT6,
		Generations: o.Generations, Config: o.Config, Counters: o.Counters,
		Events: o.Events, FromContainer: o.FromContainer, ToContainer: o.ToContainer,
		dir: dir, clsact: opts.Clsact,
	}
	if objs.gen, err = mapGenerations(o.Generations); err != nil {
		return nil, errors.Join(fmt.Errorf("map generations: %w", err), objs.Close())
	}
	return objs, nil
}

// sizeMaps gives every map of spec its size: the one asked for, else that of
// its pin, else the default. They are pinned by name, unless dir is empty.
func sizeMaps(spec *ebpf.CollectionSpec, sizes map[string]uint32, dir string) error {
	for name := range sizes {
		if _, ok := spec.Maps[name]; !ok || fixed[name] {
			known := slices.DeleteFunc(slices.Sorted(maps.Keys(spec.Maps)), func(name string) bool { return fixed[name] })
			return fmt.Errorf("map size of %q: %w; known are %s", name, ErrUnknownMap, strings.Join(known, ", "))
		}
	}
	for name, m := range spec.Maps {
		if withPrograms[name] {
			continue
		}
		if dir != "" {
			m.Pinning = ebpf.PinByName
		}
		if n, ok := sizes[name]; ok {
			if n == 0 {
				return fmt.Errorf("map size of %q: must be above 0", name)
			}
			m.MaxEntries = n
			continue
		}
		if dir == "" {
			continue
		}
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("pinned map %s: %w", name, err)
		}
		if !fixed[name] {
			m.MaxEntries = pinned.MaxEntries()
		}
		if err := pinned.Close(); err != nil {
			return fmt.Errorf("pinned map %s: %w", name, err)
		}
	}
	return nil
}

// Close gives up this process's hold on programs and maps. What is pinned stays.
func (o *Objects) Close() error {
	var errs []error
	for _, m := range o.Maps() {
		errs = append(errs, m.Close())
	}
	errs = append(errs, o.FromContainer.Close(), o.ToContainer.Close())
	if o.gen != nil {
		errs = append(errs, o.gen.close())
		o.gen = nil
	}
	for _, p := range o.predecessors {
		errs = append(errs, p.close())
	}
	o.predecessors = nil
	return errors.Join(errs...)
}

// Maps is every map by name.
func (o *Objects) Maps() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		"ipcache": o.IPCache, "ipcache_lpm": o.IPCacheLPM, "endpoints": o.Endpoints,
		"classes": o.Classes, "policy": o.Policy, "fqdn": o.FQDN, "proxy": o.Proxy, "devices": o.Devices, "ct4": o.CT4, "ct6": o.CT6,
		"generations": o.Generations, "config": o.Config, "counters": o.Counters,
		"events": o.Events,
	}
}

// layoutDir is where the pins of this layout are.
func layoutDir(pinDir string) string {
	return filepath.Join(pinDir, "v"+strconv.Itoa(abi.Layout))
}
