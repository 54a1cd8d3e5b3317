package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
)

var errNoProxy = connect.NewError(connect.CodeFailedPrecondition, errors.New("there is no DNS proxy here"))

// passedOn is where the proxy is as the servers behind its socket see it.
const passedOn = "dns-proxy"

// proxyTransport reaches the DNS proxy on its socket.
func proxyTransport(socket string) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
}

// handleFQDN answers FQDNService: what is of the past itself, all else by handing it on.
func (s *Server) handleFQDN(mux *http.ServeMux, opts ...connect.HandlerOption) {
	lister := nameLister{Server: s}
	if s.DNSSocket != "" {
		lister.proxy = varvev1connect.NewFQDNServiceClient(&http.Client{Transport: proxyTransport(s.DNSSocket)}, "http://"+passedOn)
	}
	mux.Handle(varvev1connect.FQDNServiceListNamesProcedure, connect.NewUnaryHandler(
		varvev1connect.FQDNServiceListNamesProcedure, lister.list, append(opts, connect.WithIdempotency(connect.IdempotencyNoSideEffects))...))
	mux.Handle("/"+varvev1connect.FQDNServiceName+"/", passOn(s.DNSSocket, s.Logger))
}

// passOn hands calls over to the server on another unix socket, whole and as they
// are: whoever may call this server may call that one.
func passOn(socket string, logger *slog.Logger) http.Handler {
	if socket == "" {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = connect.NewErrorWriter().Write(w, r, errNoProxy)
		})
	}
	writer := connect.NewErrorWriter()
	return &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: passedOn}) },
		Transport:     proxyTransport(socket),
		FlushInterval: -1, // streams
		ErrorLog:      slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, context.Canceled) {
				return
			}
			_ = writer.Write(w, r, connect.NewError(connect.CodeUnavailable, fmt.Errorf("the DNS proxy does not answer on %s: %w", socket, err)))
		},
	}
}
