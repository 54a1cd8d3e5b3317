package relay

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/varve-net/varve/dataplane/dns/sock"
	"github.com/varve-net/varve/dataplane/dns/wire"
)

// knows is a Learner that knows all.
type knows struct{}

func (knows) Known(*Observation) bool    { return true }
func (knows) Learn(*Observation, Waiter) {}

// onWay is a relay's worker and what one question and its answer are, without anybody
// who answers.
type onWay struct {
	b        *bench
	datagram sock.Datagram
	query    []byte // with the client's id
	reply    []byte
}

func newOnWay(t testing.TB) *onWay {
	t.Helper()
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 53)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	server := l.LocalAddr().(*net.UDPAddr).AddrPort()
	w := &onWay{b: newBench(t, allow(t, "*.domain.com"), func(c *Config) {
		c.Learner, c.Observe = knows{}, func(*Exchange) {}
	})}
	q := ask("www.domain.com.", dns.TypeA).SetEdns0(1232, false)
	w.query = pack(t, q)
	w.reply = reply(q, "www.domain.com. 30 CNAME web.domain.com.", "web.domain.com. 30 A 192.0.2.1")
	w.datagram = sock.Datagram{
		Data: make([]byte, len(w.query)), From: w.b.clientAddr(), To: netip.AddrPortFrom(server.Addr().Unmap(), server.Port()), Whole: true, Usable: true,
	}
	return w
}

// once asks and answers.
func (w *onWay) once(buf []byte) {
	copy(w.datagram.Data, w.query)
	w.b.w.question(&w.datagram)
	q := w.b.w.waiting.first
	msg := append(buf[:0], w.reply...)
	wire.SetID(msg, q.at.ids[len(q.at.ids)-1])
	w.b.w.answerTo(q.at, msg)
}

// TestNoAllocation: what allocates would be collected, in the midst of other questions.
func TestNoAllocation(t *testing.T) {
	w := newOnWay(t)
	buf := make([]byte, 0, 1024)
	for range 4 * sock.BatchSize * socketUses { // until all buffers are there
		w.once(buf)
	}
	// A new socket allocates; it serves many.
	if n := testing.AllocsPerRun(16*socketUses, func() { w.once(buf) }); n != 0 {
		t.Errorf("%v allocations a question", n)
	}
}

func BenchmarkQuestion(b *testing.B) {
	w := newOnWay(b)
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		w.once(buf)
	}
}
