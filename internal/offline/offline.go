// Package offline answers the API from an archive, without an agent: an exported
// file, or a state directory. The same handlers answer as in an agent; only what
// would change something, or look into a kernel, is refused.
package offline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/api"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/internal/version"
	"github.com/varve-net/varve/log"
)

// Server answers for one archive, in this process alone.
type Server struct {
	Archive *past.Archive
	pairs   *pairs
	stop    context.CancelFunc
	served  chan error
}

// Serve opens an archive and answers for it as the agent of a node would. An empty
// node is the one whose agent exported it, or the only one that it knows.
func Serve(ctx context.Context, path, node string, logger *slog.Logger) (*Server, error) {
	archive, err := past.OpenArchive(ctx, path, logger)
	if err != nil {
		return nil, err
	}
	view, err := newest(ctx, archive)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if node == "" {
		node = nodeOf(archive, view)
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{Archive: archive, pairs: newPairs(), stop: stop, served: make(chan error, 1)}
	info := apiserver.Info{Version: version.String(), Cluster: archive.Cluster, Node: node, PID: os.Getpid(), StartedUnixNS: time.Now().UnixNano()}
	server := apiserver.New(apiserver.Config{
		Listener: s.pairs, Cluster: archive.Cluster, Node: node, Info: func() apiserver.Info { return info },
		Log: archivedLog{archive, view}, Projector: projector{archive, view, node}, Endpoints: endpoints{}, Kernel: kernel{},
		Monitor: monitor{}, Past: archive.Past, Archive: true, Logger: logger,
	})
	go func() { s.served <- server.Serve(serving) }()
	return s, nil
}

// newest is the state of the newest revision; of an archive that is filtered or
// damaged it is the empty one, and what asks for it is answered with the reason.
func newest(ctx context.Context, a *past.Archive) (fsm.View, error) {
	head, _ := a.History.Last()
	v, err := a.View(ctx, head)
	if err != nil && ctx.Err() != nil {
		return v, err
	}
	return v, nil
}

// nodeOf finds the node to answer for.
func nodeOf(a *past.Archive, v fsm.View) string {
	if meta := a.History.Exported(); meta.GetNode() != "" {
		return meta.GetNode()
	}
	var names []string
	for n := range v.Nodes() {
		names = append(names, n.Name)
	}
	if len(names) == 1 {
		return names[0]
	}
	return ""
}

// Client calls the server.
func (s *Server) Client() (*api.Client, error) {
	return api.New("", api.WithDialer(s.pairs.dial))
}

// Close ends the server.
func (s *Server) Close() error {
	s.stop()
	return errors.Join(<-s.served, s.Archive.History.Close())
}

// pairs is a listener whose connections are pairs of sockets of this process, so
// that they carry its credentials and nobody else can connect.
type pairs struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPairs() *pairs { return &pairs{accept: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pairs) dial(ctx context.Context) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	near, err := conn(fds[0])
	if err != nil {
		return nil, errors.Join(err, unix.Close(fds[1]))
	}
	far, err := conn(fds[1])
	if err != nil {
		return nil, errors.Join(err, near.Close())
	}
	select {
	case p.accept <- far:
		return near, nil
	case <-p.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(err, near.Close(), far.Close())
}

func conn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socketpair")
	defer f.Close()
	return net.FileConn(f)
}

// Accept implements net.Listener.
func (p *pairs) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *pairs) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Addr implements net.Listener.
func (p *pairs) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "archive"} }

var _ log.Reader = archivedLog{}
