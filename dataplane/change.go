package dataplane

import (
	"maps"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// change is the difference between what the maps have and what they should have.
type change struct {
	have, want *rows
	// part: have and want hold only the endpoints and prefixes that may differ, and
	// what differs in the two other maps is told by classes and policy.
	part    bool
	classes *projections.Changes[abi.ClassKey, abi.ClassValue]
	policy  *projections.Changes[abi.PolicyKey, abi.PolicyValue]

	goneEndpoints []abi.EndpointKey
	// turned are endpoints that stay and whose policy reference changes; renamed
	// those whose identity does.
	turned, renamed []abi.EndpointKey
	// moved are prefixes, of have or want, that resolve to another peer, with
	// the peers before and after.
	moved map[prefix]move

	// flowsOf are the addresses whose flows must be judged again.
	flowsOf  []abi.Addr
	allFlows bool
}

type move struct{ before, after uint64 }

func newChange(have, want *rows) *change {
	c := &change{have: have, want: want}
	c.compareEndpoints()
	c.comparePrefixes(newResolver(have.prefixes), newResolver(want.prefixes))
	return c
}

func (c *change) compareEndpoints() {
	involved := func(v abi.EndpointValue) { c.flowsOf = append(c.flowsOf, addresses(v)...) }
	for k, old := range c.have.endpoints {
		v, stays := c.want.endpoints[k]
		if stays && old == v {
			continue
		}
		involved(old)
		if !stays {
			c.goneEndpoints = append(c.goneEndpoints, k)
			continue
		}
		involved(v)
		if old.Egress != v.Egress || old.Ingress != v.Ingress {
			c.turned = append(c.turned, k)
		}
		if old.Identity != v.Identity {
			c.renamed = append(c.renamed, k)
		}
	}
	for k, v := range c.want.endpoints {
		if _, there := c.have.endpoints[k]; !there {
			involved(v)
		}
	}
}

// comparePrefixes resolves what differs by all prefixes before and after.
func (c *change) comparePrefixes(before, after resolver) {
	differ := make(map[prefix]bool)
	for p, old := range c.have.prefixes {
		if v, ok := c.want.prefixes[p]; !ok || v != old {
			differ[p] = true
		}
	}
	for p := range c.want.prefixes {
		if _, ok := c.have.prefixes[p]; !ok {
			differ[p] = true
		}
	}
	if len(differ) == 0 {
		return
	}
	c.moved = make(map[prefix]move)
	for p := range differ {
		if p.PrefixLen == fullLength {
			c.flowsOf = append(c.flowsOf, p.Addr)
		} else {
			c.allFlows = true
		}
		if m := (move{before.peer(p), after.peer(p)}); m.before != m.after {
			c.moved[p] = m
		}
		// A prefix of both families resolves differently for each.
		if p.PrefixLen < allIPv4.PrefixLen && contains(p, allIPv4) {
			if m := (move{before.peer(allIPv4), after.peer(allIPv4)}); m.before != m.after {
				c.moved[allIPv4] = m
			}
		}
	}
}

// mixed tells whether policy and peers change at once.
func (c *change) mixed() bool { return len(c.turned) > 0 && len(c.moved)+len(c.renamed) > 0 }

// stayingEndpoints are the wanted rows of endpoints that have one.
func (c *change) stayingEndpoints() map[abi.EndpointKey]abi.EndpointValue {
	staying := make(map[abi.EndpointKey]abi.EndpointValue)
	for k, v := range c.want.endpoints {
		if _, ok := c.have.endpoints[k]; ok {
			staying[k] = v
		}
	}
	return staying
}

// prefixPeak is the most rows that the exact map and the trie hold at once.
func (c *change) prefixPeak(t *transition) (exact, trie int) {
	all := maps.Clone(c.have.prefixes)
	maps.Copy(all, c.want.prefixes)
	if t != nil {
		maps.Copy(all, t.prefixes)
	}
	for p := range all {
		if p.PrefixLen == fullLength {
			exact++
		}
	}
	return exact, len(all) - exact
}

func (c *change) stats() Stats {
	s := Stats{
		Endpoints:  count(c.have.endpoints, c.want.endpoints),
		AllFlows:   c.allFlows,
		Transition: c.mixed(),
	}
	if c.part {
		s.Classes, s.Policy = countChanges(c.classes), countChanges(c.policy)
	} else {
		s.Classes, s.Policy = count(c.have.classes, c.want.classes), count(c.have.policy, c.want.policy)
	}
	haveExact, haveTrie := split(c.have.prefixes)
	wantExact, wantTrie := split(c.want.prefixes)
	s.IPCache, s.IPCacheLPM = count(haveExact, wantExact), count(haveTrie, wantTrie)
	return s
}

func split(ps map[prefix]abi.IPCacheValue) (exact, trie map[prefix]abi.IPCacheValue) {
	exact, trie = make(map[prefix]abi.IPCacheValue), make(map[prefix]abi.IPCacheValue)
	for p, v := range ps {
		if p.PrefixLen == fullLength {
			exact[p] = v
		} else {
			trie[p] = v
		}
	}
	return exact, trie
}

func count[K, V comparable](have, want map[K]V) Changes {
	var n Changes
	for k, v := range want {
		if old, ok := have[k]; !ok {
			n.Added++
		} else if old != v {
			n.Updated++
		}
	}
	n.Deleted = len(have) + n.Added - len(want)
	return n
}

func countChanges[K, V comparable](d *projections.Changes[K, V]) Changes {
	return Changes{Added: len(d.Added), Updated: len(d.Changed), Deleted: len(d.Removed)}
}

func sorted(keys []abi.EndpointKey) []abi.EndpointKey {
	return slices.SortedFunc(slices.Values(keys), func(a, b abi.EndpointKey) int { return int(a.Ifindex) - int(b.Ifindex) })
}
