package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	"github.com/varve-net/varve/api"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/internal/auditserver"
	"github.com/varve-net/varve/internal/inforce"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/projections"
)

// maxRequestBytes bounds one message of a client; a manifest of a few thousand
// policies fits.
const maxRequestBytes = 16 << 20

// shutdownGrace is how long unary calls may take to end once the server stops.
const shutdownGrace = 2 * time.Second

// maxStreams is how many calls of one connection are answered at once.
const maxStreams = 1000

// services are all that the server answers.
var services = []string{
	varvev1connect.LogServiceName, varvev1connect.PolicyServiceName, varvev1connect.EndpointServiceName,
	varvev1connect.NamespaceServiceName, varvev1connect.IdentityServiceName, varvev1connect.AgentServiceName,
	varvev1connect.DatapathServiceName, varvev1connect.AuditServiceName, varvev1connect.FlowServiceName,
	varvev1connect.NodeServiceName, varvev1connect.FQDNServiceName, varvev1connect.SnapshotServiceName,
}

// Config is all a Server needs.
type Config struct {
	Listener net.Listener // from Bind
	Group    string       // members of it may call beside root; "" for root only
	// RestoreGroup is those of Group who may restore snapshots beside root; "" for root
	// only.
	RestoreGroup string
	Cluster      string
	Node         string
	Info         func() Info

	Log       Log
	Projector Projector
	Endpoints Endpoints
	Kernel    Kernel
	Monitor   Monitor
	Past      *past.Past
	// InForce is what this node recorded of its tables; nil: nothing is.
	InForce func() ([]inforce.Record, error)
	// Archive: the log is one that nobody writes to, and there is no kernel. The
	// present is then its newest revision.
	Archive bool
	Flows   *flows.Store       // nil: none are recorded
	Drift   func() DriftReport // nil: nobody looks for it
	// Names is what the node's DNS proxy knows; nil: there is none.
	Names Names
	// DNSSocket is the DNS proxy's; empty: there is none.
	DNSSocket string
	Logger    *slog.Logger
}

// Server answers the API.
type Server struct {
	Config
	http      *http.Server
	restoring sync.Mutex // held by who restores a snapshot
}

// New makes a server that is ready to Serve.
func New(cfg Config) *Server {
	s := &Server{Config: cfg}
	mux := http.NewServeMux()
	opts := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxRequestBytes), connect.WithCodec(api.Codec()), connect.WithCodec(jsonCodec{}))
	mux.Handle(varvev1connect.NewLogServiceHandler(logService{s}, opts))
	mux.Handle(varvev1connect.NewPolicyServiceHandler(policyService{s}, opts))
	mux.Handle(varvev1connect.NewEndpointServiceHandler(endpointService{s}, opts))
	mux.Handle(varvev1connect.NewNamespaceServiceHandler(namespaceService{s}, opts))
	mux.Handle(varvev1connect.NewIdentityServiceHandler(identityService{s}, opts))
	mux.Handle(varvev1connect.NewSnapshotServiceHandler(snapshotService{s}, opts))
	mux.Handle(varvev1connect.NewNodeServiceHandler(nodeService{s}, opts))
	mux.Handle(varvev1connect.NewAgentServiceHandler(agentService{s}, opts))
	mux.Handle(varvev1connect.NewDatapathServiceHandler(datapathService{s}, opts))
	mux.Handle(varvev1connect.NewFlowServiceHandler(flowService{s}, opts))
	mux.Handle(varvev1connect.NewAuditServiceHandler(auditService{auditserver.New(cfg.Past, projections.Options{}), s}, opts))

	s.handleFQDN(mux, opts)

	// For grpcurl and gRPC health probes; authenticated as all the rest.
	reflector := grpcreflect.NewStaticReflector(services...)
	mux.Handle(grpcreflect.NewHandlerV1(reflector))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector))
	mux.Handle(grpchealth.NewHandler(grpchealth.NewStaticChecker(services...)))

	s.http = newHTTP(mux, authenticator{uid: uint32(os.Geteuid()), group: cfg.Group, restorers: cfg.RestoreGroup}, cfg.Logger)
	return s
}

// NewHTTP makes a server for the listener of Bind that lets in root, the process's own
// user and members of a group, and speaks HTTP/1 and HTTP/2 without TLS.
func NewHTTP(h http.Handler, group string, logger *slog.Logger) *http.Server {
	return newHTTP(h, authenticator{uid: uint32(os.Geteuid()), group: group}, logger)
}

func newHTTP(h http.Handler, auth authenticator, logger *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           auth.authenticate(h),
		ConnContext:       auth.identify,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

// Bind opens the unix socket at path for its owner and a group; its directory is
// made if need be. It replaces a socket that a dead agent left behind, and refuses
// to take one on which somebody answers. Who connects from now on waits for Serve.
func Bind(path, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another agent answers on it; stop that one or choose another --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("stale socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := restrict(path, group); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// restrict opens the socket to its owner and, if it exists, the group. Credentials
// are checked again at every connection.
func restrict(path, group string) error {
	mode := os.FileMode(0o600)
	if g, err := user.LookupGroup(group); group != "" && err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return fmt.Errorf("group %s: %w", group, err)
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return fmt.Errorf("socket %s: %w", path, err)
		}
		mode = 0o660
	}
	return os.Chmod(path, mode)
}

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error { return ServeHTTP(ctx, s.http, s.Listener) }

// ServeHTTP answers with a server of NewHTTP until ctx ends.
func ServeHTTP(ctx context.Context, h *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		if err := h.Shutdown(grace); err != nil {
			// Streams never end by themselves.
			h.Close()
		}
	})
	defer stop()
	h.BaseContext = func(net.Listener) context.Context { return ctx }
	if err := h.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("api: %w", err)
	}
	return nil
}
