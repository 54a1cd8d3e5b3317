package fsm

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"

	"github.com/varve-net/varve/log"
)

// window is the newest requests of a log, oldest first. They come at the end and go
// at the front, at every event, so they are kept in blocks and not in a tree:
//
//	blocks   [ . . 2 3 4 5 ] [ 6 7 8 9 . . ]
//	             ^ first             ^ end        positions, counted from the first ever
//
// A View has a copy, which shares the blocks: what is before its end is not written
// to again, and what is behind it it never looks at.
type window struct {
	blocks     []*requestBlock // the first holds the position first, if there is one
	first, end uint64
	spare      *requestBlock // to be the next one, if there is one
}

const blockRequests = 256

type requestBlock struct {
	requests [blockRequests]request
	// hashes are what hashed rows add to the digest. Only the State looks at them.
	hashes [blockRequests]log.Hash
}

func (w *window) len() int { return int(w.end - w.first) }

func (w *window) block(position uint64) *requestBlock {
	return w.blocks[position/blockRequests-w.first/blockRequests]
}

func (w *window) at(position uint64) *request {
	return &w.block(position).requests[position%blockRequests]
}

func (w *window) hash(position uint64) *log.Hash {
	return &w.block(position).hashes[position%blockRequests]
}

func (w *window) push(r *request) {
	if w.end%blockRequests == 0 {
		if w.spare == nil {
			w.spare = new(requestBlock)
		}
		w.blocks, w.spare = append(w.blocks, w.spare), nil
	}
	w.end++
	*w.at(w.end - 1) = *r
}

// pop forgets the oldest. Of what is before the position seen a View may have a copy.
func (w *window) pop(seen uint64) {
	if w.first++; w.first%blockRequests == 0 {
		if w.first-blockRequests >= seen {
			w.spare = w.blocks[0]
		}
		w.blocks = w.blocks[1:]
	}
}

// all yields the requests, oldest first.
func (w *window) all() iter.Seq[*request] {
	return func(yield func(*request) bool) {
		for position := w.first; position < w.end; position++ {
			if !yield(w.at(position)) {
				return
			}
		}
	}
}

// fork returns a copy to which another State may push.
func (w *window) fork() window {
	c := *w
	c.blocks, c.spare = slices.Clone(w.blocks), nil
	if last := len(c.blocks) - 1; c.end%blockRequests != 0 {
		b := *c.blocks[last]
		c.blocks[last] = &b
	}
	return c
}

// requestID is an id as it is looked for: comparable, and without a pointer.
type requestID struct {
	hash  uint64
	size  uint8
	bytes [maxRequestID]byte // zero behind size
}

// newRequestID takes an id of at most maxRequestID bytes.
func newRequestID(id string) requestID {
	r := requestID{size: uint8(len(id))}
	copy(r.bytes[:], id)
	r.hash = r.sum()
	return r
}

func (id *requestID) String() string { return string(id.bytes[:id.size]) }

// sum is not made to resist who chooses ids for it to collide: those may append,
// and all that they win is a search through the window.
func (id *requestID) sum() uint64 {
	const odd = 0x9e3779b97f4a7c15 // 2^64 / golden ratio
	h := uint64(id.size)
	for i := 0; i < int(id.size); i += 8 {
		high, low := bits.Mul64(h^binary.LittleEndian.Uint64(id.bytes[i:]), odd)
		h = bits.RotateLeft64(high^low, 23)
	}
	return h * odd
}

// requestIndex finds the requests of a window by their ids: a hash table with open
// addressing and linear probing (Knuth, volume 3, 6.4), at most half full. An
// event looks up, adds and removes one, and this touches a cache line for each. A
// slot holds 31 bits of the id's hash, slotUsed, and 32 bits of the position.
type requestIndex struct {
	slots []uint64 // a power of two of them, or none
	used  int
}

// slotUsed takes the place of the hash's lowest bit.
const (
	slotUsed = 1 << 32
	slotHash = ^uint64(2*slotUsed - 1)
)

func (x *requestIndex) home(slot uint64) int {
	return int(slot >> (64 - bits.Len(uint(len(x.slots)-1))))
}

func (x *requestIndex) after(i int) int { return (i + 1) & (len(x.slots) - 1) }

// find returns the position of the request of an id.
func (x *requestIndex) find(w *window, id *requestID) (uint64, bool) {
	if x.used == 0 {
		return 0, false
	}
	h := id.hash
	for i := x.home(h); x.slots[i] != 0; i = x.after(i) {
		if (x.slots[i]^h)&slotHash != 0 {
			continue
		}
		position := w.first + uint64(uint32(x.slots[i])-uint32(w.first))
		if w.at(position).id == *id {
			return position, true
		}
	}
	return 0, false
}

// add adds an id that is not there.
func (x *requestIndex) add(id *requestID, position uint64) {
	if 2*(x.used+1) > len(x.slots) {
		old := x.slots
		x.slots = make([]uint64, max(64, 2*len(old)))
		for _, slot := range old {
			if slot != 0 {
				x.place(slot)
			}
		}
	}
	x.place(id.hash&slotHash | slotUsed | uint64(uint32(position)))
	x.used++
}

func (x *requestIndex) place(slot uint64) {
	i := x.home(slot)
	for x.slots[i] != 0 {
		i = x.after(i)
	}
	x.slots[i] = slot
}

// remove removes the id of the request at a position. Those behind it that would not
// be found across the gap move up.
func (x *requestIndex) remove(id *requestID, position uint64) {
	want := id.hash&slotHash | slotUsed | uint64(uint32(position))
	gap := x.home(want)
	for x.slots[gap] != want {
		gap = x.after(gap)
	}
	mask := len(x.slots) - 1
	for i := x.after(gap); x.slots[i] != 0; i = x.after(i) {
		if (i-x.home(x.slots[i]))&mask >= (i-gap)&mask {
			x.slots[gap], gap = x.slots[i], i
		}
	}
	x.slots[gap] = 0
	x.used--
}
