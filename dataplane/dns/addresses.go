package dns

import (
	"net/netip"
	"slices"
)

// addressFact is an address of a name.
type addressFact struct {
	addr netip.Addr

	// Times are nanoseconds of the monotonic clock.

	expires int64
	at      uint32 // the same as the maps have it
	kept    int64  // what the journal says of that
	seq     uint64
	live    int64 // when a live connection was last seen after it had expired
}

// extend moves the expiry, and tells whether the maps see it.
func (x *addressFact) extend(expires int64) bool {
	before := x.at
	x.expires, x.at = expires, deadline(expires)
	return x.at != before
}

// addressFacts are the addresses of a name, ascending. Most names have one or two, of
// which a map would be four times as large.
type addressFacts []*addressFact

// find is where an address is, or where it would be put.
func (s addressFacts) find(a netip.Addr) (int, bool) {
	return slices.BinarySearchFunc(s, a, func(x *addressFact, a netip.Addr) int { return x.addr.Compare(a) })
}

// of is the fact of an address; nil if there is none.
func (s addressFacts) of(a netip.Addr) *addressFact {
	if i, ok := s.find(a); ok {
		return s[i]
	}
	return nil
}

// make is the fact of an address, made if there is none.
func (s *addressFacts) make(a netip.Addr) (x *addressFact, made bool) {
	i, ok := s.find(a)
	if !ok {
		*s = slices.Insert(*s, i, &addressFact{addr: a, expires: longAgo, kept: longAgo, live: longAgo})
	}
	return (*s)[i], !ok
}

// remove forgets an address.
func (s *addressFacts) remove(a netip.Addr) {
	if i, ok := s.find(a); ok {
		*s = slices.Delete(*s, i, i+1)
	}
}
