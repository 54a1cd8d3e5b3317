package log

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Leaf is the SHA-256 of an event's bytes as stored.
func Leaf(event []byte) Hash { return sha256.Sum256(event) }

// Next is the chain value after a revision: SHA-256(prev || leaf). The chain
// value of revision 0 is the zero Hash.
func Next(prev, leaf Hash) Hash {
	var b [2 * sha256.Size]byte
	copy(b[:], prev[:])
	copy(b[sha256.Size:], leaf[:])
	return sha256.Sum256(b[:])
}

// String is the hash as 64 lower-case hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is the zero Hash, the chain of the empty log.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText implements encoding.TextMarshaler, as String.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler, as ParseHash.
func (h *Hash) UnmarshalText(text []byte) (err error) {
	*h, err = ParseHash(string(text))
	return err
}

// ParseHash is the inverse of Hash.String. Upper-case digits are taken too.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != hex.EncodedLen(len(h)) {
		return Hash{}, fmt.Errorf("hash %.80q: %d characters, want %d hexadecimal digits", s, len(s), hex.EncodedLen(len(h)))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return Hash{}, fmt.Errorf("hash %q: %w", s, err)
	}
	return h, nil
}
