// Package dnsproxy wires the DNS proxy of a node together: the proxy itself, its
// unix socket, on which the agent and people ask it, and its metrics.
package dnsproxy

import (
	"context"
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/dataplane/dns"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/internal/dnsrpc"
	"github.com/varve-net/varve/internal/metrics"
)

// StateDir is the proxy's directory in the agent's state directory.
const StateDir = "dns"

// Config is what a proxy is started with.
type Config struct {
	dns.Config
	// Socket is the path of the proxy's unix socket. It is root's alone: what is told
	// there becomes the node's facts. Others ask the agent, which passes on.
	Socket string
	// PrometheusServeAddr is the TCP address of /metrics and /healthz. Empty: none.
	PrometheusServeAddr string
	// Ready, if set, is closed once questions are answered.
	Ready chan<- struct{}
}

// Run runs a proxy until ctx ends or a part of it fails. Whatever way it ends, what
// endpoints have learned stays in the kernel.
func Run(ctx context.Context, cfg Config) (err error) {
	tuneGC()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	listener, err := apiserver.Bind(cfg.Socket, "")
	if err != nil {
		return err
	}
	defer listener.Close()
	proxy, err := dns.Open(ctx, cfg.Config, registry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()
	if cfg.PrometheusServeAddr != "" {
		srv, err := metrics.Serve(cfg.PrometheusServeAddr, registry, proxy.Health, cfg.Logger)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, srv.Close()) }()
	}
	srv := apiserver.NewHTTP(handler(proxy), "", cfg.Logger)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return proxy.Run(ctx) })
	g.Go(func() error { return apiserver.ServeHTTP(ctx, srv, listener) })
	if cfg.Ready != nil {
		close(cfg.Ready)
	}
	return g.Wait()
}

// handler is all that the socket answers.
func handler(proxy *dns.Proxy) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(dnsrpc.NewHandler(proxy))
	mux.Handle(varvev1connect.NewFQDNServiceHandler(service{proxy}, connect.WithCodec(api.Codec())))
	return mux
}
