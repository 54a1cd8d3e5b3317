package dns

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestManyAtOnce: what comes due at the same time is refreshed and collected in pieces,
// and all of it is.
func TestManyAtOnce(t *testing.T) {
	n := newNode(t, nil)
	const many = 2*max(refreshAtOnce, removeAtOnce) + 10
	name := func(i int) (string, netip.Addr) {
		return fmt.Sprintf("n%d.domain.com.", i), netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
	}
	var w waiter
	for i := range many {
		text, a := name(i)
		n.keeper.Learn(observation(podID, text, 60, a), &w)
	}
	n.keeper.batch(false)
	if w.told != many || w.err != nil || n.journal.Last() != many {
		t.Fatalf("told %d times, %d facts: %v", w.told, n.journal.Last(), w.err)
	}
	for i := range many {
		text, a := name(i)
		if n.learn(observation(podID, text, 600, a)) {
			t.Fatalf("%s had to wait", text)
		}
	}
	pieces := 1
	for ; n.keeper.batch(true); pieces++ {
		if got := n.journal.Last(); got != uint64(many+pieces*refreshAtOnce) {
			t.Fatalf("%d facts after %d pieces", got, pieces)
		}
	}
	if got := n.journal.Last(); got != 2*many || pieces != 3 {
		t.Fatalf("%d facts after %d pieces, want %d", got, pieces, 2*many)
	}
	for i := range many {
		text, a := name(i)
		n.expire(text, a, time.Second)
	}
	n.put(n.keeper.collect(context.Background()))
	if got := n.journal.Last(); got != 3*many || n.keeper.facts.names > 0 {
		t.Errorf("%d facts, want %d; %d names are left", got, 3*many, n.keeper.facts.names)
	}
	for i := range many {
		if text, a := name(i); n.row(podID, a) != nil {
			t.Errorf("%s is open", text)
		}
	}
}
