package testns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Echo is a server that sends back what it gets.
type Echo struct {
	addr  netip.AddrPort
	close func() error
	wg    sync.WaitGroup
}

// Addr is where the server listens.
func (e *Echo) Addr() netip.AddrPort { return e.addr }

// Close stops the server, ends its connections and waits for its goroutines.
func (e *Echo) Close() error {
	err := e.close()
	e.wg.Wait()
	return err
}

// EchoTCP starts a TCP echo server inside the namespace; port 0 takes a free one.
func (n *NS) EchoTCP(at netip.AddrPort) (*Echo, error) {
	var l *net.TCPListener
	err := n.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("TCP echo %s in %s: %w", at, n.name, err)
	}
	var mu sync.Mutex
	conns := make(map[net.Conn]struct{})
	e := &Echo{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	e.close = func() error {
		err := l.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range conns {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	e.wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = struct{}{}
			mu.Unlock()
			e.wg.Go(func() {
				_, _ = io.Copy(c, c) // ends with the connection, however it ends
				mu.Lock()
				defer mu.Unlock()
				delete(conns, c)
				_ = c.Close()
			})
		}
	})
	return e, nil
}

// EchoUDP is EchoTCP for UDP.
func (n *NS) EchoUDP(at netip.AddrPort) (*Echo, error) {
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("UDP echo %s in %s: %w", at, n.name, err)
	}
	e := &Echo{addr: c.LocalAddr().(*net.UDPAddr).AddrPort(), close: c.Close}
	e.wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			size, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteToUDPAddrPort(buf[:size], from) // the client sees a loss
			}
		}
	})
	return e, nil
}

// echoBuffer holds what arrives while a loaded machine does not let the server run.
const echoBuffer = 32 << 20

// EchoUDPEverywhere is EchoUDP on every address that the namespace's routes call
// local, also those of no interface: it answers from the one it was sent to. The
// address is the unspecified one of IPv6, and IPv4 is served too.
func (n *NS) EchoUDPEverywhere(port uint16) (*Echo, error) {
	at := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	var c *net.UDPConn
	err := n.Do(func() error {
		var lc net.ListenConfig
		lc.Control = func(_, _ string, raw syscall.RawConn) error {
			var set error
			err := raw.Control(func(fd uintptr) {
				set = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1),
					unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, echoBuffer))
			})
			return errors.Join(err, set)
		}
		pc, err := lc.ListenPacket(context.Background(), "udp", at.String())
		if err == nil {
			c = pc.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("UDP echo %s in %s: %w", at, n.name, err)
	}
	e := &Echo{addr: c.LocalAddr().(*net.UDPAddr).AddrPort(), close: c.Close}
	e.wg.Go(func() {
		buf, oob := make([]byte, 1<<16), make([]byte, 256)
		for {
			size, about, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				// What says where it was sent to says where the answer comes from.
				_, _, _ = c.WriteMsgUDPAddrPort(buf[:size], oob[:about], from) // the client sees a loss
			}
		}
	})
	return e, nil
}

// DialTCP opens a TCP connection from inside the namespace.
func (n *NS) DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return n.dial(ctx, "tcp", to)
}

// DialUDP opens a connected UDP socket inside the namespace.
func (n *NS) DialUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return n.dial(ctx, "udp", to)
}

func (n *NS) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("from %s: %w", n.name, err)
	}
	return c, nil
}

// writeLimit ends a write to a connection that takes nothing any more.
const writeLimit = time.Minute

// RoundTrip sends a message over a connection to an echo server and waits for
// it to come back. The time counts from when it was sent: a machine that is too busy
// to send at all does not look like silence. A timeout is an error for which
// os.IsTimeout is true.
func RoundTrip(c net.Conn, message string, timeout time.Duration) error {
	if err := c.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, message); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	buf := make([]byte, len(message))
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	if string(buf) != message {
		return fmt.Errorf("sent %q, got %q back", message, buf)
	}
	return nil
}

// ExchangeTCP opens a connection, makes one round trip and closes it. At least one
// packet is sent, however busy the machine is.
func (n *NS) ExchangeTCP(to netip.AddrPort, timeout time.Duration) error {
	return n.exchange("tcp", to, timeout)
}

// ExchangeUDP is ExchangeTCP for UDP: one datagram, one answer.
func (n *NS) ExchangeUDP(to netip.AddrPort, timeout time.Duration) error {
	return n.exchange("udp", to, timeout)
}

func (n *NS) exchange(network string, to netip.AddrPort, timeout time.Duration) error {
	var c net.Conn
	err := n.Do(func() (err error) {
		for begun := false; !begun; {
			// A dialer whose time is over before it has a socket has sent nothing.
			d := net.Dialer{Timeout: timeout, Control: func(string, string, syscall.RawConn) error {
				begun = true
				return nil
			}}
			if c, err = d.Dial(network, to.String()); err == nil || !os.IsTimeout(err) {
				break
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("from %s: %w", n.name, err)
	}
	return errors.Join(RoundTrip(c, "hello from "+n.name, timeout), c.Close())
}
