package sock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer is how much may wait to be read: some 10,000 questions.
const receiveBuffer = 8 << 20

// transparent makes a socket one that may have any address, and gives it a mark.
func transparent(fd int, v6 bool, mark uint32) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if v6 {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("transparent: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	return nil
}

// ListenUDP returns a non-blocking socket on the wildcard address of a family that
// tells of each datagram where it was sent to. Port 0 takes a free one.
func ListenUDP(v6 bool, port uint16, mark uint32) (fd int, err error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("UDP socket: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("UDP listener, port %d: %w", port, err), unix.Close(fd))
			fd = -1
		}
	}()
	if err := transparent(fd, v6, mark); err != nil {
		return fd, err
	}
	level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
	var any unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if v6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fd, fmt.Errorf("IPv6 only: %w", err)
		}
		level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
		any = &unix.SockaddrInet6{Port: int(port)}
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fd, fmt.Errorf("original destination: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return fd, fmt.Errorf("receive buffer: %w", err)
	}
	return fd, unix.Bind(fd, any)
}

// ListenTCP returns a listener on the wildcard address of a family, whose
// connections have the address that the client asked as their own. Port 0 takes a
// free one.
func ListenTCP(ctx context.Context, v6 bool, port uint16, mark uint32) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: control(v6, mark)}
	lc.SetMultipathTCP(false)
	network, host := "tcp4", "0.0.0.0"
	if v6 {
		network, host = "tcp6", "::"
	}
	l, err := lc.Listen(ctx, network, net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("TCP listener: %w", err)
	}
	return l.(*net.TCPListener), nil
}

// control is for the sockets that package net makes.
func control(v6 bool, mark uint32) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var serr error
		if err := c.Control(func(fd uintptr) { serr = transparent(int(fd), v6, mark) }); err != nil {
			return err
		}
		return serr
	}
}

// Port is the port that a socket is bound to.
func Port(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("socket name: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, fmt.Errorf("socket name: %T", sa)
}

// DialUDP returns a non-blocking socket from a free port of a container's address,
// chosen by the kernel at random, to a server.
func DialUDP(from netip.Addr, server netip.AddrPort, mark uint32) (fd int, err error) {
	family := unix.AF_INET
	if from.Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("UDP socket: %w", err)
	}
	err = transparent(fd, from.Is6(), mark)
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0)))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(server))
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("UDP socket from %s to %s: %w", from, server, err), unix.Close(fd))
	}
	return fd, nil
}

// DialTCP connects from a free port of a container's address to a server.
func DialTCP(ctx context.Context, from netip.Addr, server netip.AddrPort, mark uint32) (*net.TCPConn, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
		Control:   control(from.Is6(), mark),
	}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
