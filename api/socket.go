package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// DefaultSocket is where an agent listens unless it is told otherwise.
const DefaultSocket = "/run/varve/varve.sock"

// SocketEnv names the environment variable that stands in for an address that is
// not given.
const SocketEnv = "VARVE_SOCKET"

// maxSocketPath is sun_path of struct sockaddr_un without its closing zero
// (unix(7)).
const maxSocketPath = 107

// dialTimeout bounds connecting. A unix socket answers at once or is not accepted
// at all because its backlog is full.
const dialTimeout = 5 * time.Second

// DialError says that nobody could be reached at the socket. Err is the reason as
// the kernel gave it: fs.ErrNotExist, fs.ErrPermission, syscall.ECONNREFUSED ...
type DialError struct {
	Address string
	Err     error
}

func (e *DialError) Error() string { return fmt.Sprintf("socket %s: %v", e.Address, e.Err) }
func (e *DialError) Unwrap() error { return e.Err }

func socketPath(address string) (string, error) {
	if address == "" {
		address = os.Getenv(SocketEnv)
	}
	if address == "" {
		return DefaultSocket, nil
	}
	path := address
	if scheme, rest, ok := strings.Cut(address, ":"); ok && !strings.Contains(scheme, "/") {
		if scheme != "unix" {
			return "", fmt.Errorf("address %q: scheme %q is not known; give the path of a unix socket, e.g. %s", address, scheme, DefaultSocket)
		}
		path = rest
		if strings.HasPrefix(rest, "//") {
			path = rest[len("//"):]
			if !strings.HasPrefix(path, "/") {
				return "", fmt.Errorf("address %q: has a host; write unix:///path or unix:path", address)
			}
		}
	}
	switch {
	case path == "":
		return "", fmt.Errorf("address %q: has no path; give one such as %s", address, DefaultSocket)
	case len(path) > maxSocketPath:
		return "", fmt.Errorf("address %q: the path has %d bytes, a unix socket's at most %d; choose a shorter one", address, len(path), maxSocketPath)
	}
	return path, nil
}

// transports carry calls over the socket, without TLS: those of one message each
// way by HTTP/1.1 on connections of their own, which costs a quarter less time
// than streams of HTTP/2 do, and all others, gRPC's too, by one HTTP/2 connection.
type transports struct {
	single, streams *http.Transport
}

// maxIdle is how many connections are kept for the next calls.
const maxIdle = 256

func newTransports(dial func(context.Context, string, string) (net.Conn, error)) *transports {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &transports{
		single:  &http.Transport{DialContext: dial, MaxIdleConnsPerHost: maxIdle, DisableCompression: true},
		streams: &http.Transport{DialContext: dial, Protocols: protocols, DisableCompression: true},
	}
}

// RoundTrip implements http.RoundTripper.
func (t *transports) RoundTrip(r *http.Request) (*http.Response, error) {
	switch r.Header.Get("Content-Type") {
	case "application/proto", "application/json":
		return t.single.RoundTrip(r)
	default:
		return t.streams.RoundTrip(r)
	}
}

func (t *transports) closeIdle() {
	t.single.CloseIdleConnections()
	t.streams.CloseIdleConnections()
}

// dialer connects to the socket, whatever is dialled.
func dialer(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout}
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		// What is left without these is the errno: the address is said already.
		var opErr *net.OpError
		if errors.As(err, &opErr) {
			err = opErr.Err
		}
		var sysErr *os.SyscallError
		if errors.As(err, &sysErr) {
			err = sysErr.Err
		}
		return nil, &DialError{Address: path, Err: err}
	}
}
