//go:build guest

package dns

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/internal/testns"
)

// The machine's clock is set while the proxy runs: what is open stays open for its TTL,
// closes after it, and a new answer opens it again.
func TestClockSetUnderTheProxy(t *testing.T) {
	w := newTown(t)
	short, server := site(301), w.kubeDNS.addr[0]
	w.resolves(w.client, server, "n1.domain.com", site(1))
	var set time.Duration
	move := func(by time.Duration) {
		t.Helper()
		to := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &to); err != nil {
			t.Fatal(err)
		}
		set += by
	}
	defer func() { move(-set) }()
	for i, by := range []time.Duration{3 * time.Hour, -7 * time.Hour} {
		w.resolves(w.client, server, "short.domain.com", short)
		move(by)
		for _, a := range site(1) {
			w.reaches(w.client, a)
		}
		for _, a := range short {
			w.eventually("the address closes after its TTL", func(context.Context) error { return closed(w.client, a) })
		}
		for family, a := range short {
			again := w.opens(w.client, w.kubeDNS.addr[family], a)
			if err := errors.Join(testns.RoundTrip(again, "open again", limit), again.Close()); err != nil {
				t.Fatalf("after the clock was set by %s: %v", by, err)
			}
		}
		w.resolves(w.client, server, fmt.Sprintf("n%d.domain.com", 2+i), site(2+i))
		for _, a := range site(2 + i) {
			w.reaches(w.client, a)
			w.dropped(w.other, a)
		}
		w.rejected(w.client, server, "n9.example.com", "REFUSED")
		w.equal()
	}
	// Both processes start anew while it is behind.
	w.agent.Kill()
	w.killProxy()
	w.start()
	w.proxyPID()
	for _, a := range site(1) {
		w.reaches(w.client, a)
	}
	w.equal()
}
