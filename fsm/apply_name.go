package fsm

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

// Bounds of what endpoints learn from DNS. A name with all its escapes is within
// four times the 255 bytes of RFC 1035.
const (
	maxName    = 4 * 255
	maxChain   = 64
	maxLearned = 65536 // of an endpoint, under all its names
)

// dnsObserved adds addresses to a name of an endpoint that is live.
func (s *State) dnsObserved(c *change, o *eventpb.DnsObserved) error {
	of, err := s.live(c, o.Ref, o.Incarnation)
	if err != nil {
		return err
	}
	endpoint, e := of.key, &of.row
	told, err := nameFacts(c, o)
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	key := nameKey(endpoint, o.Name)
	n := Name{Endpoint: e.Ref, Name: o.Name, Addresses: told, Chain: o.Chain, Revision: c.rev}
	known := 0
	if old, ok := lookup(s.names, key); ok {
		n.Addresses, known = mergeAddresses(old.Addresses, told), len(old.Addresses)
	}
	more := len(n.Addresses) - known
	if s.learned[endpoint]+more > maxLearned {
		return fmt.Errorf("endpoint %s: name %.300s: it has %d addresses of all names, the most is %d", e.Ref, o.Name, s.learned[endpoint], maxLearned)
	}
	s.learned[endpoint] += more
	s.putName(key, n)
	return nil
}

// nameFacts checks an observation and gives its addresses.
func nameFacts(c *change, o *eventpb.DnsObserved) ([]NameAddress, error) {
	if err := checkNames(o.Name, o.Chain); err != nil {
		return nil, err
	}
	if n := len(o.Addresses); n == 0 || n > eventpb.MaxNameAddresses {
		return nil, fmt.Errorf("addresses: %d of them, want 1 to %d", n, eventpb.MaxNameAddresses)
	}
	told := make([]NameAddress, len(o.Addresses))
	for i, x := range o.Addresses {
		a, err := address(x.GetAddress())
		if err != nil {
			return nil, fmt.Errorf("addresses[%d]: %w", i, err)
		}
		if i > 0 && told[i-1].Addr.Compare(a) >= 0 {
			return nil, fmt.Errorf("addresses[%d]: %s after %s, want them ascending", i, a, told[i-1].Addr)
		}
		if x.GetExpiresUnixNs() <= 0 {
			return nil, fmt.Errorf("addresses[%d].expires_unix_ns: %d", i, x.GetExpiresUnixNs())
		}
		told[i] = NameAddress{a, x.GetExpiresUnixNs(), c.rev}
	}
	return told, nil
}

// mergeAddresses is both lists as one. What is in both keeps the later expiry.
func mergeAddresses(known, told []NameAddress) []NameAddress {
	out := make([]NameAddress, 0, len(known)+len(told))
	for len(known) > 0 && len(told) > 0 {
		switch known[0].Addr.Compare(told[0].Addr) {
		case -1:
			out, known = append(out, known[0]), known[1:]
		case 1:
			out, told = append(out, told[0]), told[1:]
		default:
			later := known[0]
			if told[0].ExpiresNS > later.ExpiresNS {
				later = told[0]
			}
			out, known, told = append(out, later), known[1:], told[1:]
		}
	}
	return append(append(out, known...), told...)
}

// dnsCollected takes addresses from a name, and the name with its last. What is not
// there is gone already.
func (s *State) dnsCollected(c *change, o *eventpb.DnsCollected) error {
	of, err := s.live(c, o.Ref, o.Incarnation)
	if err != nil {
		return err
	}
	endpoint, e := of.key, &of.row
	if err := checkNames(o.Name, nil); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Ref, err)
	}
	if n := len(o.Addresses); n == 0 || n > eventpb.MaxNameAddresses {
		return fmt.Errorf("endpoint %s: addresses: %d of them, want 1 to %d", e.Ref, n, eventpb.MaxNameAddresses)
	}
	gone := make([]netip.Addr, len(o.Addresses))
	for i, b := range o.Addresses {
		if gone[i], err = address(b); err != nil {
			return fmt.Errorf("endpoint %s: addresses[%d]: %w", e.Ref, i, err)
		}
		if i > 0 && gone[i-1].Compare(gone[i]) >= 0 {
			return fmt.Errorf("endpoint %s: addresses[%d]: %s after %s, want them ascending", e.Ref, i, gone[i], gone[i-1])
		}
	}
	key := nameKey(endpoint, o.Name)
	old, ok := lookup(s.names, key)
	if !ok {
		return nil
	}
	n := *old
	n.Revision = c.rev
	n.Addresses = slices.DeleteFunc(slices.Clone(n.Addresses), func(a NameAddress) bool {
		_, found := slices.BinarySearchFunc(gone, a.Addr, netip.Addr.Compare)
		return found
	})
	s.learned[endpoint] -= len(old.Addresses) - len(n.Addresses)
	if len(n.Addresses) == 0 {
		s.removeName(key, &n)
		return nil
	}
	s.putName(key, n)
	return nil
}

func (s *State) removeName(key string, n *Name) {
	s.note(Change{Kind: ChangeName, namespace: n.Endpoint.Namespace, name: n.Endpoint.Name, dns: n.Name})
	remove(s, s.names, &s.write.name, key)
}

// forgetNames removes all that an endpoint has learned.
func (s *State) forgetNames(endpoint string) {
	if s.learned[endpoint] == 0 {
		return
	}
	delete(s.learned, endpoint)
	gone := map[string]*Name{}
	var keys []string
	namesOf(s.names, endpoint, func(key string, n *Name) bool {
		gone[key] = n
		keys = append(keys, key)
		return true
	})
	for _, key := range keys {
		s.removeName(key, gone[key])
	}
}

// checkNames checks a name that was asked for and those that it led to.
func checkNames(name string, chain []string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if len(chain) > maxChain {
		return fmt.Errorf("chain: %d names, the most is %d", len(chain), maxChain)
	}
	for i, c := range chain {
		if err := checkName(c); err != nil {
			return fmt.Errorf("chain[%d]: %w", i, err)
		}
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "" || len(name) > maxName:
		return fmt.Errorf("%d bytes, want 1 to %d", len(name), maxName)
	case !strings.HasSuffix(name, "."):
		return errors.New("has no dot at its end")
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || 'A' <= c && c <= 'Z' {
			return fmt.Errorf("byte %d is %#x; want printable ASCII in lower case", i, c)
		}
	}
	return nil
}
