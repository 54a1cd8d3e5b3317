package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/varve-net/varve/dataplane/dns/wire"
)

func TestAllowed(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte {
		lower := m.Copy()
		lower.Question[0].Name = strings.ToLower(lower.Question[0].Name)
		return reply(lower, "www.domain.com. 30 CNAME cdn.net.", "cdn.net. 20 A 192.0.2.1", "evil.net. 20 A 192.0.2.66")
	})
	b := newBench(t, allow(t, "*.domain.com"), nil)
	ids := map[uint16]bool{}
	for range 8 {
		q := ask("wWw.Domain.com.", dns.TypeA)
		b.ask(pack(t, q), s.addr)
		m, from := b.answer()
		if from != s.addr || m.Id != q.Id || m.Question[0].Name != "wWw.Domain.com." || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 3 {
			t.Fatalf("from %s: %v", from, m)
		}
	}
	ports := s.ports()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.seen {
		ids[m.Id] = true
		if m.Question[0].Name != "wWw.Domain.com." {
			t.Errorf("the server was asked for %s", m.Question[0].Name)
		}
	}
	for _, a := range ports {
		if a.Addr() != pod || a == b.clientAddr() {
			t.Errorf("asked from %s", a)
		}
	}
	if len(ids) < 7 || len(ports) < 2 {
		t.Errorf("8 questions had %d ids and %d ports", len(ids), len(ports))
	}
	if got := b.learner.all(); len(got) != 8 || got[0] != "www.domain.com.=192.0.2.1" {
		t.Errorf("learned %q", got)
	}
	if e := b.exchanges()[0]; e.Verdict != Allowed || e.Row != 42 || e.Selector != "*.domain.com" || e.Upstream <= 0 || e.Total < e.Upstream {
		t.Errorf("noted %+v", e)
	}
}

func TestRejected(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte { return reply(m) })
	for code, want := range map[int]int{wire.Refused: dns.RcodeRefused, wire.NXDomain: dns.RcodeNameError} {
		b := newBench(t, allow(t, "*.domain.com"), func(c *Config) { c.RejectCode = code })
		b.ask(pack(t, ask("www.other.com.", dns.TypeA)), s.addr)
		m, from := b.answer()
		if from != s.addr || m.Rcode != want || m.Question[0].Name != "www.other.com." {
			t.Errorf("from %s: %v", from, m)
		}
		if e := b.exchanges()[0]; e.Verdict != Rejected || e.Selector != "" {
			t.Errorf("noted %+v", e)
		}
	}
	if got := s.asked(); len(got) > 0 {
		t.Errorf("the server was asked for %q", got)
	}
}

// TestMalformed: what is no question is answered so, and never reaches the server.
func TestMalformed(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte { return reply(m) })
	b := newBench(t, allow(t, "*"), nil)
	good := pack(t, ask("x.io.", dns.TypeA))
	b.ask(append(slices.Clone(good), 1, 2, 3), s.addr)
	if m, _ := b.answer(); m.Rcode != dns.RcodeFormatError {
		t.Errorf("trailing bytes: %v", m)
	}
	b.ask(pack(t, ask("x.io.", dns.TypeAXFR)), s.addr)
	if m, _ := b.answer(); m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("a transfer: %v", m)
	}
	b.ask(reply(ask("x.io.", dns.TypeA)), s.addr) // ignored
	b.ask(good[:7], s.addr)
	b.ask(good, s.addr)
	if m, _ := b.answer(); m.Rcode != dns.RcodeSuccess {
		t.Errorf("a question: %v", m)
	}
	if got := s.asked(); len(got) != 1 {
		t.Errorf("the server was asked for %q", got)
	}
}

// TestLies: only the answer to the question counts.
func TestLies(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(*dns.Msg, bool) []byte { return nil })
	b := newBench(t, allow(t, "*"), nil)
	q := ask("x.io.", dns.TypeA)
	b.ask(pack(t, q), s.addr)
	wait(t, func() bool { return len(s.asked()) == 1 })
	s.mu.Lock()
	m := s.seen[0].Copy()
	s.mu.Unlock()
	lie := func(change func(m *dns.Msg)) []byte {
		l := m.Copy()
		change(l)
		return reply(l, "x.io. 30 A 192.0.2.66")
	}
	u := slices.Collect(func(yield func(*upstream) bool) {
		for _, p := range b.w.pools {
			for _, u := range p.all {
				yield(u)
			}
		}
	})[0]
	for _, msg := range [][]byte{
		lie(func(m *dns.Msg) { m.Id++ }),
		lie(func(m *dns.Msg) { m.Question[0].Name = "y.io." }),
		lie(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }),
		pack(t, m),
		{1, 2, 3},
	} {
		b.w.answerTo(u, slices.Clone(msg))
	}
	if len(b.exchanges()) > 0 || len(b.learner.all()) > 0 {
		t.Fatalf("a lie was taken: %+v", b.exchanges())
	}
	truth := reply(m, "x.io. 30 A 192.0.2.1")
	b.w.answerTo(u, truth)
	b.w.answerTo(u, truth) // once
	if got, _ := b.answer(); got.Id != q.Id || len(got.Answer) != 1 {
		t.Errorf("%v", got)
	}
	if got := b.learner.all(); !slices.Equal(got, []string{"x.io.=192.0.2.1"}) {
		t.Errorf("learned %q", got)
	}
}

func TestSilentServer(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(*dns.Msg, bool) []byte { return nil })
	b := newBench(t, allow(t, "*"), func(c *Config) { c.Timeout = 50 * time.Millisecond })
	q := ask("x.io.", dns.TypeA).SetEdns0(1232, false)
	b.ask(pack(t, q), s.addr)
	m, _ := b.answer()
	if m.Rcode != dns.RcodeServerFailure || m.Id != q.Id || m.IsEdns0() == nil {
		t.Errorf("%v", m)
	}
	if e := b.exchanges()[0]; e.Problem != ServerSilent || e.RCode != wire.ServFail {
		t.Errorf("noted %+v", e)
	}
}

func TestNobodyListens(t *testing.T) {
	b := newBench(t, allow(t, "*"), nil)
	b.ask(pack(t, ask("x.io.", dns.TypeA)), netip.MustParseAddrPort("127.0.0.99:53"))
	if m, _ := b.answer(); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	if e := b.exchanges()[0]; e.Problem != ServerGone {
		t.Errorf("noted %+v", e)
	}
}

func TestBadReply(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte {
		r := reply(m, "x.io. 30 A 192.0.2.1")
		return r[:len(r)-2]
	})
	b := newBench(t, allow(t, "*"), nil)
	b.ask(pack(t, ask("x.io.", dns.TypeA)), s.addr)
	if m, _ := b.answer(); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	if got := b.learner.all(); len(got) > 0 {
		t.Errorf("learned %q", got)
	}
}

// TestHeld: an answer leaves when what it opens is open, and not if that fails or
// takes too long.
func TestHeld(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte { return reply(m, m.Question[0].Name+" 30 A 192.0.2.1") })
	for _, c := range []struct {
		what  string
		delay time.Duration
		err   error
		rcode int
		p     Problem
	}{
		{"applied", time.Minute, nil, dns.RcodeSuccess, NoProblem},
		{"not kept", time.Minute, errors.New("disk full"), dns.RcodeServerFailure, NotKept},
		{"late", 20 * time.Millisecond, nil, dns.RcodeServerFailure, NotApplied},
	} {
		b := newBench(t, allow(t, "*"), func(cfg *Config) { cfg.MaxDelay = c.delay })
		b.learner.hold = true
		q := ask("x.io.", dns.TypeA)
		b.ask(pack(t, q), s.addr)
		for len(b.learner.all()) == 0 {
			if _, err := b.w.step(5); err != nil {
				t.Fatal(err)
			}
		}
		if len(b.exchanges()) != 0 {
			t.Fatalf("%s: answered before it was applied", c.what)
		}
		if c.p != NotApplied {
			b.learner.waiting[0].Learned(c.err)
		}
		m, from := b.answer()
		if m.Rcode != c.rcode || m.Id != q.Id || from != s.addr {
			t.Errorf("%s: %v", c.what, m)
		}
		b.learner.waiting[0].Learned(c.err) // too late, or once more
		if got := b.exchanges(); len(got) != 1 || got[0].Problem != c.p {
			t.Errorf("%s: noted %+v", c.what, got)
		}
	}
}

// TestLongAnswer: what is too long for the client is compressed, or cut so that it
// asks over TCP.
func TestLongAnswer(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte {
		var texts []string
		for i := range 20 {
			texts = append(texts, fmt.Sprintf("%s 30 A 192.0.2.%d", m.Question[0].Name, i))
		}
		return reply(m, texts...)
	})
	for _, c := range []struct {
		compress  bool
		size      uint16
		truncated bool
		answers   int
	}{{true, 512, false, 20}, {false, 512, true, -1}, {false, 1232, false, 20}} {
		b := newBench(t, allow(t, "*"), func(cfg *Config) { cfg.Compress = c.compress })
		q := ask("a-name-of-some-length.example.com.", dns.TypeA)
		if c.size > 512 {
			q.SetEdns0(c.size, false)
		}
		b.ask(pack(t, q), s.addr)
		m, _ := b.answer()
		if m.Truncated != c.truncated || c.answers >= 0 && len(m.Answer) != c.answers {
			t.Errorf("%+v: truncated %t, %d answers", c, m.Truncated, len(m.Answer))
		}
	}
}

// TestSockets: they are few, do not stay, and none is lost.
func TestSockets(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(m *dns.Msg, _ bool) []byte { return reply(m) })
	b := newBench(t, allow(t, "*"), nil)
	for i := range 3 * poolSize * socketUses {
		b.ask(pack(t, ask(fmt.Sprintf("n%d.io.", i), dns.TypeA)), s.addr)
		b.answer()
	}
	if n := len(s.ports()); n < 2*poolSize || n > 6*poolSize {
		t.Errorf("%d ports for %d questions", n, 3*poolSize*socketUses)
	}
	if n := b.w.open[pod]; n > poolSize {
		t.Errorf("%d sockets are open", n)
	}
	b.w.now = b.w.now.Add(time.Hour)
	b.w.sweep()
	if len(b.w.pools) != 0 || len(b.w.open) != 0 {
		t.Errorf("%d pools and %v sockets are left", len(b.w.pools), b.w.open)
	}
}

// TestTooMany: a container that floods a silent server is told so and holds no more.
func TestTooMany(t *testing.T) {
	s := serve(t, "127.0.0.53:53", func(*dns.Msg, bool) []byte { return nil })
	b := newBench(t, allow(t, "*"), nil)
	msg := pack(t, ask("x.io.", dns.TypeA))
	for range maxWaiting + 10 {
		b.ask(msg, s.addr)
	}
	got := b.exchanges()
	if len(got) != 10 || got[0].Problem != TooMany {
		t.Errorf("%d questions were refused: %+v", len(got), got)
	}
}

// wait waits for a condition.
func wait(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(testPatience); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}
