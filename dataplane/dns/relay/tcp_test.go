package relay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// session connects a client to the relay, as if it had asked a server.
func (b *bench) session(server netip.AddrPort) *dns.Conn {
	b.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.r.serveSession(ctx, in.(*net.TCPConn), netip.AddrPortFrom(pod, 4711), server)
	}()
	b.t.Cleanup(func() {
		c.Close()
		cancel()
		<-done
		b.r.sessions.wait()
	})
	_ = c.SetDeadline(time.Now().Add(testPatience))
	return &dns.Conn{Conn: c}
}

func TestTCP(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, tcp bool) []byte {
		if !tcp {
			return nil
		}
		var texts []string
		for i := range 1000 { // more than fits into a datagram of 4096
			texts = append(texts, fmt.Sprintf("%s 30 A 192.0.%d.%d", m.Question[0].Name, i/250, i%250))
		}
		return reply(m, texts...)
	})
	b := newBench(t, allow(t, "*.domain.com"), nil)
	c := b.session(s.addr)
	q := ask("www.domain.com.", dns.TypeA)
	if err := c.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	m, err := c.ReadMsg()
	if err != nil || m.Id != q.Id || len(m.Answer) != 1000 {
		t.Fatalf("%v: %v", err, m)
	}
	if err := c.WriteMsg(ask("www.other.com.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if m, err := c.ReadMsg(); err != nil || m.Rcode != dns.RcodeRefused {
		t.Fatalf("%v: %v", err, m)
	}
	if got := s.asked(); !slices.Equal(got, []string{"www.domain.com."}) {
		t.Errorf("the server was asked for %q", got)
	}
	for _, a := range s.ports() {
		if a.Addr() != pod {
			t.Errorf("asked from %s", a)
		}
	}
	if len(b.learner.all()) != 1 {
		t.Errorf("learned %q", b.learner.all())
	}
}

// TestTCPPipelined: questions of one connection wait for each other's answers no
// more than the server makes them, also with equal ids.
func TestTCPPipelined(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte { return reply(m, m.Question[0].Name+" 30 A 192.0.2.1") })
	b := newBench(t, allow(t, "*"), nil)
	c := b.session(s.addr)
	for i := range 50 {
		q := ask(fmt.Sprintf("n%d.io.", i), dns.TypeA)
		q.Id = uint16(i / 2)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for range 50 {
		m, err := c.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		var i int
		if _, err := fmt.Sscanf(m.Question[0].Name, "n%d.io.", &i); err != nil || int(m.Id) != i/2 {
			t.Errorf("%s came with id %d", m.Question[0].Name, m.Id)
		}
		seen[m.Question[0].Name] = true
	}
	if len(seen) != 50 {
		t.Errorf("%d answers", len(seen))
	}
}

func TestTCPFailures(t *testing.T) {
	silent := serve(t, "127.0.0.53:53", func(*dns.Msg, bool) []byte { return nil })
	for _, c := range []struct {
		server netip.AddrPort
		want   Problem
	}{{silent.addr, ServerSilent}, {netip.MustParseAddrPort("127.0.0.99:53"), ServerGone}} {
		b := newBench(t, allow(t, "*"), func(cfg *Config) { cfg.Timeout = 100 * time.Millisecond })
		conn := b.session(c.server)
		if err := conn.WriteMsg(ask("x.io.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		m, err := conn.ReadMsg()
		if err != nil || m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: %v %v", c.server, m, err)
		}
		wait(t, func() bool { return len(b.exchanges()) == 1 })
		if e := b.exchanges()[0]; e.Problem != c.want {
			t.Errorf("%s: noted %+v", c.server, e)
		}
	}
}

// TestTCPHeld: an answer over TCP waits like any other.
func TestTCPHeld(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte { return reply(m, m.Question[0].Name+" 30 A 192.0.2.1") })
	b := newBench(t, allow(t, "*"), func(cfg *Config) { cfg.MaxDelay = 20 * time.Millisecond })
	b.learner.hold = true
	c := b.session(s.addr)
	if err := c.WriteMsg(ask("x.io.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if m, err := c.ReadMsg(); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v %v", m, err)
	}
	wait(t, func() bool { return len(b.exchanges()) == 1 })
	if e := b.exchanges()[0]; e.Problem != NotApplied {
		t.Errorf("noted %+v", e)
	}
}
