package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/internal/dnsrpc"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// names is what the node's DNS proxy knows, as the rest of the agent asks it.
type names struct {
	proxy   *dnsrpc.Client
	view    func() fsm.View
	current func() *projections.Tables
	node    string
}

var _ apiserver.Names = (*names)(nil)

// namesMap is the map that the proxy alone writes.
const namesMap = "fqdn"

// Facts implements apiserver.Names.
func (n *names) Facts(ctx context.Context, of fsm.EndpointRef, addr netip.Addr, name string) ([]verdict.Fact, error) {
	return n.proxy.Known(ctx, of.String(), addr, name)
}

// Verify implements apiserver.Names.
func (n *names) Verify(ctx context.Context) (int, []dataplane.Difference, error) {
	count, told, err := n.proxy.Verify(ctx)
	return count, n.describe(told), err
}

// repair has the proxy put right what others have written.
func (n *names) repair(ctx context.Context) (int, []dataplane.Difference, error) {
	count, told, err := n.proxy.Repair(ctx)
	return count, n.describe(told), err
}

// describe puts differences into people's words.
func (n *names) describe(told []dnslink.Difference) (out []dataplane.Difference) {
	if len(told) == 0 {
		return nil
	}
	of := map[uint32]string{}
	for e := range n.view().Endpoints() {
		if e.Node == n.node {
			of[e.ID] = e.Ref.String()
		}
	}
	sets := map[uint64]string{}
	if t := n.current(); t != nil {
		for row := range t.Learned.All() {
			sets[row.Key.Class] = row.Value.String()
		}
	}
	for _, d := range told {
		name := of[d.Endpoint]
		if name == "" {
			name = fmt.Sprintf("endpoint %d", d.Endpoint)
		}
		x := dataplane.Difference{Map: namesMap, Kind: dataplane.Differs, Key: name + " " + d.Addr.String(), Have: rowText(d.Have, sets), Want: rowText(d.Want, sets)}
		switch {
		case d.Have == nil:
			x.Kind = dataplane.Missing
		case d.Want == nil:
			x.Kind = dataplane.Extra
		}
		out = append(out, x)
	}
	return out
}

// rowText is what a row of the map says: by which names, and for how long.
func rowText(v *abi.FQDNValue, sets map[uint64]string) string {
	if v == nil {
		return ""
	}
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
	var parts []string
	for i, class := range v.Class {
		if class == 0 {
			continue
		}
		by := sets[class]
		if by == "" {
			by = fmt.Sprintf("class %016x, which no rule has", class)
		}
		left := time.Duration(int64(v.ExpiresSeconds[i])-ts.Sec) * time.Second
		if left <= 0 {
			parts = append(parts, by+", expired")
		} else {
			parts = append(parts, fmt.Sprintf("%s, for %s", by, left))
		}
	}
	if len(parts) == 0 {
		return "no names"
	}
	return strings.Join(parts, "; ")
}
