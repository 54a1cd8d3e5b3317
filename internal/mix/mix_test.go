package mix

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

// mixes are those that benchmarks quote, each with the digest of its events: the
// figures of two versions compare only if these are the same.
var mixes = map[string]struct {
	of   func(int) Mix
	want string
}{
	"standard": {Standard, "f677cac4a13884b13ac2c41e39943bcf437778ff4b186ef68ce4795d219caf2c"},
	"whole":    {Whole, "17599d61c2e6d041dbe4e590fd37b46d1e93c799d9edb4eb4b050602ab2bd87d"},
}

func TestTheMixIsCommitted(t *testing.T) {
	for name, m := range mixes {
		h := sha256.New()
		for b, err := range m.of(20_000).All() {
			if err != nil {
				t.Fatal(err)
			}
			h.Write(b)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != m.want {
			t.Errorf("the %s mix is %s, was %s: with another mix, measure everything anew", name, got, m.want)
		}
	}
}

func TestEveryEventIsApplied(t *testing.T) {
	for name, of := range mixes {
		m := of.of(20_000)
		s := fsm.New(m.Cluster)
		for b, err := range m.All() {
			if err != nil {
				t.Fatal(err)
			}
			if _, r, err := s.Apply(b); err != nil || r.Outcome != log.OutcomeApplied {
				t.Fatalf("%s: revision %d: %+v, %v", name, s.View().Revision(), r, err)
			}
		}
		if got := s.View().Revision(); got != 20_000 {
			t.Errorf("%s: revision %d, want 20000", name, got)
		}
	}
}

// A history that is gone on with is the one that was begun.
func TestFrom(t *testing.T) {
	m := Whole(15_000)
	all := map[string]bool{}
	for b, err := range m.All() {
		if err != nil {
			t.Fatal(err)
		}
		all[string(b)] = true
	}
	rest := 0
	for e, err := range m.From(14_000) {
		if err != nil {
			t.Fatal(err)
		}
		b, err := log.Marshal(e)
		if err != nil || !all[string(b)] {
			t.Fatalf("%v: %v is not of the history", err, e)
		}
		rest++
	}
	if rest != 1000 {
		t.Errorf("%d events, want 1000", rest)
	}
}
