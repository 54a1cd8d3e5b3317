package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
)

var (
	// ErrNotReply is for what answers another question, or none: who waits for the
	// reply goes on waiting.
	ErrNotReply = errors.New("no reply to this question")
	// ErrBadReply is for a reply to the question whose records do not fit together.
	ErrBadReply = errors.New("malformed reply")
)

// maxChain bounds the CNAMEs that are followed; resolvers stop between 8 and 16.
const maxChain = 16

// Address is one address of the name that was asked.
type Address struct {
	Addr netip.Addr
	// TTLSeconds is the least of the record's and of the CNAMEs that lead to it.
	TTLSeconds uint32
}

// Answer is a reply, and the memory to read the next one into.
type Answer struct {
	RCode     int
	Truncated bool
	// Addresses are those to which the name asked leads, directly or over CNAMEs;
	// valid until the next Parse. What else the message holds is not among them.
	Addresses []Address
	// Chain is the names that CNAMEs led over from the one asked, in order.
	Chain [][]byte

	seed   maphash.Seed
	owned  []owned
	names  []byte
	seeded bool
}

// owned is a record of the answer section that may matter.
type owned struct {
	hash       uint64 // of the owner
	start, end int    // of the owner in names
	record
	next int
}

// Parse reads msg as the reply to the question, given in wire form with its type
// and class. The id is for the caller to compare. The error is ErrNotReply or
// ErrBadReply.
func (a *Answer) Parse(msg, question []byte) error {
	if !a.seeded {
		a.seed, a.seeded = maphash.MakeSeed(), true
	}
	a.Addresses, a.Chain, a.owned, a.names = a.Addresses[:0], a.Chain[:0], a.owned[:0], a.names[:0]
	if len(msg) < headerSize || len(question) < 5 {
		return ErrNotReply
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	a.RCode, a.Truncated = int(flags&maskRCode), flags&flagTruncated != 0
	if flags&flagResponse == 0 || flags&maskOpcode != 0 {
		return ErrNotReply
	}
	counts := [4]int{}
	for i := range counts {
		counts[i] = int(binary.BigEndian.Uint16(msg[4+2*i:]))
	}
	if counts[0] == 0 && counts[1] == 0 && a.RCode != Success && a.RCode != NXDomain {
		// Servers that could not read the question leave it out.
		return nil
	}
	end := headerSize + len(question)
	if counts[0] != 1 || end > len(msg) || !sameQuestion(msg[headerSize:end], question) {
		return ErrNotReply
	}
	qtype := binary.BigEndian.Uint16(question[len(question)-4:])
	off, ok := a.answers(msg, end, counts[1], qtype)
	for i := 0; ok && i < counts[2]+counts[3]; i++ {
		_, off, ok = readRecord(msg, off)
	}
	// Servers may cut a truncated message anywhere; what is whole of it counts.
	if !ok && !a.Truncated {
		return ErrBadReply
	}
	if a.RCode == Success && binary.BigEndian.Uint16(question[len(question)-2:]) == ClassIN {
		return a.follow(msg, qtype)
	}
	return nil
}

// sameQuestion compares type and class exactly and the name without case.
func sameQuestion(a, b []byte) bool {
	n := len(b) - 4
	return equalFold(a[:n], b[:n]) && bytes.Equal(a[n:], b[n:])
}

// answers notes the records of the answer section that can lead to an address.
func (a *Answer) answers(msg []byte, off, n int, qtype uint16) (next int, ok bool) {
	for range n {
		r, next, ok := readRecord(msg, off)
		if !ok {
			return 0, false
		}
		if r.class == ClassIN && leads(r.typ, qtype) {
			o := owned{record: r, next: next, start: len(a.names)}
			if a.names, _, ok = appendName(a.names, msg, off); !ok {
				return 0, false
			}
			o.end = len(a.names)
			o.hash = maphash.Bytes(a.seed, a.names[o.start:o.end])
			a.owned = append(a.owned, o)
		}
		off = next
	}
	return off, true
}

// leads tells whether a record of type typ may lead a question of type qtype to
// an address.
func leads(typ, qtype uint16) bool {
	switch typ {
	case TypeCNAME:
		return qtype == TypeA || qtype == TypeAAAA || qtype == TypeANY
	case TypeA, TypeAAAA:
		return qtype == typ || qtype == TypeANY
	}
	return false
}

// follow collects the addresses of the name asked and of what its CNAMEs lead to.
func (a *Answer) follow(msg []byte, qtype uint16) error {
	if len(a.owned) == 0 {
		return nil
	}
	start := len(a.names)
	var ok bool
	if a.names, _, ok = appendName(a.names, msg, headerSize); !ok {
		return ErrBadReply
	}
	asked := a.names[start:]
	name := asked
	ttl := ^uint32(0)
	for range maxChain {
		hash := maphash.Bytes(a.seed, name)
		var alias *owned
		for i := range a.owned {
			o := &a.owned[i]
			if o.hash != hash || !bytes.Equal(a.names[o.start:o.end], name) {
				continue
			}
			if o.typ == TypeCNAME {
				if alias == nil {
					alias = o
				}
				continue
			}
			addr, ok := netip.AddrFromSlice(msg[o.data:o.next])
			if !ok || addr.Is4() != (o.typ == TypeA) {
				return ErrBadReply
			}
			a.Addresses = append(a.Addresses, Address{Addr: addr, TTLSeconds: min(ttl, lifetime(o.ttl))})
		}
		if alias == nil {
			return nil
		}
		ttl = min(ttl, lifetime(alias.ttl))
		at := len(a.names)
		names, next, ok := appendName(a.names, msg, alias.data)
		if !ok || next != alias.next {
			return ErrBadReply
		}
		a.names = names
		name = names[at:]
		if a.passed(name, asked) {
			return nil // a loop
		}
		a.Chain = append(a.Chain, name) // append never moves what was there
	}
	return nil // longer than any resolver follows
}

// passed tells whether a name was met before.
func (a *Answer) passed(name, asked []byte) bool {
	return bytes.Equal(name, asked) || slices.ContainsFunc(a.Chain, func(n []byte) bool { return bytes.Equal(n, name) })
}

// lifetime is a TTL as RFC 2181 section 8 reads it: with the top bit set it is 0.
func lifetime(ttl uint32) uint32 {
	if ttl>>31 != 0 {
		return 0
	}
	return ttl
}

// Restore makes a reply that Parse took the answer to the client's own query:
// its id, and its question as it spelled it (clients that mix cases to be hard to
// lie to compare them).
func Restore(msg []byte, id uint16, question []byte) {
	binary.BigEndian.PutUint16(msg, id)
	if binary.BigEndian.Uint16(msg[4:]) == 1 {
		copy(msg[headerSize:], question)
	}
}

// SetID gives a message an id.
func SetID(msg []byte, id uint16) { binary.BigEndian.PutUint16(msg, id) }

// ID is the id of a message, which has a header.
func ID(msg []byte) (uint16, bool) {
	if len(msg) < headerSize {
		return 0, false
	}
	return binary.BigEndian.Uint16(msg), true
}
