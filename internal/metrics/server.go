package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// maxScrapes is how many scrapes run at once; more are told to come again.
	maxScrapes = 4
	// requestTimeout bounds the reading and writing of one request.
	requestTimeout = 10 * time.Second
	closeGrace     = time.Second
)

// Server answers /metrics and /healthz over TCP, to everybody who reaches it.
type Server struct {
	http  *http.Server
	addr  net.Addr
	ended chan struct{}
}

// Serve starts to answer on an address such as 127.0.0.1:9962. Close is due.
func (m *Metrics) Serve(addr string) (*Server, error) {
	return Serve(addr, m.registry, m.Health, m.logger)
}

// Serve does so for any registry.
func Serve(addr string, registry *prometheus.Registry, health func() error, logger *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("prometheus-serve-addr %s: %w; choose an address of this host and a free port", addr, err)
	}
	errorLog := slog.NewLogLogger(logger.Handler(), slog.LevelWarn)
	s := &Server{
		http: &http.Server{
			Handler:     handler(registry, health, logger),
			ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, IdleTimeout: 2 * time.Minute,
			ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		},
		addr: l.Addr(), ended: make(chan struct{}),
	}
	go func() {
		defer close(s.ended)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			errorLog.Printf("metrics are not served any more: %v", err)
		}
	}()
	logger.Info("serving metrics, to everybody who reaches this address", "address", s.addr.String())
	return s, nil
}

func handler(registry *prometheus.Registry, health func() error, logger *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	// A part that cannot be read does not take the rest with it.
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ErrorHandling: promhttp.ContinueOnError, Registry: registry,
		MaxRequestsInFlight: maxScrapes, Timeout: requestTimeout, EnableOpenMetrics: true,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := health(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.addr }

// Close stops the server. Requests that do not end soon are cut off.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	<-s.ended
	return err
}
