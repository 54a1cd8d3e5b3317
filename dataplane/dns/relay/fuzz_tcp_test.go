package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/varve-net/varve/dataplane/dns/wire"
)

// frame is a message behind its length.
func frame(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
}

// frames takes a stream apart as RFC 1035 section 4.2.2 says, up to what a server does
// not answer: ended tells whether there is such a message.
func frames(stream []byte) (messages [][]byte, ended bool) {
	for len(stream) >= 2 {
		n := int(binary.BigEndian.Uint16(stream))
		if len(stream) < 2+n {
			return messages, false
		}
		msg := stream[2 : 2+n]
		var q wire.Query
		if errors.Is(q.Parse(msg), wire.ErrIgnore) {
			return messages, true
		}
		messages = append(messages, msg)
		stream = stream[2+n:]
	}
	return messages, false
}

// tcpServer answers the first question of a connection with the same bytes always,
// but for the id, and closes it.
type tcpServer struct {
	l      net.Listener
	wg     sync.WaitGroup
	mu     sync.Mutex
	answer []byte
	wrong  string // what came that must not
}

func newTCPServer(t testing.TB) *tcpServer {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.53:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tcpServer{l: l}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.wg.Wait()
	})
	return s
}

func (s *tcpServer) serve(c net.Conn) {
	defer c.Close()
	msg, err := readMessage(c)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !admitted(msg) {
		s.wrong = fmt.Sprintf("%x", msg)
		return
	}
	answer := append([]byte(nil), s.answer...)
	if len(answer) >= 4 {
		copy(answer[2:], msg[:2])
	}
	_, _ = c.Write(answer) // a relay that is gone meanwhile is tested elsewhere
}

func (s *tcpServer) set(answer []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// FuzzSession sends an arbitrary stream from both sides through a relay: each whole
// message that is to be answered gets one answer, only questions that policy admits
// reach the server, and nothing is released before the kernel holds what it opens. No
// session is left.
func FuzzSession(f *testing.F) {
	q := ask("www.domain.com.", dns.TypeA)
	good, bad := pack(f, q), pack(f, ask("www.other.com.", dns.TypeA))
	fail := ask("fail.domain.com.", dns.TypeA)
	answer := frame(reply(q, "www.domain.com. 30 CNAME x.io.", "x.io. 3 A 192.0.2.1"))
	f.Add(frame(good), answer)
	f.Add(append(frame(bad), frame(good)...), answer)
	f.Add(append(frame(good), frame(good)...), answer[:20])
	f.Add(frame(pack(f, fail)), frame(reply(fail, "fail.domain.com. 30 A 192.0.2.1")))
	f.Add(append(frame(good), 0, 0), answer)
	f.Add(append(frame(good), 0xff), append(frame(bad), answer...))
	s := newTCPServer(f)
	server := s.l.Addr().(*net.TCPAddr).AddrPort()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	k := newKernel()
	b := newBench(f, allow(f, "*.domain.com"), func(c *Config) { c.Learner, c.MaxDelay = k, testPatience })
	f.Fuzz(func(t *testing.T, stream, answer []byte) {
		if len(stream) > 4096 || len(answer) > 1<<16 {
			return // what fits into the buffers of a connection that nobody reads yet
		}
		b.t = t
		k.forget()
		s.set(answer)
		messages, ended := frames(stream)
		got := runSession(t, b, k, l, server, stream, len(messages), ended)
		if len(got) > len(messages) || !ended && len(got) < len(messages) {
			t.Fatalf("%d answers to %d questions", len(got), len(messages))
		}
		ids := map[uint16]int{}
		for _, msg := range messages {
			ids[binary.BigEndian.Uint16(msg)]++
		}
		for _, msg := range got {
			id, ok := wire.ID(msg)
			if ids[id]--; !ok || ids[id] < 0 {
				t.Fatalf("the client got %x", msg)
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.wrong != "" {
			t.Fatalf("%s reached the server", s.wrong)
		}
		if b.r.sessions.mu.Lock(); len(b.r.sessions.of) > 0 {
			t.Fatalf("sessions are left: %v", b.r.sessions.of)
		}
		b.r.sessions.mu.Unlock()
		b.mu.Lock()
		b.log = b.log[:0]
		b.mu.Unlock()
	})
}

// runSession is a client that sends a stream and takes answers: as many as want, or
// until the relay ends the session.
func runSession(t *testing.T, b *bench, k *kernel, l net.Listener, server netip.AddrPort, stream []byte, want int, ended bool) (got [][]byte) {
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := netip.AddrPortFrom(pod, 4711)
	var wg sync.WaitGroup
	b.r.sessions.enter(client.Addr())
	wg.Go(func() {
		defer b.r.sessions.leave(client.Addr())
		b.r.serveSession(ctx, in.(*net.TCPConn), client, server)
	})
	_ = c.SetDeadline(time.Now().Add(testPatience))
	if _, err := c.Write(stream); err != nil && !ended {
		t.Fatal(err)
	}
	answers := make(chan []byte)
	wg.Go(func() {
		defer close(answers)
		for {
			msg, err := readMessage(c)
			if err != nil {
				return
			}
			answers <- msg
		}
	})
	for open := true; open && (ended || len(got) < want); {
		var msg []byte
		select {
		case msg, open = <-answers:
			if open {
				k.holds(t, msg)
				got = append(got, msg)
			}
		case l := <-k.lessons:
			k.settle(b.r, l)
		}
	}
	c.Close()
	for msg := range answers { // one too many is for the caller to find
		got = append(got, msg)
	}
	wg.Wait()
	b.r.sessions.wait()
	k.settleAll(b.r)
	return got
}
