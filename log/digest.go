package log

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// Digest is the sum, modulo 2^256, of the hashes of a set of rows. It does not
// depend on the order of the rows, and adding or removing one costs the same
// however many there are. The zero value is the digest of no rows.
//
// It finds replicas that diverged and tables that drifted. It is no signature:
// who may choose rows freely can, with effort, build two sets of equal sum. What
// authenticates the past is the hash chain.
type Digest struct {
	limbs [4]uint64 // least significant first
}

// RowHash is what a row adds to a digest:
// SHA-256(len(table) || table || len(key) || key || row), lengths as uvarint, so
// that no two (table, key, row) share their bytes. Key and row are canonical:
// equal rows have equal bytes.
func RowHash(table string, key, row []byte) Hash {
	var stack [512]byte
	b := binary.AppendUvarint(stack[:0], uint64(len(table)))
	b = append(b, table...)
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = append(b, row...)
	return sha256.Sum256(b)
}

// Add adds a row's hash.
func (d *Digest) Add(row Hash) {
	var carry uint64
	for i := range d.limbs {
		d.limbs[i], carry = bits.Add64(d.limbs[i], limb(&row, i), carry)
	}
}

// Remove takes away the hash of a row that was added.
func (d *Digest) Remove(row Hash) {
	var borrow uint64
	for i := range d.limbs {
		d.limbs[i], borrow = bits.Sub64(d.limbs[i], limb(&row, i), borrow)
	}
}

// Sum is the digest as a big-endian number.
func (d *Digest) Sum() Hash {
	var h Hash
	for i, l := range d.limbs {
		binary.BigEndian.PutUint64(h[len(h)-8*(i+1):], l)
	}
	return h
}

func limb(h *Hash, i int) uint64 { return binary.BigEndian.Uint64(h[len(h)-8*(i+1):]) }
