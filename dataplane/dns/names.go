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

// Names lists what is known, by endpoint and name.
func (p *Proxy) Names() []Name {
	k := p.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock()
	var out []Name
	for key, e := range k.facts.endpoints {
		for _, n := range e.names {
			x := Name{Namespace: key.namespace, Endpoint: key.name, Name: n.name, Chain: n.chain, Selected: len(n.classes) > 0}
			for a, f := range n.addresses {
				x.Addresses = append(x.Addresses, NameAddress{a, now.unix(f.expires)})
			}
			slices.SortFunc(x.Addresses, func(a, b NameAddress) int { return a.Addr.Compare(b.Addr) })
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b Name) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Name, b.Name))
	})
	return out
}
