package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/varve-net/varve/dataplane/dns/sock"
	"github.com/varve-net/varve/dataplane/dns/wire"
)

const (
	// tcpIdle is how long a client's connection may be silent (RFC 7766 section 6.2.3).
	tcpIdle = 30 * time.Second
	// tcpWrite is how long a client may take to read.
	tcpWrite = 10 * time.Second
	// maxSessions bounds the connections of one container, as maxPipelined the
	// questions of one connection that wait for answers.
	maxSessions  = 128
	maxPipelined = 128
)

// sessions counts connections.
type sessions struct {
	mu sync.Mutex
	of map[netip.Addr]int
	wg sync.WaitGroup
}

func (s *sessions) enter(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[netip.Addr]int{}
	}
	if s.of[a] >= maxSessions {
		return false
	}
	s.of[a]++
	s.wg.Add(1)
	return true
}

func (s *sessions) leave(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[a]--; s.of[a] <= 0 {
		delete(s.of, a)
	}
	s.wg.Done()
}

func (s *sessions) wait() { s.wg.Wait() }

// serveTCP takes connections until the listener is closed.
func (r *Relay) serveTCP(ctx context.Context, l *net.TCPListener) error {
	for {
		c, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case err != nil:
			// Out of descriptors, or the client is gone already: neither is for ever.
			r.cfg.Logger.Warn("DNS connection not taken", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		client := unmap(c.RemoteAddr().(*net.TCPAddr).AddrPort())
		if !r.sessions.enter(client.Addr()) {
			c.Close()
			continue
		}
		go func() {
			defer r.sessions.leave(client.Addr())
			r.serveSession(ctx, c, client, unmap(c.LocalAddr().(*net.TCPAddr).AddrPort()))
		}()
	}
}

// unmap is an address without IPv4 in IPv6.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// session is a client's connection, and the one to the server that it asks.
type session struct {
	r      *Relay
	ctx    context.Context
	client netip.AddrPort
	server netip.AddrPort

	writing sync.Mutex
	conn    *net.TCPConn

	mu sync.Mutex
	up *tcpUpstream
}

// tcpUpstream is a connection to a server.
type tcpUpstream struct {
	conn    *net.TCPConn
	waiting map[uint16]*tcpQuestion // by the id that the server sees; guarded by session.mu
}

// tcpQuestion is a question that waits for its answer.
type tcpQuestion struct {
	query wire.Query
	text  []byte
	e     Exchange
}

func (r *Relay) serveSession(ctx context.Context, c *net.TCPConn, client, server netip.AddrPort) {
	s := &session{r: r, ctx: ctx, client: client, server: server, conn: c}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer s.close()
	for {
		_ = c.SetReadDeadline(time.Now().Add(tcpIdle))
		msg, err := readMessage(c)
		if err != nil || !s.question(msg) {
			return
		}
	}
}

func (s *session) close() {
	s.conn.Close()
	s.mu.Lock()
	up := s.up
	s.mu.Unlock()
	if up != nil {
		s.drop(up, ServerAbsent)
	}
}

// readMessage reads a message behind its length.
func readMessage(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, msg)
	return msg, err
}

// writeMessage writes a message behind its length.
func writeMessage(c net.Conn, msg []byte, timeout time.Duration) error {
	if len(msg) > 65535 {
		return fmt.Errorf("a message of %d bytes", len(msg))
	}
	_ = c.SetWriteDeadline(time.Now().Add(timeout))
	_, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...))
	return err
}

// send gives a message to the client. One that does not read loses its connection.
func (s *session) send(msg []byte) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if writeMessage(s.conn, msg, tcpWrite) != nil {
		s.conn.Close()
	}
}

// question handles a message of the client's; false ends the session.
func (s *session) question(msg []byte) bool {
	q := new(tcpQuestion)
	err := q.query.Parse(msg)
	if errors.Is(err, wire.ErrIgnore) {
		return false
	}
	ruling := s.r.cfg.Policy.Rule(s.client.Addr(), s.server, TCP)
	if ruling == nil {
		return false
	}
	q.text = msg[:q.query.Length()]
	q.e = Exchange{
		Time: time.Now(), Client: s.client, Server: s.server, Protocol: TCP, Ruling: ruling, Name: q.query.Name, Type: q.query.Type,
	}
	if !s.r.judge(&q.e, err) {
		s.send(s.r.refusal(nil, msg, &q.query, &q.e))
		s.r.observe(&q.e)
		return true
	}
	s.forward(q, msg)
	return true
}

// forward asks the server.
func (s *session) forward(q *tcpQuestion, msg []byte) {
	up, p := s.upstream()
	if up == nil {
		s.refuse(q, p)
		return
	}
	s.mu.Lock()
	if len(up.waiting) >= maxPipelined || s.up != up {
		s.mu.Unlock()
		s.refuse(q, TooMany)
		return
	}
	id := uint16(rand.Uint32())
	for up.waiting[id] != nil {
		id = uint16(rand.Uint32())
	}
	q.text = bytes.Clone(q.text) // of msg, which gets another id
	up.waiting[id] = q
	_ = up.conn.SetReadDeadline(time.Now().Add(s.r.cfg.Timeout))
	s.mu.Unlock()

	wire.SetID(msg, id)
	if writeMessage(up.conn, msg, s.r.cfg.Timeout) != nil {
		s.drop(up, ServerAbsent)
	}
}

// upstream returns the connection to the server, made if there is none; or why
// there is none.
func (s *session) upstream() (*tcpUpstream, Problem) {
	s.mu.Lock()
	up := s.up
	s.mu.Unlock()
	if up != nil {
		return up, NoProblem
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.r.cfg.Timeout)
	defer cancel()
	c, err := sock.DialTCP(ctx, s.client.Addr(), s.server, s.r.cfg.Mark)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ServerSilent
		}
		return nil, ServerGone
	}
	up = &tcpUpstream{conn: c, waiting: map[uint16]*tcpQuestion{}}
	s.mu.Lock()
	s.up = up
	s.mu.Unlock()
	s.r.sessions.wg.Go(func() { s.replies(up) })
	return up, NoProblem
}

// drop ends the connection to the server, and all that waits for it.
func (s *session) drop(up *tcpUpstream, p Problem) {
	s.mu.Lock()
	if s.up == up {
		s.up = nil
	}
	waiting := up.waiting
	up.waiting = map[uint16]*tcpQuestion{}
	s.mu.Unlock()
	up.conn.Close()
	for _, q := range waiting {
		s.refuse(q, p)
	}
}

func (s *session) refuse(q *tcpQuestion, p Problem) {
	q.e.Problem, q.e.RCode = p, wire.ServFail
	s.send(servfail(nil, q.text, &q.query, p))
	s.r.observe(&q.e)
}

// replies reads the server's answers until its connection ends.
func (s *session) replies(up *tcpUpstream) {
	var answer wire.Answer
	for {
		msg, err := readMessage(up.conn)
		if err != nil {
			p := ServerAbsent
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				p = ServerSilent
			}
			s.drop(up, p)
			return
		}
		id, ok := wire.ID(msg)
		if !ok {
			continue
		}
		s.mu.Lock()
		q := up.waiting[id]
		s.mu.Unlock()
		if q == nil {
			continue
		}
		err = answer.Parse(msg, q.query.Question(q.text))
		if errors.Is(err, wire.ErrNotReply) {
			continue
		}
		s.mu.Lock()
		mine := up.waiting[id] == q
		delete(up.waiting, id)
		if len(up.waiting) == 0 {
			_ = up.conn.SetReadDeadline(time.Now().Add(tcpIdle))
		}
		s.mu.Unlock()
		switch {
		case !mine:
		case err != nil:
			s.refuse(q, BadReply)
		default:
			s.release(q, msg, &answer)
		}
	}
}

// release gives a server's answer to the client, at once or when the way to its
// addresses is open.
func (s *session) release(q *tcpQuestion, msg []byte, answer *wire.Answer) {
	wire.Restore(msg, q.query.ID, q.query.Question(q.text))
	q.e.RCode, q.e.Chain, q.e.Addresses = answer.RCode, answer.Chain, answer.Addresses
	q.e.Upstream = time.Since(q.e.Time)
	var o Observation
	if q.e.observe(&o) && !s.r.cfg.Learner.Known(&o) {
		h := hold(s.r, &q.e, msg, q.text, &q.query)
		h.send = s.send
		time.AfterFunc(s.r.cfg.MaxDelay, func() { h.give(NotApplied) })
		s.r.cfg.Learner.Learn(&o, h)
		return
	}
	s.send(msg)
	s.r.observe(&q.e)
}
