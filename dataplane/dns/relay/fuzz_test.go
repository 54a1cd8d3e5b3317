package relay

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/varve-net/varve/dataplane/dns/wire"
)

// FuzzRelay sends arbitrary bytes from both sides through a relay on real sockets:
// what a client sends reaches the server only if it is a question that policy
// admits, and what a server sends reaches the client only as the answer to it.
func FuzzRelay(f *testing.F) {
	good := pack(f, ask("www.domain.com.", dns.TypeA))
	bad := pack(f, ask("www.other.com.", dns.TypeA))
	f.Add(good, reply(ask("www.domain.com.", dns.TypeA), "www.domain.com. 30 A 192.0.2.1"))
	f.Add(good, reply(ask("www.domain.com.", dns.TypeA), "www.domain.com. 30 CNAME x.io.", "x.io. 3 A 192.0.2.1"))
	f.Add(bad, good)
	f.Add(good[:20], bad)
	f.Add(pack(f, ask("www.domain.com.", dns.TypeAAAA).SetEdns0(4096, true)), []byte{1, 2, 3})
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 53)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	server := l.LocalAddr().(*net.UDPAddr).AddrPort()
	server = netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
	b := newBench(f, allow(f, "*.domain.com"), nil)
	buf := make([]byte, 65535)
	f.Fuzz(func(t *testing.T, query, answer []byte) {
		b.t = t
		var q wire.Query
		before := len(b.exchanges())
		b.ask(query, server)
		perr := q.Parse(query)
		_ = l.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if err == nil {
			if perr != nil || !bytes.HasSuffix(q.Name, []byte(".domain.com.")) {
				t.Fatalf("%x (%v) reached the server", query, perr)
			}
			if !bytes.Equal(buf[2:n], query[2:]) {
				t.Fatalf("the server got %x of %x", buf[:n], query)
			}
			if len(answer) >= 2 {
				answer = bytes.Clone(answer)
				copy(answer, buf[:2])
			}
			if _, err := l.WriteToUDPAddrPort(answer, from); err != nil && len(answer) < 60000 {
				t.Fatal(err)
			}
		}
		for range 3 {
			if _, err := b.w.step(1); err != nil {
				t.Fatal(err)
			}
		}
		b.r.Flush()
		for len(b.exchanges()) > before {
			_ = b.client.SetReadDeadline(time.Now().Add(time.Second))
			n, got, err := b.client.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("an answer was noted and did not come: %v", err)
			}
			before++
			if id, _ := wire.ID(buf[:n]); got != server || id != q.ID {
				t.Fatalf("the client got %x from %s", buf[:n], got)
			}
		}
		// Whatever still waits must not wait for the next input.
		for b.w.waiting.first != nil {
			b.w.remove(b.w.waiting.first)
		}
		b.mu.Lock()
		b.log = b.log[:0]
		b.mu.Unlock()
		b.learner.mu.Lock()
		b.learner.learned = nil
		b.learner.mu.Unlock()
	})
}
