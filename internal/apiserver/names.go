package apiserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

func protocolName(p uint8) string {
	if p == 0 {
		return "ANY"
	}
	return policy.ProtocolName(p)
}

// names translates what the datapath knows into what people know, at one view.
type names struct {
	view      fsm.View
	tables    *projections.Tables
	byAddr    map[netip.Addr]*fsm.Endpoint
	byID      map[uint32]*fsm.Endpoint // of this node
	byTable   map[uint64][]string
	direction map[uint64]string
	byRow     map[uint64]projections.Cause
	bySet     map[uint64]projections.NameSet // of classes of names; nil until asked for
	told      map[uint32]map[netip.Addr][]string
}

// toldNames are the names for which an endpoint of the node was told each address, as the
// log has it.
func (n *names) toldNames(endpoint uint32) map[netip.Addr][]string {
	out, ok := n.told[endpoint]
	if e := n.byID[endpoint]; !ok && e != nil {
		out = map[netip.Addr][]string{}
		for name := range n.view.NamesOf(e.Ref) {
			for _, a := range name.Addresses {
				out[a.Addr] = append(out[a.Addr], name.Name)
			}
		}
		n.told[endpoint] = out
	}
	return out
}

// sets are the names of the rules that have each class.
func (n *names) sets() map[uint64]projections.NameSet {
	if n.bySet == nil {
		n.bySet = map[uint64]projections.NameSet{}
		if n.tables != nil {
			for row := range n.tables.Learned.All() {
				n.bySet[row.Key.Class] = row.Value
			}
		}
	}
	return n.bySet
}

func newNames(view fsm.View, tables *projections.Tables, node string) *names {
	n := &names{
		view: view, tables: tables,
		byAddr: map[netip.Addr]*fsm.Endpoint{}, byID: map[uint32]*fsm.Endpoint{},
		byTable: map[uint64][]string{}, direction: map[uint64]string{},
		byRow: map[uint64]projections.Cause{}, told: map[uint32]map[netip.Addr][]string{},
	}
	for ep := range view.Endpoints() {
		for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
			if a.IsValid() {
				n.byAddr[a] = ep
			}
		}
		if ep.Node == node {
			n.byID[ep.ID] = ep
		}
	}
	if tables == nil {
		return n
	}
	for row := range tables.Endpoints.All() {
		ep := n.endpointName(row.Key.ID)
		for dir, t := range map[string]uint64{"egress": row.Value.Egress.Table, "ingress": row.Value.Ingress.Table} {
			if t != 0 {
				n.byTable[t] = append(n.byTable[t], ep)
				n.direction[t] = dir
			}
		}
	}
	for row := range tables.Policy.All() {
		n.byRow[row.Value.Row] = row.Cause
	}
	return n
}

func (n *names) endpointName(id uint32) string {
	if ep, ok := n.byID[id]; ok {
		return endpointName(ep.Ref)
	}
	return ""
}

// IdentityOf is the number of a peer; that of a CIDR is its family's world.
func IdentityOf(peer uint64, addr netip.Addr) uint32 {
	switch {
	case peer&abi.PeerCIDR == 0:
		return uint32(peer)
	case addr.Is4():
		return abi.IdentityWorldIPv4
	default:
		return abi.IdentityWorldIPv6
	}
}

// peer names who is behind an address.
func (n *names) peer(peer uint64, addr netip.Addr) string {
	if ep, ok := n.byAddr[addr]; ok {
		return endpointName(ep.Ref)
	}
	if peer&abi.PeerCIDR != 0 {
		if n.tables != nil && n.tables.Names[peer] != "" {
			return n.tables.Names[peer]
		}
		return "cidr"
	}
	id := uint32(peer)
	if id < abi.IdentityFirstDynamic {
		if ls := policy.ReservedLabels(id); len(ls) > 0 {
			return ls[0].Key
		}
		return ""
	}
	return fmt.Sprintf("identity %d", id)
}

// rules are the rules behind an event's policy row, the events behind them, and the
// log values that they tag the verdict with. Of a row that rules in audit mode deny
// and others allow, those that agree with the event.
func (n *names) rules(e dataplane.Event) (rules []string, revisions []uint64, tags []string) {
	c, ok := n.byRow[e.Row]
	if !ok {
		return nil, nil, nil
	}
	denies := func(r projections.RuleRef) bool { return r.Section.Denies() }
	if slices.ContainsFunc(c.Rules, denies) {
		denied := e.Type == abi.EventDrop || e.Type == abi.EventAudited
		c.Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r projections.RuleRef) bool { return denies(r) != denied })
	}
	for _, r := range c.Rules {
		if r.Log != "" && !slices.Contains(tags, r.Log) {
			tags = append(tags, r.Log)
		}
	}
	rules, revisions = causeStrings(c)
	return rules, revisions, tags
}

func causeStrings(c projections.Cause) (rules []string, revisions []uint64) {
	for _, r := range c.Rules {
		rules = append(rules, r.String())
	}
	for _, e := range c.Events {
		revisions = append(revisions, uint64(e))
	}
	return rules, revisions
}

func ports(port [2]byte, bits uint8, protocol uint8) string {
	first := int(port[0])<<8 | int(port[1])
	last := first | (1<<(16-bits) - 1)
	switch {
	case bits == 0:
		return "any"
	case protocol == 1 || protocol == 58:
		return "type " + strconv.Itoa(first)
	case first == last:
		return strconv.Itoa(first)
	default:
		return fmt.Sprintf("%d-%d", first, last)
	}
}

func hex(id uint64) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("%016x", id)
}
