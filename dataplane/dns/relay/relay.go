package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/dataplane/dns/sock"
)

// portTries is how many free UDP ports are tried until one is free for TCP too.
const portTries = 16

// Relay is a running relay.
type Relay struct {
	cfg  Config
	port uint16
	udp  [2]int // IPv4, IPv6; -1: the kernel has no such family
	tcp  []*net.TCPListener
	// late sends what a Learner releases.
	lateMu sync.Mutex
	late   *sock.Answers

	sessions sessions
}

// New opens the sockets. Questions wait in them until Run.
func New(ctx context.Context, cfg Config) (*Relay, error) {
	if cfg.Workers <= 0 {
		cfg.Workers = min(runtime.NumCPU(), 4)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(*Exchange) {}
	}
	r := &Relay{cfg: cfg, udp: [2]int{-1, -1}}
	var err error
	if r.late, err = sock.NewAnswers(cfg.Mark); err != nil {
		return nil, err
	}
	for range portTries {
		if err = r.listen(ctx); err == nil {
			return r, nil
		}
		r.closeListeners()
		if cfg.Port != 0 || !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, errors.Join(err, r.late.Close())
}

// listen binds all listeners to one port.
func (r *Relay) listen(ctx context.Context) error {
	r.port = r.cfg.Port
	for i, v6 := range []bool{false, true} {
		fd, err := sock.ListenUDP(v6, r.port, r.cfg.Mark)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return err
		}
		r.udp[i] = fd
		if r.port, err = sock.Port(fd); err != nil {
			return err
		}
		l, err := sock.ListenTCP(ctx, v6, r.port, r.cfg.Mark)
		if err != nil {
			return err
		}
		r.tcp = append(r.tcp, l)
	}
	if len(r.tcp) == 0 {
		return errors.New("the kernel has neither IPv4 nor IPv6")
	}
	return nil
}

func (r *Relay) closeListeners() {
	for i, fd := range r.udp {
		if fd >= 0 {
			unix.Close(fd)
			r.udp[i] = -1
		}
	}
	for _, l := range r.tcp {
		l.Close()
	}
	r.tcp = nil
}

// Port is where the relay listens.
func (r *Relay) Port() uint16 { return r.port }

// Run relays until ctx ends, and closes the sockets. It is called once.
func (r *Relay) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var workers []*worker
	defer func() {
		r.closeListeners()
		for _, w := range workers {
			w.close()
		}
		r.lateMu.Lock()
		defer r.lateMu.Unlock()
		r.late.Close()
		r.late = nil
	}()
	for range r.cfg.Workers {
		w, err := newWorker(r)
		if err != nil {
			return err
		}
		workers = append(workers, w)
	}
	for _, w := range workers {
		g.Go(w.run)
	}
	for _, l := range r.tcp {
		g.Go(func() error { return r.serveTCP(ctx, l) })
	}
	g.Go(func() error {
		<-ctx.Done()
		for _, w := range workers {
			w.wake()
		}
		for _, l := range r.tcp {
			l.Close()
		}
		return nil
	})
	err := g.Wait()
	r.sessions.wait()
	return err
}

// Flush sends what was released since the last Flush.
func (r *Relay) Flush() {
	r.lateMu.Lock()
	defer r.lateMu.Unlock()
	if r.late != nil {
		r.late.Flush()
	}
}

// observe tells of a question that is done with.
func (r *Relay) observe(e *Exchange) {
	e.Total = time.Since(e.Time)
	r.cfg.Observe(e)
}

func eventFD() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("eventfd: %w", err)
	}
	return fd, nil
}
