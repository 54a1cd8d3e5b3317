package dnsrpc

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/verdict"
)

// factsWait is how long a call of Facts waits on the proxy's side before it is
// made again.
const factsWait = 10 * time.Second

// Client is a proxy seen from another process. Every call fails while there is no
// proxy, and works again once there is one.
type Client struct {
	rpc       varvev1connect.DNSProxyServiceClient
	names     varvev1connect.FQDNServiceClient
	transport *http.Transport
}

var _ dnslink.Proxy = (*Client)(nil)

// NewClient is a client of the proxy at a unix socket. It does not connect.
func NewClient(socket string) *Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	return &Client{
		rpc: varvev1connect.NewDNSProxyServiceClient(&http.Client{Transport: transport}, "http://dns-proxy",
			connect.WithAcceptCompression("gzip", nil, nil)), // to compress costs more than a unix socket
		names:     varvev1connect.NewFQDNServiceClient(&http.Client{Transport: transport}, "http://dns-proxy"),
		transport: transport,
	}
}

// Close gives up connections that no call uses.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// failure is an error of a call with the sentinel that the handler's side had.
func failure(err error) error {
	switch connect.CodeOf(err) {
	case connect.CodeFailedPrecondition:
		return fmt.Errorf("DNS proxy: %w", dnslink.ErrOtherNode)
	case connect.CodeOutOfRange:
		return fmt.Errorf("DNS proxy: %w", dnslink.ErrCompacted)
	}
	return fmt.Errorf("DNS proxy: %w", err)
}

// Status implements dnslink.Proxy.
func (c *Client) Status(ctx context.Context) (dnslink.Status, error) {
	r, err := c.rpc.Status(ctx, connect.NewRequest(&varvev1.DNSProxyStatusRequest{}))
	if err != nil {
		return dnslink.Status{}, failure(err)
	}
	m := r.Msg
	return dnslink.Status{Cluster: m.Cluster, Node: m.Node, PID: int(m.Pid), Version: m.Version, Rules: m.RulesRevision, Last: m.Last, Err: m.Error}, nil
}

// Load implements dnslink.Proxy.
func (c *Client) Load(ctx context.Context) error {
	if _, err := c.rpc.Load(ctx, connect.NewRequest(&varvev1.DNSProxyLoadRequest{})); err != nil {
		return failure(err)
	}
	return nil
}

// Seed implements dnslink.Proxy.
func (c *Client) Seed(ctx context.Context, s dnslink.Seed) error {
	m := &varvev1.DNSProxySeedRequest{Last: s.Last}
	for _, o := range s.Facts {
		b, err := o.MarshalVT()
		if err != nil {
			return fmt.Errorf("DNS proxy: name %s: %w", o.Name, err)
		}
		m.Observed = append(m.Observed, b)
	}
	if _, err := c.rpc.Seed(ctx, connect.NewRequest(m)); err != nil {
		return failure(err)
	}
	return nil
}

// Facts implements dnslink.Proxy.
func (c *Client) Facts(ctx context.Context, after uint64, limit int, linger time.Duration) ([]dnslink.Fact, error) {
	for {
		r, err := c.rpc.Facts(ctx, connect.NewRequest(&varvev1.DNSProxyFactsRequest{
			After: after, Limit: uint32(limit), WaitMilliseconds: uint32(factsWait.Milliseconds()), LingerMilliseconds: uint32(linger.Milliseconds()),
		}))
		if err != nil {
			if ctx.Err() != nil {
				return nil, nil
			}
			return nil, failure(err)
		}
		if len(r.Msg.Facts) == 0 {
			continue
		}
		facts := make([]dnslink.Fact, len(r.Msg.Facts))
		for i, f := range r.Msg.Facts {
			facts[i] = dnslink.Fact{Seq: f.Seq, Data: f.Event}
		}
		return facts, nil
	}
}

// Shipped implements dnslink.Proxy.
func (c *Client) Shipped(ctx context.Context, last uint64) error {
	if _, err := c.rpc.Shipped(ctx, connect.NewRequest(&varvev1.DNSProxyShippedRequest{Last: last})); err != nil {
		return failure(err)
	}
	return nil
}

// Known is what an endpoint, "namespace/name", was told of an address, or for a name if
// that is not empty.
func (c *Client) Known(ctx context.Context, endpoint string, addr netip.Addr, name string) ([]verdict.Fact, error) {
	req := &varvev1.ListNamesRequest{Endpoint: endpoint, Pattern: name}
	if addr.IsValid() {
		req.Address = addr.String()
	}
	r, err := c.names.ListNames(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, failure(err)
	}
	var out []verdict.Fact
	for _, n := range r.Msg.Names {
		for _, a := range n.Addresses {
			if at, err := netip.ParseAddr(a.Address); err == nil {
				out = append(out, verdict.Fact{Name: n.Name, Addr: at, Chain: n.Chain, ExpiresNS: a.ExpiresUnixNs})
			}
		}
	}
	return out, nil
}

// Repair implements dnslink.Proxy.
func (c *Client) Repair(ctx context.Context) (int, []dnslink.Difference, error) {
	return c.compare(ctx, &varvev1.DNSProxyRepairRequest{})
}

// Verify implements dnslink.Proxy.
func (c *Client) Verify(ctx context.Context) (int, []dnslink.Difference, error) {
	return c.compare(ctx, &varvev1.DNSProxyRepairRequest{DryRun: true})
}

func (c *Client) compare(ctx context.Context, req *varvev1.DNSProxyRepairRequest) (int, []dnslink.Difference, error) {
	r, err := c.rpc.Repair(ctx, connect.NewRequest(req))
	if err != nil {
		return 0, nil, failure(err)
	}
	var told []dnslink.Difference
	for _, d := range r.Msg.Differences {
		addr, ok := netip.AddrFromSlice(d.Address)
		if !ok {
			return 0, nil, fmt.Errorf("DNS proxy: an address of %d bytes", len(d.Address))
		}
		told = append(told, dnslink.Difference{Endpoint: d.Endpoint, Addr: addr, Have: rowOf(d.Have), Want: rowOf(d.Want)})
	}
	return int(r.Msg.Differed), told, nil
}
