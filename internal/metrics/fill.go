package metrics

import (
	"maps"
	"sync"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/projections"
)

// mapNames are the BPF maps whose rows tables determine.
var mapNames = []string{"classes", "endpoints", "ipcache", "ipcache_lpm", "policy"}

// changes are those of a Sync by the map's name.
func changes(s *dataplane.Stats) map[string]dataplane.Changes {
	return map[string]dataplane.Changes{
		"classes": s.Classes, "endpoints": s.Endpoints, "ipcache": s.IPCache, "ipcache_lpm": s.IPCacheLPM, "policy": s.Policy,
	}
}

// fullLength is the length of the prefixes that are in the exact ipcache.
const fullLength = 128

// fill is how many rows each map holds, by what was written to it and, for
// conntrack, by the last count.
type fill struct {
	mu   sync.Mutex
	rows map[string]int
	// trie tells that the number of rows in ipcache_lpm is known.
	trie bool
}

// set takes the tables that have come into force.
func (f *fill) set(t *projections.Tables, s *dataplane.Stats) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	f.rows["classes"] = t.Classes.Len()
	f.rows["policy"] = t.Policy.Len()
	f.rows["endpoints"] = t.Endpoints.Len() - len(s.Unbound)
	// The two ipcaches are one table. Their proportion changes with the ranges that
	// policies and nodes name, which is rare.
	if c := s.IPCacheLPM; !f.trie || c.Added+c.Deleted > 0 {
		n := 0
		for row := range t.IPCache.All() {
			if row.Key.PrefixLen != fullLength {
				n++
			}
		}
		f.rows["ipcache_lpm"], f.trie = n, true
	}
	f.rows["ipcache"] = t.IPCache.Len() - f.rows["ipcache_lpm"]
}

// doubt makes the next set count anew.
func (f *fill) doubt() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trie = false
}

func (f *fill) setFlows(ipv4, ipv6 int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	f.rows["ct4"], f.rows["ct6"] = ipv4, ipv6
}

func (f *fill) init() {
	if f.rows == nil {
		f.rows = map[string]int{}
	}
}

// counts are the rows by map; a map that was not counted yet is not in it.
func (f *fill) counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.rows)
}
