package log

import (
	"crypto/sha256"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestChain(t *testing.T) {
	leaf := Leaf([]byte("event"))
	if want := Hash(sha256.Sum256([]byte("event"))); leaf != want {
		t.Errorf("leaf %s, want %s", leaf, want)
	}
	prev := Next(Hash{}, leaf)
	if want := Hash(sha256.Sum256(slices.Concat(make([]byte, 32), leaf[:]))); prev != want {
		t.Errorf("first chain value %s, want %s", prev, want)
	}
	if want := Hash(sha256.Sum256(slices.Concat(prev[:], leaf[:]))); Next(prev, leaf) != want {
		t.Errorf("second chain value %s, want %s", Next(prev, leaf), want)
	}
}

func TestParseHash(t *testing.T) {
	h := Leaf(nil)
	for _, s := range []string{h.String(), strings.ToUpper(h.String())} {
		if got, err := ParseHash(s); err != nil || got != h {
			t.Errorf("%s: %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", h.String()[1:], h.String() + "00", "x" + h.String()[1:]} {
		if got, err := ParseHash(s); err == nil {
			t.Errorf("%q: taken as %s", s, got)
		}
	}
	var got Hash
	if text, err := h.MarshalText(); err != nil || got.UnmarshalText(text) != nil || got != h {
		t.Errorf("through text: %s, %v", got, err)
	}
}

func TestCorruptError(t *testing.T) {
	err := error(&CorruptError{Revision: 5, What: "chain"})
	if !errors.Is(err, ErrCorrupt) || err.Error() != "corrupt: revision 5: chain" {
		t.Errorf("%v", err)
	}
}

// The digest against big.Int.
func TestDigestIsTheSumModulo2To256(t *testing.T) {
	mod := new(big.Int).Lsh(big.NewInt(1), 256)
	rapid.Check(t, func(t *rapid.T) {
		var d Digest
		sum := new(big.Int)
		for _, b := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 33, 33), 0, 20).Draw(t, "rows") {
			row := Hash(b[1:])
			if n := new(big.Int).SetBytes(row[:]); b[0]%2 == 0 {
				d.Add(row)
				sum.Add(sum, n)
			} else {
				d.Remove(row)
				sum.Sub(sum, n)
			}
		}
		sum.Mod(sum, mod)
		if want := Hash(sum.FillBytes(make([]byte, 32))); d.Sum() != want {
			t.Fatalf("%s, want %s", d.Sum(), want)
		}
	})
	var d Digest
	ones := Hash{}
	for i := range ones {
		ones[i] = 0xff
	}
	d.Add(ones)
	d.Add(Hash{31: 1})
	if !d.Sum().IsZero() {
		t.Errorf("2^256-1 plus 1 is %s", d.Sum())
	}
}

func TestRowHashSeparatesItsParts(t *testing.T) {
	if RowHash("a", []byte("bc"), []byte("d")) == RowHash("ab", []byte("c"), []byte("d")) ||
		RowHash("a", []byte("b"), []byte("cd")) == RowHash("a", []byte("bc"), []byte("d")) {
		t.Error("rows that differ in where table, key and row end have one hash")
	}
	if got, want := RowHash("t", []byte("k"), []byte("row")), Hash(sha256.Sum256([]byte("\x01t\x01krow"))); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
