package apiserver

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/projections"
)

// nameRows are the rows of the map `fqdn`: the kernel's now, or what the log says of them.
// What they come from is told as far as the log has it.
func (s datapathService) nameRows(ctx context.Context, c *scene, d dump, t *projections.Tables) ([]*varvev1.FQDNRow, error) {
	if t == nil {
		if c.present() {
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("nothing is in force yet"))
		}
		return nil, notFound("node %q was not in the cluster at revision %d", s.Node, c.view.Revision())
	}
	opened, err := t.Opened(c.view)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	var out []*varvev1.FQDNRow
	if !c.present() {
		for row := range opened.All() {
			if d.only == nil || d.only.ID == row.Key.Endpoint {
				out = append(out, d.openedRow(row))
			}
		}
		return out, nil
	}
	kernel, err := s.Kernel.Names(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	for _, k := range kernel {
		if d.only != nil && d.only.ID != k.Endpoint {
			continue
		}
		r := d.fqdnRow(k.Endpoint, k.Addr, k.Class, k.Expires)
		if row, ok := opened.Get(projections.OpenedKey{Endpoint: k.Endpoint, Addr: k.Addr}); ok {
			r.Rules, r.Revisions = causeStrings(row.Cause)
		}
		out = append(out, r)
	}
	return out, nil
}

// openedRow is a row as the log has it.
func (d dump) openedRow(row *projections.Row[projections.OpenedKey, projections.OpenedValue]) *varvev1.FQDNRow {
	var classes []uint64
	var expires []time.Time
	for i, class := range row.Value.Class {
		if class != 0 {
			classes = append(classes, class)
			expires = append(expires, time.Unix(0, row.Value.ExpiresNS[i]))
		}
	}
	r := d.fqdnRow(row.Key.Endpoint, row.Key.Addr, classes, expires)
	r.Rules, r.Revisions = causeStrings(row.Cause)
	return r
}

func (d dump) fqdnRow(endpoint uint32, addr netip.Addr, classes []uint64, expires []time.Time) *varvev1.FQDNRow {
	r := &varvev1.FQDNRow{Endpoint: d.endpointName(endpoint), Id: endpoint, Address: addr.String()}
	for i, class := range classes {
		set := d.sets()[class]
		x := &varvev1.FQDNClass{Class: hex(class), ExpiresUnixNs: expires[i].UnixNano(), Names: strings.TrimPrefix(set.String(), "names ")}
		for _, name := range d.toldNames(endpoint)[addr] {
			if set.Matches(name) {
				x.Told = append(x.Told, name)
			}
		}
		r.Classes = append(r.Classes, x)
	}
	return r
}
