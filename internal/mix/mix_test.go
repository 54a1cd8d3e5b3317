package mix

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

func TestEveryEventIsApplied(t *testing.T) {
	m := Standard(20_000)
	s := fsm.New(m.Cluster)
	for b, err := range m.All() {
		if err != nil {
			t.Fatal(err)
		}
		if _, r, err := s.Apply(b); err != nil || r.Outcome != log.OutcomeApplied {
			t.Fatalf("revision %d: %+v, %v", s.View().Revision(), r, err)
		}
	}
	if got := s.View().Revision(); got != 20_000 {
		t.Errorf("revision %d, want 20000", got)
	}
}

// The figures of two versions compare only if the events are the same.
func TestTheMixIsCommitted(t *testing.T) {
	const want = "f677cac4a13884b13ac2c41e39943bcf437778ff4b186ef68ce4795d219caf2c"
	h := sha256.New()
	for b, err := range Standard(20_000).All() {
		if err != nil {
			t.Fatal(err)
		}
		h.Write(b)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		t.Errorf("the mix is %s, was %s: with another mix, measure everything anew", got, want)
	}
}
