package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/varve-net/varve/dataplane/dns/match"
	"github.com/varve-net/varve/dataplane/dns/sock"
	"github.com/varve-net/varve/dataplane/dns/wire"
	"github.com/varve-net/varve/policy"
)

const testMark = 0xb00

var pod = netip.MustParseAddr("127.0.1.1")

// testPatience is how long a test waits for what must come.
const testPatience = 2 * time.Minute

// server is an authority on a loopback address.
type server struct {
	addr netip.AddrPort
	mu   sync.Mutex
	seen []dns.Msg       // questions that came
	from map[string]bool // where from
}

// serve answers UDP and TCP with what answer makes of a question; nil: nothing.
func serve(t testing.TB, addr string, answer func(m *dns.Msg, tcp bool) []byte) *server {
	t.Helper()
	s := &server{addr: netip.MustParseAddrPort(addr), from: map[string]bool{}}
	h := func(tcp bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, m *dns.Msg) {
			s.mu.Lock()
			s.seen = append(s.seen, *m)
			s.from[w.RemoteAddr().String()] = true
			s.mu.Unlock()
			if b := answer(m, tcp); b != nil {
				_, _ = w.Write(b)
			}
		}
	}
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*dns.Server{{PacketConn: pc, Handler: h(false), UDPSize: 4096}, {Listener: l, Handler: h(true)}} {
		started, ended := make(chan struct{}), make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			d.ActivateAndServe()
		}()
		<-started
		// Shutdown may return before the socket is closed, and the next test wants its address.
		t.Cleanup(func() {
			d.Shutdown()
			<-ended
		})
	}
	return s
}

func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, m := range s.seen {
		out = append(out, m.Question[0].Name)
	}
	return out
}

// ports is where it was asked from.
func (s *server) ports() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []netip.AddrPort
	for a := range s.from {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

// reply packs an answer of records.
func reply(m *dns.Msg, texts ...string) []byte {
	r := new(dns.Msg).SetReply(m)
	for _, text := range texts {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		r.Answer = append(r.Answer, rr)
	}
	b, err := r.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// fixed is a Policy of one ruling.
type fixed struct{ ruling *Ruling }

func (f fixed) Rule(netip.Addr, netip.AddrPort, uint8) *Ruling { return f.ruling }

// allow is a policy of patterns for endpoint 7.
func allow(t testing.TB, patterns ...string) Policy {
	t.Helper()
	var ps []match.Pattern
	for i, text := range patterns {
		s, err := policy.ParseFQDN("", text)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, match.Pattern{Selector: s, ID: uint32(i)})
	}
	return fixed{&Ruling{Endpoint: 7, Namespace: "default", Name: "pod", Sets: []NameSet{{Row: 42, Set: match.New(ps), Selectors: patterns}}}}
}

// learner notes what it is told.
type learner struct {
	mu      sync.Mutex
	learned []string
	waiting []Waiter
	known   bool
	hold    bool
	err     error
}

func (l *learner) Known(o *Observation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known {
		l.note(o)
	}
	return l.known
}

func (l *learner) note(o *Observation) {
	var as []string
	for _, a := range o.Addresses {
		as = append(as, a.Addr.String())
	}
	l.learned = append(l.learned, string(o.Name)+"="+strings.Join(as, ","))
}

func (l *learner) Learn(o *Observation, w Waiter) {
	l.mu.Lock()
	l.note(o)
	hold, err := l.hold, l.err
	if hold {
		l.waiting = append(l.waiting, w)
	}
	l.mu.Unlock()
	if !hold {
		w.Learned(err)
	}
}

func (l *learner) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.learned)
}

// bench is a relay with one worker that the test itself drives.
type bench struct {
	t       testing.TB
	r       *Relay
	w       *worker
	learner *learner
	client  *net.UDPConn
	mu      sync.Mutex
	log     []Exchange
}

func newBench(t testing.TB, p Policy, change func(*Config)) *bench {
	t.Helper()
	b := &bench{t: t, learner: &learner{}}
	cfg := Config{
		Mark: testMark, RejectCode: wire.Refused, Compress: true, MaxDelay: time.Minute, Timeout: time.Minute, Policy: p, Learner: b.learner,
		Observe: func(e *Exchange) {
			b.mu.Lock()
			defer b.mu.Unlock()
			c := *e
			c.Name = slices.Clone(e.Name)
			b.log = append(b.log, c)
		},
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if b.r, err = New(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if b.w, err = newWorker(b.r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.w.close()
		b.r.closeListeners()
		b.r.late.Close()
	})
	if b.client, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(pod, 0))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.client.Close() })
	return b
}

func (b *bench) exchanges() []Exchange {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

func (b *bench) clientAddr() netip.AddrPort {
	return b.client.LocalAddr().(*net.UDPAddr).AddrPort()
}

// ask hands a datagram of the client's to the relay, as if the kernel had.
func (b *bench) ask(msg []byte, to netip.AddrPort) {
	b.w.question(&sock.Datagram{Data: slices.Clone(msg), From: b.clientAddr(), To: to, Whole: true, Usable: true})
	b.w.answers.Flush()
}

// answer runs the relay until the client has an answer, and says where from.
func (b *bench) answer() (*dns.Msg, netip.AddrPort) {
	b.t.Helper()
	buf := make([]byte, 65535)
	for end := time.Now().Add(testPatience); time.Now().Before(end); {
		if _, err := b.w.step(5); err != nil {
			b.t.Fatal(err)
		}
		b.r.Flush()
		_ = b.client.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, from, err := b.client.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			b.t.Fatal(err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(buf[:n]); err != nil {
			b.t.Fatalf("answer %x: %v", buf[:n], err)
		}
		return m, from
	}
	b.t.Fatal("no answer")
	return nil, netip.AddrPort{}
}

func ask(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, qtype)
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
