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
)

// passOn hands calls over to the server on another unix socket, whole and as they
// are: whoever may call this server may call that one.
func passOn(socket string, logger *slog.Logger) http.Handler {
	if socket == "" {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = connect.NewErrorWriter().Write(w, r, connect.NewError(connect.CodeFailedPrecondition, errors.New("there is no DNS proxy here")))
		})
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	writer := connect.NewErrorWriter()
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "dns-proxy"}) },
		Transport: &http.Transport{
			Protocols: protocols,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		},
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
