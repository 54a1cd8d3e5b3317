// Package api is the Go client of a varve agent.
//
// The agent answers on a unix socket, to root and to members of the group varve.
// Methods, messages and their contracts are those of the protobuf files in
// varve/v1; this package only finds the socket, and explains errors.
package api

import (
	"context"
	"net"
	"net/http"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
)

// baseURL is what requests are addressed to. The socket decides where they go;
// HTTP wants a host all the same.
const baseURL = "http://varve"

// Client calls an agent. It is safe for concurrent use. Connections are opened as
// calls need them, again after the agent restarted, and shared by later calls.
type Client struct {
	// Log sends calls of Append that run at the same time over one stream, with an
	// answer for each: see WithUnaryAppends.
	Log        varvev1connect.LogServiceClient
	Policies   varvev1connect.PolicyServiceClient
	Endpoints  varvev1connect.EndpointServiceClient
	Namespaces varvev1connect.NamespaceServiceClient
	Identities varvev1connect.IdentityServiceClient
	Agent      varvev1connect.AgentServiceClient
	Datapath   varvev1connect.DatapathServiceClient
	Nodes      varvev1connect.NodeServiceClient
	Snapshots  varvev1connect.SnapshotServiceClient
	Audit      varvev1connect.AuditServiceClient
	Flows      varvev1connect.FlowServiceClient
	FQDN       varvev1connect.FQDNServiceClient

	address   string
	transport *transports
	shared    *sharedLog
}

// Option changes how a Client calls.
type Option func(*options)

type options struct {
	connect []connect.ClientOption
	unary   bool
	dial    func(context.Context) (net.Conn, error)
}

// WithDialer makes the client connect by dial instead of to its address.
func WithDialer(dial func(context.Context) (net.Conn, error)) Option {
	return func(o *options) { o.dial = dial }
}

// WithGRPC makes the client speak gRPC instead of the Connect protocol. The
// agent answers both alike.
func WithGRPC() Option {
	return func(o *options) { o.connect = append(o.connect, connect.WithGRPC()) }
}

// WithUnaryAppends makes every call of Log.Append a request of its own. Otherwise
// those that run at the same time share one AppendStream, at a third of the cost. A
// call is the same either way: one group, atomic, one answer or error, and when its
// context ends before the answer, the group may or may not have been recorded.
func WithUnaryAppends() Option { return func(o *options) { o.unary = true } }

// WithConnect passes options on to Connect, e.g. interceptors. These see every call
// as it was made: it implies WithUnaryAppends.
func WithConnect(opts ...connect.ClientOption) Option {
	return func(o *options) { o.connect, o.unary = append(o.connect, opts...), true }
}

// New returns a client of the agent at address: the path of its unix socket, also
// as unix:///path, or @name for an abstract socket. An empty address is
// $VARVE_SOCKET or, without it, DefaultSocket.
//
// New does not connect: an agent that is down makes the calls fail, with an error
// for which errors.As finds a *DialError.
func New(address string, opts ...Option) (*Client, error) {
	path, err := socketPath(address)
	if err != nil {
		return nil, err
	}
	// On one machine, compression costs more than what it saves.
	o := options{connect: []connect.ClientOption{connect.WithCodec(Codec()), connect.WithAcceptCompression("gzip", nil, nil)}}
	for _, opt := range opts {
		opt(&o)
	}
	dial := dialer(path)
	if o.dial != nil {
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return o.dial(ctx) }
	}
	transport := newTransports(dial)
	h := &http.Client{Transport: transport}
	log := varvev1connect.NewLogServiceClient(h, baseURL, o.connect...)
	shared := &sharedLog{LogServiceClient: log}
	if !o.unary {
		log = shared
	}
	return &Client{
		Log:        log,
		Policies:   varvev1connect.NewPolicyServiceClient(h, baseURL, o.connect...),
		Endpoints:  varvev1connect.NewEndpointServiceClient(h, baseURL, o.connect...),
		Namespaces: varvev1connect.NewNamespaceServiceClient(h, baseURL, o.connect...),
		Identities: varvev1connect.NewIdentityServiceClient(h, baseURL, o.connect...),
		Agent:      varvev1connect.NewAgentServiceClient(h, baseURL, o.connect...),
		Datapath:   varvev1connect.NewDatapathServiceClient(h, baseURL, o.connect...),
		Snapshots:  varvev1connect.NewSnapshotServiceClient(h, baseURL, o.connect...),
		Nodes:      varvev1connect.NewNodeServiceClient(h, baseURL, o.connect...),
		Audit:      varvev1connect.NewAuditServiceClient(h, baseURL, o.connect...),
		Flows:      varvev1connect.NewFlowServiceClient(h, baseURL, o.connect...),
		FQDN:       varvev1connect.NewFQDNServiceClient(h, baseURL, o.connect...),
		address:    path,
		transport:  transport,
		shared:     shared,
	}, nil
}

// Address is the socket that the client calls.
func (c *Client) Address() string { return c.address }

// Close closes the connections that no call uses.
func (c *Client) Close() { c.shared.close(c.transport.closeIdle) }
