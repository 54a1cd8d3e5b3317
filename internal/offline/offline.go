// Package offline answers the API from an archive, without an agent: an exported
// file, or a state directory. The same handlers answer as in an agent; only what
// would change something, or look into a kernel, is refused.
package offline

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/api"
	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/internal/version"
	"github.com/varve-net/varve/log"
)

// Config is what a Server is made of.
type Config struct {
	// Path is of an exported file, an agent's state directory, or the log or the
	// history in it.
	Path string
	// Node is the one to answer for. Default: the one whose agent exported the file
	// or has the state directory, or the only one that the log knows.
	Node string
	// Flows is a copy of the folder of a node's flow record. Default: the one in the
	// state directory, if there is one.
	Flows  string
	Logger *slog.Logger
}

// Server answers for one archive, in this process alone.
type Server struct {
	Archive *past.Archive
	flows   *flows.Store // nil: there are none
	pairs   *pairs
	stop    context.CancelFunc
	served  chan error
}

// Serve opens an archive and answers for it as the agent of its node would.
func Serve(ctx context.Context, c Config) (*Server, error) {
	archive, err := past.OpenArchive(ctx, c.Path, c.Logger)
	if err != nil {
		return nil, err
	}
	recorded, err := openFlows(c)
	if err != nil {
		return nil, errors.Join(err, archive.History.Close())
	}
	// Most questions are about a moment of the past: the newest state costs a replay.
	view := sync.OnceValue(func() fsm.View { return newest(archive) })
	node := nodeOf(c, archive, view)
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{Archive: archive, flows: recorded, pairs: newPairs(), stop: stop, served: make(chan error, 1)}
	info := apiserver.Info{Version: version.String(), Cluster: archive.Cluster, Node: node, PID: os.Getpid(), StartedUnixNS: time.Now().UnixNano()}
	server := apiserver.New(apiserver.Config{
		Listener: s.pairs, Cluster: archive.Cluster, Node: node, Info: func() apiserver.Info { return info },
		Log: archivedLog{archive, view}, Projector: projector{archive, view, node}, Endpoints: endpoints{}, Kernel: kernel{},
		Monitor: monitor{}, Past: archive.Past, Flows: recorded, Archive: true, Logger: c.Logger,
	})
	go func() { s.served <- server.Serve(serving) }()
	return s, nil
}

// openFlows opens the flow record that belongs to the archive; nil if there is none.
func openFlows(c Config) (*flows.Store, error) {
	if c.Flows != "" {
		return flows.OpenReadOnly(c.Flows)
	}
	s, err := flows.OpenReadOnly(filepath.Join(c.Path, "flows"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	return s, err
}

// newest is the state of the newest revision; of an archive that is filtered or
// damaged it is the empty one, and what asks for it is answered with the reason.
func newest(a *past.Archive) fsm.View {
	head, _ := a.History.Last()
	v, err := a.View(context.Background(), head)
	if err != nil {
		return fsm.View{}
	}
	return v
}

// nodeOf finds the node to answer for.
func nodeOf(c Config, a *past.Archive, newest func() fsm.View) string {
	if c.Node != "" {
		return c.Node
	}
	if meta := a.History.Exported(); meta.GetNode() != "" {
		return meta.GetNode()
	}
	if id, err := cluster.Load(c.Path); err == nil && id.Cluster == a.Cluster {
		return id.Node
	}
	var names []string
	for n := range newest().Nodes() {
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
	err := <-s.served
	if s.flows != nil {
		err = errors.Join(err, s.flows.Close())
	}
	return errors.Join(err, s.Archive.History.Close())
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
