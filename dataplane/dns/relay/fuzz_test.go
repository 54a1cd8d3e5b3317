package relay

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/dataplane/dns/sock"
	"github.com/varve-net/varve/dataplane/dns/wire"
)

// waits tells whether a datagram waits at a socket.
func waits(t testing.TB, c *net.UDPConn) bool {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var one [1]byte
	var rerr error
	if err := raw.Read(func(fd uintptr) bool {
		_, _, rerr = unix.Recvfrom(int(fd), one[:], unix.MSG_DONTWAIT|unix.MSG_PEEK)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return rerr == nil
}

// admitted tells whether a message is a question that *.domain.com lets pass.
func admitted(msg []byte) bool {
	var q wire.Query
	return q.Parse(msg) == nil && bytes.HasSuffix(q.Name, []byte(".domain.com.")) && bytes.Count(q.Name, []byte(".")) == 3 &&
		!bytes.ContainsFunc(q.Name, func(r rune) bool {
			return r == '\\' || r < '-' || r > 'z' || r == '/' || r > '9' && r < '_' || r == '`' || r == ':'
		}) &&
		!bytes.HasPrefix(q.Name, []byte("."))
}

// FuzzRelay sends arbitrary datagrams from both sides through a relay on real sockets:
// what a client sends reaches the server if, and only if, it is a question that policy
// admits; what a server sends reaches the client only as the answer to it, and not
// before the kernel holds what it opens. No socket is left.
func FuzzRelay(f *testing.F) {
	good := pack(f, ask("www.domain.com.", dns.TypeA))
	bad := pack(f, ask("www.other.com.", dns.TypeA))
	f.Add(good, reply(ask("www.domain.com.", dns.TypeA), "www.domain.com. 30 A 192.0.2.1"))
	f.Add(good, reply(ask("www.domain.com.", dns.TypeA), "www.domain.com. 30 CNAME x.io.", "x.io. 3 A 192.0.2.1"))
	f.Add(bad, good)
	f.Add(good[:20], bad)
	f.Add(pack(f, ask("www.domain.com.", dns.TypeAAAA).SetEdns0(4096, true)), []byte{1, 2, 3})
	f.Add(pack(f, ask("fail.domain.com.", dns.TypeA)), reply(ask("fail.domain.com.", dns.TypeA), "fail.domain.com. 30 A 192.0.2.1"))
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 53)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	server := l.LocalAddr().(*net.UDPAddr).AddrPort()
	server = netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
	k := newKernel()
	b := newBench(f, allow(f, "*.domain.com"), func(c *Config) { c.Learner = k })
	buf := make([]byte, 65535)
	f.Fuzz(func(t *testing.T, query, answer []byte) {
		b.t = t
		k.forget()
		b.log = b.log[:0]
		b.w.now = time.Now()
		var q wire.Query
		perr := q.Parse(query)
		b.ask(query, server)
		forwarded := admitted(query) && len(query) <= sock.QuestionSize
		if !forwarded && waits(t, l) {
			t.Fatalf("%x (%v) reached the server", query, perr)
		}
		answered := !errors.Is(perr, wire.ErrIgnore)
		if forwarded {
			answered = exchangeUDP(t, b, k, l, query, answer, buf)
		}
		if got := len(b.exchanges()); answered != (got == 1) {
			t.Fatalf("%d questions were noted, answered %t", got, answered)
		}
		if answered {
			_ = b.client.SetReadDeadline(time.Now().Add(testPatience))
			n, got, err := b.client.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("an answer was noted and did not come: %v", err)
			}
			if id, _ := wire.ID(buf[:n]); got != server || id != q.ID {
				t.Fatalf("the client got %x from %s", buf[:n], got)
			}
			k.holds(t, buf[:n])
		}
		// Whatever still waits must not wait for the next input.
		for b.w.waiting.first != nil {
			b.w.remove(b.w.waiting.first)
		}
		b.w.held = b.w.held[:0]
		b.w.now = b.w.now.Add(time.Hour)
		b.w.sweep()
		if len(b.w.pools) != 0 || len(b.w.open) != 0 {
			t.Fatalf("%d pools and %v sockets are left", len(b.w.pools), b.w.open)
		}
	})
}

// exchangeUDP lets the server take a question and give an answer, and tells whether
// that is one.
func exchangeUDP(t *testing.T, b *bench, k *kernel, l *net.UDPConn, query, answer, buf []byte) bool {
	_ = l.SetReadDeadline(time.Now().Add(testPatience))
	n, from, err := l.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("%x did not reach the server: %v", query, err)
	}
	if !bytes.Equal(buf[2:n], query[2:]) {
		t.Fatalf("the server got %x of %x", buf[:n], query)
	}
	if len(answer) > 60000 {
		answer = answer[:60000]
	}
	if len(answer) >= 2 {
		answer = bytes.Clone(answer)
		copy(answer, buf[:2])
	}
	if _, err := l.WriteToUDPAddrPort(answer, from); err != nil {
		t.Fatal(err)
	}
	var q wire.Query
	var a wire.Answer
	if err := q.Parse(query); err != nil {
		t.Fatal(err)
	}
	if _, whole := wire.ID(answer); !whole || errors.Is(a.Parse(answer, q.Question(query)), wire.ErrNotReply) {
		if _, err := b.w.step(0); err != nil {
			t.Fatal(err)
		}
		return false
	}
	wait(t, func() bool {
		if _, err := b.w.step(1); err != nil {
			t.Fatal(err)
		}
		return len(b.exchanges()) > 0 || len(k.lessons) > 0
	})
	if len(k.lessons) > 0 && waits(t, b.client) {
		t.Fatal("an answer left before the kernel held its addresses")
	}
	k.settleAll(b.r)
	return true
}
