package demo

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/internal/testns"
)

// flowPeriod is the time between two messages of a flow.
const flowPeriod = 10 * time.Millisecond

// flow sends numbered messages at a steady rate and marks those that come back.
// For TCP that is one connection with an echo server at its other end, for UDP and
// ICMP each message stands for itself, so that a lost packet stays lost.
type flow struct {
	question
	family family
	conn   net.Conn

	mu       sync.Mutex
	answered []bool // by message
	sent     int
	last     time.Time     // of the last answer
	gap      time.Duration // longest time between two answers
	err      error

	stop    chan struct{}
	stopped sync.WaitGroup
	closing sync.Once
}

// message is what a flow sends: for ICMP the 8 bytes of an echo request's header,
// then in every case a number of 8 bytes.
const (
	icmpHeader  = 8
	messageSize = 8
)

// startFlow opens a flow and begins to send.
func (s *stage) startFlow(ctx context.Context, q question, f family) (*flow, error) {
	fl := &flow{question: q, family: f, stop: make(chan struct{})}
	from, to := s.actors[q.from].space, s.actors[q.to].addr[f]
	ctx, cancel := context.WithTimeout(ctx, allowLimit)
	defer cancel()
	var err error
	switch q.protocol {
	case "TCP":
		fl.conn, err = from.DialTCP(ctx, netip.AddrPortFrom(to, q.port))
	case "UDP":
		fl.conn, err = from.DialUDP(ctx, netip.AddrPortFrom(to, q.port))
	default:
		network := [2]string{"ip4:icmp", "ip6:ipv6-icmp"}[f]
		err = from.Do(func() (err error) {
			fl.conn, err = net.Dial(network, to.String())
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("flow %s: %w", fl, err)
	}
	s.later("flow "+fl.String(), fl.close)
	fl.last = time.Now()
	fl.stopped.Add(2)
	s.spawn(fl.send)
	s.spawn(fl.receive)
	return fl, nil
}

func (fl *flow) String() string {
	return fmt.Sprintf("%s -> %s %s", fl.from, fl.service(), fl.family)
}

func (fl *flow) send() {
	defer fl.stopped.Done()
	tick := time.NewTicker(flowPeriod)
	defer tick.Stop()
	for {
		select {
		case <-fl.stop:
			return
		case <-tick.C:
		}
		fl.mu.Lock()
		n := fl.sent
		fl.sent++
		fl.answered = append(fl.answered, false)
		fl.mu.Unlock()
		if _, err := fl.conn.Write(fl.encode(uint64(n))); err != nil {
			fl.fail(err)
			return
		}
	}
}

// encode is message n as the socket wants it. ICMP has the port of the question as
// identifier.
func (fl *flow) encode(n uint64) []byte {
	if fl.protocol != "ICMP" {
		return binary.BigEndian.AppendUint64(nil, n)
	}
	b := make([]byte, icmpHeader, icmpHeader+messageSize)
	b[0] = [2]byte{8, 128}[fl.family]
	binary.BigEndian.PutUint16(b[4:], fl.port)
	binary.BigEndian.PutUint16(b[6:], uint16(n))
	b = binary.BigEndian.AppendUint64(b, n)
	if fl.family == v4 { // the kernel computes that of ICMPv6
		binary.BigEndian.PutUint16(b[2:], testns.InternetChecksum(b))
	}
	return b
}

func (fl *flow) receive() {
	defer fl.stopped.Done()
	buf := make([]byte, 1500)
	for {
		n, ok, err := fl.next(buf)
		if err != nil {
			fl.fail(err)
			return
		}
		if ok {
			fl.arrived(n)
		}
	}
}

// next reads one message; ok is false for a packet that is none of ours.
func (fl *flow) next(buf []byte) (n uint64, ok bool, err error) {
	switch conn := fl.conn.(type) {
	case *net.IPConn:
		// Unlike Read, it strips the IPv4 header.
		size, _, err := conn.ReadFromIP(buf)
		reply := [2]byte{0, 129}[fl.family]
		if err != nil || size != icmpHeader+messageSize || buf[0] != reply || binary.BigEndian.Uint16(buf[4:]) != fl.port {
			return 0, false, err
		}
		return binary.BigEndian.Uint64(buf[icmpHeader:]), true, nil
	case *net.UDPConn:
		size, err := conn.Read(buf)
		return binary.BigEndian.Uint64(buf), size == messageSize, err
	default:
		_, err := io.ReadFull(conn, buf[:messageSize])
		return binary.BigEndian.Uint64(buf), true, err
	}
}

func (fl *flow) arrived(n uint64) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if n < uint64(len(fl.answered)) {
		fl.answered[n] = true
	}
	now := time.Now()
	fl.gap = max(fl.gap, now.Sub(fl.last))
	fl.last = now
}

// fail notes the first error, unless we closed the socket ourselves.
func (fl *flow) fail(err error) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	select {
	case <-fl.stop:
	default:
		if fl.err == nil {
			fl.err = err
		}
	}
}

// goesOn waits until so many messages were sent: a loaded machine sends them late.
func (fl *flow) goesOn(ctx context.Context, messages int) error {
	ctx, cancel := context.WithTimeout(ctx, allowLimit)
	defer cancel()
	for fl.mark() < messages {
		if err := fl.failure(); err != nil {
			return fmt.Errorf("flow %s: %w", fl, err)
		}
		if err := pause(ctx, flowPeriod); err != nil {
			return fmt.Errorf("flow %s: %d messages sent, want %d: %w", fl, fl.mark(), messages, err)
		}
	}
	return nil
}

// mark is the number of messages sent so far: the beginning of a phase.
func (fl *flow) mark() int {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.sent
}

// lost counts the messages from one mark to another that were not answered.
func (fl *flow) lost(from, to int) int {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	n := 0
	for _, ok := range fl.answered[from:to] {
		if !ok {
			n++
		}
	}
	return n
}

// drainLimit is how long what is on its way may take.
const drainLimit = 20 * time.Second

// drain stops sending and waits for what is on its way.
func (fl *flow) drain(limit time.Duration) {
	fl.mu.Lock()
	select {
	case <-fl.stop:
	default:
		close(fl.stop)
	}
	fl.mu.Unlock()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for fl.lost(0, fl.mark()) > 0 {
		select {
		case <-deadline.C:
			return
		case <-tick.C:
		}
	}
}

// close ends the flow and its goroutines. The second time it does nothing.
func (fl *flow) close() (err error) {
	fl.closing.Do(func() {
		fl.drain(0)
		err = fl.conn.Close()
		fl.stopped.Wait()
	})
	return err
}

// retransmits is how often TCP sent a segment again, for whatever reason.
func (fl *flow) retransmits() int {
	tcp, ok := fl.conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	if err := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int(info.Total_retrans)
		}
	}); err != nil {
		return 0
	}
	return n
}

func (fl *flow) failure() error {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.err
}
