package projections

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

// OpenedKey is an address that an endpoint was told.
type OpenedKey struct {
	Endpoint uint32
	Addr     netip.Addr
}

// OpenedValue is the classes of names by which the address is open, ascending, and until
// when, in Unix time. More than abi.FQDNPairs do not fit: those that expire first are left
// out.
type OpenedValue struct {
	Class     [abi.FQDNPairs]uint64
	ExpiresNS [abi.FQDNPairs]int64
}

// Opened is the rows that the map `fqdn` of the node has by what the log knows. The DNS
// proxy writes that map, and is ahead of the log: by the facts that are on their way to it,
// and by expiries that moved by less than a quarter of a lifetime. So these rows explain
// the kernel's, and are no part of a digest.
func (t *Tables) Opened(v fsm.View) (Table[OpenedKey, OpenedValue], error) {
	var rows []*Row[OpenedKey, OpenedValue]
	for row := range t.Endpoints.All() {
		if row.Value.Egress.Flags&abi.PolicyFQDN != 0 {
			o := &opener{tables: t, id: row.Key.ID, table: row.Value.Egress.Table, classes: map[string][]*Row[LearnedKey, NameSet]{}}
			rows = append(rows, o.rows(v)...)
		}
	}
	return newTable(&openedCodec, rows)
}

// opener makes the rows of one endpoint.
type opener struct {
	tables  *Tables
	id      uint32
	table   uint64
	classes map[string][]*Row[LearnedKey, NameSet] // by name
}

// opened is a class of an address, and what it comes from.
type opened struct {
	class   uint64
	expires int64
	cause   Cause
}

func (o *opener) rows(v fsm.View) []*Row[OpenedKey, OpenedValue] {
	by := map[netip.Addr][]opened{}
	for e := range v.Endpoints() {
		if e.ID != o.id || e.Node != o.tables.Node {
			continue
		}
		for n := range v.NamesOf(e.Ref) {
			for _, a := range n.Addresses {
				by[a.Addr] = o.add(by[a.Addr], n.Name, a)
			}
		}
	}
	var out []*Row[OpenedKey, OpenedValue]
	for _, addr := range slices.SortedFunc(maps.Keys(by), netip.Addr.Compare) {
		all := by[addr]
		if len(all) == 0 {
			continue
		}
		if len(all) > abi.FQDNPairs {
			slices.SortFunc(all, func(a, b opened) int { return cmp.Or(cmp.Compare(b.expires, a.expires), cmp.Compare(a.class, b.class)) })
			all = all[:abi.FQDNPairs]
		}
		slices.SortFunc(all, func(a, b opened) int { return cmp.Compare(a.class, b.class) })
		row := &Row[OpenedKey, OpenedValue]{Key: OpenedKey{o.id, addr}}
		var events []log.Revision
		for i, x := range all {
			row.Value.Class[i], row.Value.ExpiresNS[i] = x.class, x.expires
			for _, r := range x.cause.Rules {
				if !slices.Contains(row.Cause.Rules, r) {
					row.Cause.Rules = append(row.Cause.Rules, r)
				}
			}
			events = append(events, x.cause.Events...)
		}
		slices.SortFunc(row.Cause.Rules, func(a, b RuleRef) int { return strings.Compare(a.String(), b.String()) })
		row.Cause.Events = ascending(events)
		out = append(out, row)
	}
	return out
}

// add puts the classes of a name that has an address to those of its other names.
func (o *opener) add(all []opened, name string, a fsm.NameAddress) []opened {
	classes, ok := o.classes[name]
	if !ok {
		for row := range o.tables.Learned.All() {
			if row.Key.Table == o.table && row.Value.Matches(name) {
				classes = append(classes, row)
			}
		}
		o.classes[name] = classes
	}
	for _, row := range classes {
		i := slices.IndexFunc(all, func(x opened) bool { return x.class == row.Key.Class })
		if i < 0 {
			i = len(all)
			all = append(all, opened{class: row.Key.Class, cause: Cause{Rules: row.Cause.Rules, Events: slices.Clone(row.Cause.Events)}})
		}
		all[i].expires = max(all[i].expires, a.ExpiresNS)
		all[i].cause.Events = append(all[i].cause.Events, a.Revision)
	}
	return all
}

var openedCodec = codec[OpenedKey, OpenedValue]{
	"fqdn",
	func(b []byte, k OpenedKey) []byte {
		a := abi.AddrFrom(k.Addr)
		return append(binary.BigEndian.AppendUint32(b, k.Endpoint), a[:]...)
	},
	func(b []byte, v OpenedValue) []byte {
		for i := range v.Class {
			b = le.AppendUint64(le.AppendUint64(b, v.Class[i]), uint64(v.ExpiresNS[i]))
		}
		return b
	},
	func(a, b OpenedKey) bool {
		x, y := abi.AddrFrom(a.Addr), abi.AddrFrom(b.Addr)
		return a.Endpoint < b.Endpoint || a.Endpoint == b.Endpoint && slices.Compare(x[:], y[:]) < 0
	},
}
