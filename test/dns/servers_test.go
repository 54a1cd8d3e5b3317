package dns

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/varve-net/varve/internal/testbin"
	"github.com/varve-net/varve/internal/testns"
)

// ttl is so long that no step of a test comes near a quarter of it, when an answer makes
// an event again.
const ttl = 3600

// shortTTL is that of short.domain.com, for what happens after it.
const shortTTL = 5

// record is a name's address record of the family that was asked for.
func record(name string, kind uint16, a addrs, ttl uint32) dns.RR {
	h := dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
	switch kind {
	case dns.TypeA:
		return &dns.A{Hdr: h, A: a[0].AsSlice()}
	case dns.TypeAAAA:
		return &dns.AAAA{Hdr: h, AAAA: a[1].AsSlice()}
	}
	return nil
}

func alias(name, target string) dns.RR {
	return &dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl}, Target: target}
}

// many is how many addresses big.domain.com has: too many for a datagram.
const many = 150

// losses counts how often each server was asked what it loses.
var losses sync.Map // string -> *atomic.Int64

// lost tells whether a server loses a question: all but every third.
func lost(server, name string, kind uint16) bool {
	n, _ := losses.LoadOrStore(fmt.Sprint(server, name, kind), new(atomic.Int64))
	return n.(*atomic.Int64).Add(1)%3 != 0
}

// answer is what the authority says: site N is nN.domain.com, in any domain.
func answer(w dns.ResponseWriter, m *dns.Msg) {
	r := new(dns.Msg).SetReply(m)
	r.Authoritative = true
	name, kind := m.Question[0].Name, m.Question[0].Qtype
	host, domain, _ := strings.Cut(strings.ToLower(name), ".")
	add := func(rr dns.RR) {
		if rr != nil {
			r.Answer = append(r.Answer, rr)
		}
	}
	number, err := strconv.Atoi(strings.TrimPrefix(host, "n"))
	switch {
	case err == nil:
		add(record(name, kind, site(number), ttl))
	case host == "short":
		add(record(name, kind, site(301), shortTTL))
	case host == "big":
		for i := range many {
			add(record(name, kind, site(400+i), ttl))
		}
	case host == "alias":
		add(alias(name, "hop."+domain))
		add(alias("hop."+domain, "n302.elsewhere.net."))
		add(record("n302.elsewhere.net.", kind, site(302), ttl))
	case host == "hop":
		add(alias(name, "n302.elsewhere.net."))
		add(record("n302.elsewhere.net.", kind, site(302), ttl))
	case host == "loop":
		add(alias(name, "pool."+domain))
		add(alias("pool."+domain, name))
	case host == "liar":
		wrong := r.Copy()
		wrong.Id++
		wrong.Answer = []dns.RR{record(name, kind, site(304), ttl)}
		_ = w.WriteMsg(wrong)
		add(record(name, kind, site(303), ttl))
	case host == "extra":
		add(record(name, kind, site(305), ttl))
		add(record("www.bank.org.", kind, site(306), ttl))
		r.Extra = append(r.Extra, record("n307.domain.com.", kind, site(307), ttl))
	case strings.HasPrefix(host, "lossy"):
		if lost(w.LocalAddr().String(), name, kind) {
			return
		}
		number, _ := strconv.Atoi(strings.TrimPrefix(host, "lossy"))
		add(record(name, kind, site(340+number), ttl))
	case host == "slow":
		<-time.After(500 * time.Millisecond)
		add(record(name, kind, site(308), ttl))
	case host == "dead":
		return
	default:
		r.Rcode = dns.RcodeNameError
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if o := m.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		r.Truncate(size)
	}
	_ = w.WriteMsg(r)
}

// authority serves the test's names at an address of a namespace, over UDP and TCP.
func (s *stage) authority(ns *testns.NS, at netip.Addr) {
	s.t.Helper()
	s.serve(ns, at, answer)
}

// serve answers questions to an address of a namespace, over UDP and TCP.
func (s *stage) serve(ns *testns.NS, at netip.Addr, answer dns.HandlerFunc) {
	s.t.Helper()
	to := netip.AddrPortFrom(at, 53)
	var pc *net.UDPConn
	var l *net.TCPListener
	err := ns.Do(func() (err error) {
		if pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to)); err != nil {
			return err
		}
		// A burst is the clients' doing; that the server loses none of it is ours.
		if err = pc.SetReadBuffer(8 << 20); err != nil {
			return err
		}
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: pc}, {Listener: l}} {
		server.Handler = answer
		up, done := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(up) }
		go func() {
			defer close(done)
			_ = server.ActivateAndServe()
		}()
		<-up
		s.t.Cleanup(func() {
			_ = server.Shutdown()
			<-done
		})
	}
}

// program starts a DNS server of somebody else's and waits until it answers.
func (s *stage) program(ns *testns.NS, at netip.Addr, name string, args ...string) {
	s.t.Helper()
	p, err := testbin.Start(ns, name, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		p.Kill()
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", name, p.Log())
		}
	})
	s.eventually(name+" answers", func(ctx context.Context) error {
		c, err := ns.DialTCP(ctx, netip.AddrPortFrom(at, 53))
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// dnsmasq knows the names of a zone by itself.
func (s *stage) dnsmasq(ns *testns.NS, at netip.Addr) {
	s.t.Helper()
	a := site(310)
	s.program(ns, at, "dnsmasq", "--keep-in-foreground", "--conf-file="+os.DevNull, "--no-hosts", "--no-resolv", "--user=root", "--pid-file=",
		"--log-facility=-", fmt.Sprintf("--host-record=masq.domain.com,%s,%s,300", a[0], a[1]))
}

// unbound resolves what it is asked from another server.
func (s *stage) unbound(ns *testns.NS, at addrs, upstream netip.Addr) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "unbound.conf")
	text := fmt.Sprintf(`server:
  interface: %s
  interface: %s
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  module-config: "iterator"
  username: ""
  chroot: ""
  directory: "%s"
  pidfile: ""
  use-syslog: no
  num-threads: 1
forward-zone:
  name: "."
  forward-addr: %s
remote-control:
  control-enable: no
`, at[0], at[1], filepath.Dir(file), upstream)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.program(ns, at[0], "unbound", "-d", "-c", file)
}

// web serves a page at port 8080 of a namespace.
func (s *stage) web(ns *testns.NS) {
	s.t.Helper()
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", ":8080")
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: limit, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "page of %s\n", r.Host)
	})}
	go func() { _ = server.Serve(l) }()
	s.t.Cleanup(func() { _ = server.Close() })
}
