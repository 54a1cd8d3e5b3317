package dns

import (
	"cmp"
	"net/netip"
	"slices"
)

// Name is a name that an endpoint asked for, for people.
type Name struct {
	Namespace string
	Endpoint  string
	Name      string
	Addresses []NameAddress // ascending
	Chain     []string
	// Selected tells whether some rule opens the addresses of this name.
	Selected bool
}

// NameAddress is an address of a Name.
type NameAddress struct {
	Addr          netip.Addr
	ExpiresUnixNS int64
}

// Of limits what Names lists; the zero Of is all.
type Of struct {
	Namespace, Endpoint string
	// Addr is the only address that is listed, with the names that have it.
	Addr netip.Addr
}

// Names lists what is known, by endpoint and name.
func (p *Proxy) Names(of Of) []Name {
	k := p.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock()
	var out []Name
	for key, e := range k.facts.endpoints {
		switch {
		case of.Endpoint != "" && (key.namespace != of.Namespace || key.name != of.Endpoint):
		case of.Addr.IsValid():
			for _, n := range e.by[of.Addr] {
				out = append(out, n.show(of.Addr, now))
			}
		default:
			for _, n := range e.names {
				out = append(out, n.show(netip.Addr{}, now))
			}
		}
	}
	slices.SortFunc(out, func(a, b Name) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// show is the name for people, with all its addresses or only one.
func (n *nameFacts) show(only netip.Addr, now clock) Name {
	key := n.endpoint.key
	x := Name{Namespace: key.namespace, Endpoint: key.name, Name: n.name, Chain: n.chain, Selected: len(n.classes) > 0}
	for _, f := range n.addresses {
		if !only.IsValid() || f.addr == only {
			x.Addresses = append(x.Addresses, NameAddress{f.addr, now.unix(f.expires)})
		}
	}
	return x
}
