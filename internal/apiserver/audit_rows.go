package apiserver

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/audit"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// Names of a node's tables, as `varve bpf` has them.
const (
	mapEndpoint = "endpoint"
	mapIPCache  = "ipcache"
	mapClass    = "class"
	mapPolicy   = "policy"
	mapFQDN     = "fqdn"
)

var mapNames = []string{mapEndpoint, mapIPCache, mapClass, mapPolicy, mapFQDN}

// auditRow is a row of any of a node's tables as people read it.
type auditRow struct {
	key, value string
	cause      projections.Cause
	// names are what else the row is called by.
	names []string
}

func (d dump) auditEndpoint(row *projections.Row[projections.EndpointKey, abi.EndpointValue]) *auditRow {
	r := d.endpointRow(row.Key.ID, row.Value)
	parts := []string{fmt.Sprintf("id %d, identity %d", r.Id, r.Identity)}
	for _, a := range []string{r.Ipv4, r.Ipv6, r.Mac} {
		if a != "" {
			parts = append(parts, a)
		}
	}
	for _, side := range []struct {
		name, table string
		enforced    bool
	}{{"ingress", r.IngressTable, r.IngressEnforced}, {"egress", r.EgressTable, r.EgressEnforced}} {
		text := side.name + " " + cmp.Or(side.table, "without rows")
		if side.enforced {
			text += " else deny"
		}
		parts = append(parts, text)
	}
	id := fmt.Sprint(r.Id)
	return &auditRow{cmp.Or(r.Endpoint, id), strings.Join(parts, ", "), row.Cause, []string{r.Endpoint, id}}
}

func (d dump) auditIPCache(row *projections.Row[projections.Prefix, abi.IPCacheValue]) *auditRow {
	r := d.ipcacheRow(row.Key, row.Value)
	return &auditRow{r.Prefix, fmt.Sprintf("%s, identity %d", cmp.Or(r.Peer, "unknown"), r.Identity), row.Cause, []string{r.Prefix}}
}

// auditClass is for the rows of t.
func (d dump) auditClass(t *projections.Tables) func(*projections.Row[abi.ClassKey, abi.ClassValue]) *auditRow {
	return func(row *projections.Row[abi.ClassKey, abi.ClassValue]) *auditRow {
		key := hex(row.Key.Scope) + " " + d.peer(row.Key.Peer, netip.Addr{})
		return &auditRow{key, d.class(row.Value.Class), t.ClassCause(row), []string{key}}
	}
}

func (d dump) auditPolicy(row *projections.PolicyRow) *auditRow {
	r := policyRow(d.names, row.Key, row.Value)
	key := strings.Join([]string{r.Table, r.Class, r.Protocol, r.Ports}, " ")
	value := fmt.Sprintf("%s, row %s, %s of %s", r.Verdict, r.Row, cmp.Or(r.Direction, "a direction"), cmp.Or(strings.Join(r.Endpoints, " "), "nobody"))
	return &auditRow{key, value, row.Cause, []string{key, r.Row}}
}

func (d dump) auditName(row *projections.Row[projections.OpenedKey, projections.OpenedValue]) *auditRow {
	r := d.openedRow(row)
	var parts []string
	for _, c := range r.Classes {
		parts = append(parts, fmt.Sprintf("names %s until %s", c.Names, time.Unix(0, c.ExpiresUnixNs).UTC().Format(time.RFC3339)))
	}
	id := fmt.Sprint(r.Id)
	key := cmp.Or(r.Endpoint, id) + " " + r.Address
	return &auditRow{key, strings.Join(parts, "; "), row.Cause, []string{key, id + " " + r.Address}}
}

// eachRow calls fn for each row of one of a node's tables.
func (d dump) eachRow(t *projections.Tables, table string, fn func(*auditRow) bool) error {
	switch table {
	case mapEndpoint:
		for row := range t.Endpoints.All() {
			if !fn(d.auditEndpoint(row)) {
				return nil
			}
		}
	case mapIPCache:
		for row := range t.IPCache.All() {
			if !fn(d.auditIPCache(row)) {
				return nil
			}
		}
	case mapClass:
		class := d.auditClass(t)
		for row := range t.Classes.All() {
			if !fn(class(row)) {
				return nil
			}
		}
	case mapPolicy:
		for row := range t.Policy.All() {
			if !fn(d.auditPolicy(row)) {
				return nil
			}
		}
	case mapFQDN:
		opened, err := t.Opened(d.view)
		if err != nil {
			return err
		}
		for row := range opened.All() {
			if !fn(d.auditName(row)) {
				return nil
			}
		}
	}
	return nil
}

// eachChange calls fn for each row that is otherwise in the later of two tables.
func eachChange(table string, was, is dump, wasTables, isTables *projections.Tables, fn func(was, is *auditRow) error) error {
	switch table {
	case mapEndpoint:
		return audit.DiffTable(&wasTables.Endpoints, &isTables.Endpoints, changed(was.auditEndpoint, is.auditEndpoint, fn))
	case mapIPCache:
		return audit.DiffTable(&wasTables.IPCache, &isTables.IPCache, changed(was.auditIPCache, is.auditIPCache, fn))
	case mapClass:
		return audit.DiffTable(&wasTables.Classes, &isTables.Classes, changed(was.auditClass(wasTables), is.auditClass(isTables), fn))
	case mapFQDN:
		wasOpened, err := wasTables.Opened(was.view)
		if err != nil {
			return err
		}
		isOpened, err := isTables.Opened(is.view)
		if err != nil {
			return err
		}
		return audit.DiffTable(&wasOpened, &isOpened, changed(was.auditName, is.auditName, fn))
	default:
		return audit.DiffTable(&wasTables.Policy, &isTables.Policy, changed(was.auditPolicy, is.auditPolicy, fn))
	}
}

func changed[R any](was, is func(*R) *auditRow, fn func(was, is *auditRow) error) func(a, b *R) error {
	return func(a, b *R) error {
		var x, y *auditRow
		if a != nil {
			x = was(a)
		}
		if b != nil {
			y = is(b)
		}
		return fn(x, y)
	}
}

func rowChange(table string, was, is *auditRow) *varvev1.AuditRowChange {
	out := &varvev1.AuditRowChange{Map: table}
	for _, side := range []struct {
		row  *auditRow
		text *string
	}{{was, &out.Was}, {is, &out.Is}} {
		if side.row == nil {
			continue
		}
		out.Key, *side.text = side.row.key, side.row.value
		out.Rules, out.Revisions = causeStrings(side.row.cause)
	}
	return out
}
