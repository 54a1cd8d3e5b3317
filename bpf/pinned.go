package bpf

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// OpenPinned opens the maps that an agent has pinned, without its programs: for
// the DNS proxy, which is a process of its own. What it returns can do nothing but
// hand out maps, raise generations and be closed. fs.ErrNotExist if no agent of
// this layout has pinned anything there.
func OpenPinned(pinDir string) (*Objects, error) {
	o := &Objects{dir: layoutDir(pinDir)}
	for name, m := range map[string]**ebpf.Map{
		"ipcache": &o.IPCache, "ipcache_lpm": &o.IPCacheLPM, "endpoints": &o.Endpoints,
		"classes": &o.Classes, "policy": &o.Policy, "fqdn": &o.FQDN, "proxy": &o.Proxy, "devices": &o.Devices,
		"ct4": &o.CT4, "ct6": &o.CT6, "generations": &o.Generations, "config": &o.Config, "counters": &o.Counters,
		"events": &o.Events,
	} {
		var err error
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(o.dir, "maps", name), nil); err != nil {
			return nil, errors.Join(fmt.Errorf("pinned map %s: %w", name, err), o.Close())
		}
	}
	var err error
	if o.gen, err = mapGenerations(o.Generations); err != nil {
		return nil, errors.Join(fmt.Errorf("map generations: %w", err), o.Close())
	}
	return o, nil
}
