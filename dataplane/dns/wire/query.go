package wire

import (
	"encoding/binary"
	"errors"
)

// Why a message is no query that can be forwarded.
var (
	// ErrIgnore is for what must not be answered: it has no header, or is itself
	// an answer, so that two servers could go on answering each other.
	ErrIgnore = errors.New("no DNS query")
	// ErrFormat is for what breaks the format; the answer is FORMERR.
	ErrFormat = errors.New("malformed DNS query")
	// ErrUnsupported is for operations and zone transfers; the answer is NOTIMP.
	ErrUnsupported = errors.New("DNS operation that is not forwarded")
)

// Codes of an answer (RFC 1035 section 4.1.1).
const (
	Success        = 0
	FormErr        = 1
	ServFail       = 2
	NXDomain       = 3
	NotImplemented = 4
	Refused        = 5
)

// Types of records that mean something here.
const (
	TypeA     uint16 = 1
	TypeCNAME uint16 = 5
	TypeAAAA  uint16 = 28
	TypeOPT   uint16 = 41
	TypeTSIG  uint16 = 250
	TypeIXFR  uint16 = 251
	TypeAXFR  uint16 = 252
	TypeANY   uint16 = 255

	ClassIN uint16 = 1
)

// Bits of the header's second word.
const (
	flagResponse  uint16 = 1 << 15
	maskOpcode    uint16 = 15 << 11
	flagAuthority uint16 = 1 << 10
	flagTruncated uint16 = 1 << 9
	flagRecursion uint16 = 1 << 8
	flagAvailable uint16 = 1 << 7
	flagZero      uint16 = 1 << 6
	flagChecking  uint16 = 1 << 4
	maskRCode     uint16 = 15
)

// MinUDP is the size of an answer that every client takes over UDP.
const MinUDP = 512

// Query is one question that may be forwarded.
type Query struct {
	ID    uint16
	Type  uint16
	Class uint16
	// Name is what is asked, in presentation form and lower case. The bytes are
	// valid until the next Parse.
	Name []byte
	// UDPSize is the longest answer that the client takes over UDP, at least MinUDP.
	UDPSize int
	EDNS    bool

	flags uint16
	end   int // of the question
	do    bool
}

// Parse checks a message and fills q. The error is one of ErrIgnore, ErrFormat
// and ErrUnsupported; but for ErrIgnore, q is good for AppendError all the same.
func (q *Query) Parse(msg []byte) error {
	*q = Query{Name: q.Name[:0], UDPSize: MinUDP}
	if len(msg) < headerSize {
		return ErrIgnore
	}
	q.ID = binary.BigEndian.Uint16(msg)
	q.flags = binary.BigEndian.Uint16(msg[2:])
	if q.flags&flagResponse != 0 {
		return ErrIgnore
	}
	if q.flags&maskOpcode != 0 {
		return ErrUnsupported
	}
	if binary.BigEndian.Uint16(msg[4:]) != 1 || binary.BigEndian.Uint32(msg[6:]) != 0 {
		return ErrFormat
	}
	name, off, ok := appendName(q.Name, msg, headerSize)
	q.Name = name
	if !ok || off+4 > len(msg) {
		return ErrFormat
	}
	q.Type, q.Class = binary.BigEndian.Uint16(msg[off:]), binary.BigEndian.Uint16(msg[off+2:])
	q.end = off + 4
	if err := q.additional(msg, q.end, int(binary.BigEndian.Uint16(msg[10:]))); err != nil {
		return err
	}
	switch q.Type {
	case TypeIXFR, TypeAXFR:
		return ErrUnsupported
	case TypeOPT, TypeTSIG, 0:
		return ErrFormat
	}
	return nil
}

// additional checks the n records that follow the question.
func (q *Query) additional(msg []byte, off, n int) error {
	for i := range n {
		r, next, ok := readRecord(msg, off)
		if !ok || r.typ == TypeTSIG && i != n-1 {
			return ErrFormat
		}
		if r.typ == TypeOPT {
			// RFC 6891 section 6.1.1: once, and owned by the root.
			if q.EDNS || msg[off] != 0 || !optionsFit(msg[r.data:next]) {
				return ErrFormat
			}
			q.EDNS = true
			q.UDPSize = max(MinUDP, int(r.class))
			q.do = r.ttl&(1<<15) != 0
		}
		off = next
	}
	if off != len(msg) {
		return ErrFormat
	}
	return nil
}

// optionsFit checks that the options of an OPT record fill it (RFC 6891 section 6.1.2).
func optionsFit(data []byte) bool {
	for len(data) > 0 {
		if len(data) < 4 {
			return false
		}
		n := 4 + int(binary.BigEndian.Uint16(data[2:]))
		if n > len(data) {
			return false
		}
		data = data[n:]
	}
	return true
}

// record is the frame of a resource record.
type record struct {
	typ   uint16
	class uint16
	ttl   uint32
	data  int // offset of the data, which ends where the next record begins
}

func readRecord(msg []byte, off int) (r record, next int, ok bool) {
	off, ok = skipName(msg, off)
	if !ok || off+10 > len(msg) {
		return r, 0, false
	}
	r = record{
		typ: binary.BigEndian.Uint16(msg[off:]), class: binary.BigEndian.Uint16(msg[off+2:]),
		ttl: binary.BigEndian.Uint32(msg[off+4:]), data: off + 10,
	}
	next = r.data + int(binary.BigEndian.Uint16(msg[off+8:]))
	return r, next, next <= len(msg)
}

// Extended errors (RFC 8914) that explain a refusal to clients that show them.
const (
	NoExtended      = -1
	ExtendedOther   = 0
	ExtendedTimeout = 22 // no reachable authority
	ExtendedBlocked = 18 // prohibited
)

// AppendError appends an answer without records to the query that q was parsed
// from. Recursion is said to be available, as the client's resolver would say. extended is an
// extended error with its text for clients that have EDNS, or NoExtended.
func (q *Query) AppendError(dst, query []byte, rcode, extended int, text string) []byte {
	flags := flagResponse | flagAvailable | q.flags&(maskOpcode|flagRecursion|flagChecking) | uint16(rcode)&maskRCode
	questions, extra := uint16(0), uint16(0)
	if q.end > 0 {
		questions = 1
	}
	if q.EDNS {
		extra = 1
	}
	dst = binary.BigEndian.AppendUint16(dst, q.ID)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	for _, n := range [4]uint16{questions, 0, 0, extra} {
		dst = binary.BigEndian.AppendUint16(dst, n)
	}
	if questions > 0 {
		dst = append(dst, query[headerSize:q.end]...)
	}
	if !q.EDNS {
		return dst
	}
	dst = append(dst, 0)
	dst = binary.BigEndian.AppendUint16(dst, TypeOPT)
	dst = binary.BigEndian.AppendUint16(dst, ourUDPSize)
	ttl := uint32(0)
	if q.do {
		ttl = 1 << 15
	}
	dst = binary.BigEndian.AppendUint32(dst, ttl)
	if extended == NoExtended {
		return binary.BigEndian.AppendUint16(dst, 0)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(6+len(text)))
	dst = binary.BigEndian.AppendUint16(dst, 15) // option EDE
	dst = binary.BigEndian.AppendUint16(dst, uint16(2+len(text)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(extended))
	return append(dst, text...)
}

// ourUDPSize is what DNS Flag Day 2020 recommends: it never fragments.
const ourUDPSize = 1232

// Question returns the bytes of the question: name, type, class.
func (q *Query) Question(query []byte) []byte { return query[headerSize:q.end] }

// Length is that of header and question, which is all that AppendError and
// Question read of a query.
func (q *Query) Length() int { return max(q.end, headerSize) }
