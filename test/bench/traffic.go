package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Traffic is what one run between two namespaces measured.
type Traffic struct {
	PerSecond float64 `json:"per_second"` // transactions, or Gbit/s of a stream
}

const trafficPort = 7000

// Sockets block, and are used by raw system calls of one thread: Go's scheduler
// and poller would otherwise be most of what is measured.
func call(trap, a, b, c, d, e, f uintptr) (int, error) {
	for {
		r, _, errno := unix.RawSyscall6(trap, a, b, c, d, e, f)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return -1, errno
		}
		return int(r), nil
	}
}

func send(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := call(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func recv(fd int, b []byte) (int, error) {
	return call(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
}

// trafficCommand is one end: -serve echoes, or swallows a stream; without, it
// asks for a time and says how often it was answered.
func trafficCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("traffic", flag.ContinueOnError)
	fs.SetOutput(stderr)
	serve := fs.Bool("serve", false, "be the server")
	mode := fs.String("mode", "", "rr, crr, udp, stream, tuples")
	to := fs.String("to", "", "the server's address")
	seconds := fs.Float64("seconds", 1, "how long")
	passes := fs.Int("passes", 1, "of mode tuples: how often each")
	if err := fs.Parse(args); err != nil {
		return err
	}
	runtime.LockOSThread()
	if *serve {
		return serveTraffic(*mode, stdout)
	}
	addr, err := netip.ParseAddr(*to)
	if err != nil {
		return err
	}
	if *mode == "tuples" {
		t, err := sendTuples(unix.SockaddrInet4{Addr: addr.As4()}, *passes)
		if err != nil {
			return fmt.Errorf("tuples: %w", err)
		}
		return json.NewEncoder(stdout).Encode(t)
	}
	t, err := measureTraffic(*mode, &unix.SockaddrInet4{Port: trafficPort, Addr: addr.As4()}, time.Duration(*seconds*float64(time.Second)))
	if err != nil {
		return fmt.Errorf("%s: %w", *mode, err)
	}
	return json.NewEncoder(stdout).Encode(t)
}

func serveTraffic(mode string, stdout io.Writer) error {
	if mode == "tuples" {
		if err := bindTuples(); err != nil {
			return err
		}
		fmt.Fprintln(stdout, readyLine)
		select {}
	}
	kind := unix.SOCK_STREAM
	if mode == "udp" {
		kind = unix.SOCK_DGRAM
	}
	l, err := unix.Socket(unix.AF_INET, kind, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Port: trafficPort}); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	if mode == "udp" {
		fmt.Fprintln(stdout, readyLine)
		for {
			n, from, err := unix.Recvfrom(l, buf, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(l, from); err != nil {
				return err
			}
			if err := send(l, buf[:n]); err != nil {
				return err
			}
			for {
				n, err := recv(l, buf)
				if err != nil {
					return err
				}
				if err := send(l, buf[:n]); err != nil {
					return err
				}
			}
		}
	}
	if err := unix.Listen(l, 1024); err != nil {
		return err
	}
	fmt.Fprintln(stdout, readyLine)
	for {
		fd, err := call(unix.SYS_ACCEPT4, uintptr(l), 0, 0, 0, 0, 0)
		if err != nil {
			return err
		}
		if err := noDelay(fd); err != nil {
			return err
		}
		for {
			n, err := recv(fd, buf)
			if err != nil || n == 0 {
				break
			}
			if mode != "stream" && send(fd, buf[:n]) != nil {
				break
			}
		}
		unix.Close(fd)
	}
}

func noDelay(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// dial connects; a server that does not answer is an error after two seconds.
func dial(kind int, to unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind, 0)
	if err != nil {
		return -1, err
	}
	limit := unix.Timeval{Sec: 2}
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = noDelay(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// measureTraffic does one thing over and over; the first tenth is not counted.
func measureTraffic(mode string, to unix.Sockaddr, length time.Duration) (Traffic, error) {
	var once func() (float64, error)
	one := []byte{1}
	switch mode {
	case "rr", "udp":
		kind := unix.SOCK_STREAM
		if mode == "udp" {
			kind = unix.SOCK_DGRAM
		}
		fd, err := dial(kind, to)
		if err != nil {
			return Traffic{}, err
		}
		defer unix.Close(fd)
		once = func() (float64, error) { return 1, ping(fd, one) }
	case "crr":
		once = func() (float64, error) {
			fd, err := dial(unix.SOCK_STREAM, to)
			if err != nil {
				return 0, err
			}
			// A reset instead of TIME_WAIT: ports would run out.
			err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			if err == nil {
				err = ping(fd, one)
			}
			return 1, errors.Join(err, unix.Close(fd))
		}
	case "stream":
		fd, err := dial(unix.SOCK_STREAM, to)
		if err != nil {
			return Traffic{}, err
		}
		defer unix.Close(fd)
		piece := make([]byte, 128<<10)
		once = func() (float64, error) { return float64(len(piece)) * 8 / 1e9, send(fd, piece) }
	default:
		return Traffic{}, fmt.Errorf("-mode: %q is not known", mode)
	}
	began := time.Now()
	var from time.Time
	var sum float64
	for {
		n, err := once()
		if err != nil {
			return Traffic{}, err
		}
		now := time.Now()
		switch since := now.Sub(began); {
		case from.IsZero():
			if since > length/10 {
				from = now
			}
		case since > length+length/10:
			return Traffic{PerSecond: sum / now.Sub(from).Seconds()}, nil
		default:
			sum += n
		}
	}
}

func ping(fd int, one []byte) error {
	if err := send(fd, one); err != nil {
		return err
	}
	n, err := recv(fd, one)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}
