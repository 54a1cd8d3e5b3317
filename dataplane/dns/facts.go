package dns

import (
	"net/netip"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log/eventpb"
)

// endpointKey names an endpoint as facts do.
type endpointKey struct {
	namespace   string
	name        string
	incarnation uint64
}

// facts is all that the endpoints of the node have learned.
type facts struct {
	endpoints map[endpointKey]*endpointFacts
	names     int
	addresses int
	// backing counts the addresses that rest on a record of the journal, by its number.
	backing map[uint64]int
}

// endpointFacts is what one endpoint has learned.
type endpointFacts struct {
	key   endpointKey
	rules *endpointRules // nil: no rule is about it
	names map[string]*nameFacts
	// by says under which names an address is known.
	by map[netip.Addr][]*nameFacts
}

// nameFacts is what is known of a name.
type nameFacts struct {
	endpoint  *endpointFacts
	name      string
	addresses addressFacts
	chain     []string
	classes   []uint64 // under the rules in force
}

func newFacts() *facts {
	return &facts{endpoints: map[endpointKey]*endpointFacts{}, backing: map[uint64]int{}}
}

// endpoint is the facts of an endpoint, made if there are none.
func (f *facts) endpoint(key endpointKey, r *rules) *endpointFacts {
	e := f.endpoints[key]
	if e == nil {
		e = &endpointFacts{key: key, names: map[string]*nameFacts{}, by: map[netip.Addr][]*nameFacts{}}
		f.endpoints[key] = e
		e.rules = r.byKey[key]
	}
	return e
}

// observe adds what an event says and returns the addresses whose expiry moved.
func (f *facts) observe(e *endpointFacts, seq uint64, o *eventpb.DnsObserved, now clock) []netip.Addr {
	n := e.names[o.GetName()]
	if n == nil {
		n = &nameFacts{endpoint: e, name: o.GetName()}
		n.classes = e.classes(n.name)
		e.names[n.name] = n
		f.names++
	}
	n.chain = o.GetChain()
	var moved []netip.Addr
	for _, a := range o.GetAddresses() {
		addr, ok := netip.AddrFromSlice(a.GetAddress())
		if !ok {
			continue
		}
		x, made := n.addresses.make(addr)
		if made {
			x.seq = seq
			f.backing[seq]++
			e.by[addr] = append(e.by[addr], n)
			f.addresses++
		}
		if expires := now.monotonic(a.GetExpiresUnixNs()); expires >= x.kept {
			x.kept = expires
			f.rest(x, seq)
		}
		if x.kept > x.expires {
			x.extend(x.kept)
		}
		moved = append(moved, addr)
	}
	return moved
}

// rest makes x rest on a record of the journal.
func (f *facts) rest(x *addressFact, seq uint64) {
	if x.seq == seq {
		return
	}
	f.unrest(x)
	x.seq = seq
	f.backing[seq]++
}

func (f *facts) unrest(x *addressFact) {
	if f.backing[x.seq]--; f.backing[x.seq] <= 0 {
		delete(f.backing, x.seq)
	}
}

// forget removes addresses of a name.
func (f *facts) forget(e *endpointFacts, name string, addrs []netip.Addr) {
	n := e.names[name]
	if n == nil {
		return
	}
	for _, addr := range addrs {
		x := n.addresses.of(addr)
		if x == nil {
			continue
		}
		f.unrest(x)
		f.addresses--
		n.addresses.remove(addr)
		if rest := slices.DeleteFunc(e.by[addr], func(o *nameFacts) bool { return o == n }); len(rest) > 0 {
			e.by[addr] = rest
		} else {
			delete(e.by, addr)
		}
	}
	if len(n.addresses) == 0 {
		f.names--
		delete(e.names, name)
	}
	if len(e.names) == 0 && e.rules == nil {
		delete(f.endpoints, e.key)
	}
}

// address is the fact of an address under a name; nil if there is none.
func (e *endpointFacts) address(name string, a netip.Addr) *addressFact {
	if e == nil || e.names[name] == nil {
		return nil
	}
	return e.names[name].addresses.of(a)
}

// classes of a name, under the rules in force.
func (e *endpointFacts) classes(name string) []uint64 {
	if e.rules == nil {
		return nil
	}
	return e.rules.classes.of([]byte(name))
}

// row is what the map `fqdn` has to say of an address; false if nothing. Classes that
// do not fit are those that expire first; their number is unfit.
func (e *endpointFacts) row(addr netip.Addr) (v abi.FQDNValue, unfit int, ok bool) {
	if by := e.by[addr]; len(by) == 1 && len(by[0].classes) == 1 { // nearly always
		v.Class[0], v.ExpiresSeconds[0] = by[0].classes[0], by[0].addresses.of(addr).at
		return v, 0, true
	}
	type pair struct {
		class   uint64
		expires uint32
	}
	var buf [2 * abi.FQDNPairs]pair
	pairs := buf[:0]
	for _, n := range e.by[addr] {
		at := n.addresses.of(addr).at
		for _, class := range n.classes {
			if i := slices.IndexFunc(pairs, func(p pair) bool { return p.class == class }); i < 0 {
				pairs = append(pairs, pair{class, at})
			} else {
				pairs[i].expires = max(pairs[i].expires, at)
			}
		}
	}
	if len(pairs) > abi.FQDNPairs {
		slices.SortFunc(pairs, func(a, b pair) int {
			if a.expires != b.expires {
				return int(int64(b.expires) - int64(a.expires))
			}
			if a.class < b.class {
				return -1
			}
			return 1
		})
		unfit = len(pairs) - abi.FQDNPairs
		pairs = pairs[:abi.FQDNPairs]
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		if a.class < b.class {
			return -1
		}
		return 1
	})
	for i, p := range pairs {
		v.Class[i], v.ExpiresSeconds[i] = p.class, p.expires
	}
	return v, unfit, len(pairs) > 0
}
