package projections

import (
	"slices"

	"github.com/varve-net/varve/policy"
)

// asksDNS tells whether the rule looks at the names that are asked for.
func (r *rule) asksDNS() bool {
	return r.from != nil && slices.ContainsFunc(r.from.Ports, func(p policy.Port) bool { return p.DNS != nil })
}

// dnsAt is the names that peers of class c, or those of no class if it is nil, may
// be asked for at a node; nil if what is sent there is not looked at. As in Cilium:
//
//   - One rule with DNS rules for the port is enough for the questions to be looked
//     at, whatever other rules allow, and a plain one for more ports changes nothing.
//   - A name may be asked for if any rule for this very port and peer says so. One
//     without DNS rules says so of every name.
//
// The rules for every peer count for a class too. So of the rows that a packet
// finds, by its class and by ClassAny, that of the class has the whole answer if it
// has one.
func (t *table) dnsAt(c *class, n node) *policy.DNSRules {
	if !t.asksDNS || n.bits != 16 {
		return nil
	}
	var names []policy.FQDNSelector
	asked, plain := false, false
	for _, r := range t.rules {
		if r.deny || r.from == nil {
			continue
		}
		for i := range r.from.Ports {
			switch p := &r.from.Ports[i]; {
			case !t.isPort(r, p, c, n):
			case p.DNS == nil:
				plain = true
			default:
				asked = true
				names = append(names, p.DNS.Names...)
			}
		}
	}
	if !asked {
		return nil
	}
	every := slices.IndexFunc(names, policy.FQDNSelector.IsEverything)
	switch {
	case every >= 0:
		names = names[every : every+1]
	case plain:
		names = []policy.FQDNSelector{policy.EveryFQDN}
	}
	slices.SortFunc(names, policy.FQDNSelector.Compare)
	return &policy.DNSRules{Names: slices.Compact(names)}
}

// isPort tells whether p, of rule r, is the single port of node n for peers of c.
func (t *table) isPort(r *rule, p *policy.Port, c *class, n node) bool {
	switch {
	case p.Protocol != n.protocol:
		return false
	case p.Name == "":
		return p.First == n.port && p.Last == n.port && (r.any || c != nil && r.takes(c))
	}
	return c != nil && slices.ContainsFunc(r.named, func(key string) bool {
		it := t.scope.items[key]
		return it.name == p.Name && it.protocol == p.Protocol && slices.Contains(c.ports(key), n.port)
	})
}
