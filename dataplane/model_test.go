package dataplane

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// model is a small cluster whose tables are built in the way of package
// projections, content-addressed, but keep no more than they need: identities and
// prefixes that nobody has any more lose their class rows at once.
type model struct {
	pods  []modelPod
	rules []modelRule
	// enforced by label and direction
	enforced map[string]bool
}

type modelPod struct {
	id    uint32 // 0: on another node
	addr  netip.Addr
	label byte
	ports bool // has named ports, so another peer number for egress rules
}

type modelRule struct {
	direction abi.Direction
	subject   byte
	peers     string // labels selected, or
	cidr      string // a prefix, or
	any       bool
	pods      bool // the base class of pods
	deny      bool
	allPorts  bool // else TCP port 80 only
}

func (r modelRule) item() string { return r.peers + r.cidr }

var (
	modelAddrs = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "192.0.2.1", "192.0.2.200", "8.8.8.8", "fd00::1", "fd00::2", "2001:db8::1", "2001:db8:1::1", "2606::1"}
	modelCIDRs = []string{"0.0.0.0/0", "10.0.0.0/8", "192.0.2.0/24", "192.0.2.128/25", "192.0.2.200/32", "::/0", "2001:db8::/32", "2001:db8:1::/48", "fd00::/8"}
)

func drawModel(t *rapid.T) model {
	m := model{enforced: make(map[string]bool)}
	for i, a := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2"} {
		if rapid.IntRange(0, 4).Draw(t, "absent") == 0 {
			continue
		}
		p := modelPod{addr: netip.MustParseAddr(a), label: rapid.SampledFrom([]byte("abcd")).Draw(t, "label"), ports: rapid.Bool().Draw(t, "ports")}
		if i != 3 {
			p.id = uint32(i + 1)
		}
		m.pods = append(m.pods, p)
	}
	for range rapid.IntRange(0, 8).Draw(t, "rules") {
		r := modelRule{
			direction: abi.Direction(rapid.IntRange(0, 1).Draw(t, "direction")),
			subject:   rapid.SampledFrom([]byte("abcd")).Draw(t, "subject"),
			deny:      rapid.IntRange(0, 2).Draw(t, "deny") == 0,
			allPorts:  rapid.Bool().Draw(t, "all ports"),
		}
		switch rapid.IntRange(0, 5).Draw(t, "peer") {
		case 0:
			r.any = true
		case 1:
			r.pods = true
		case 2, 3:
			r.cidr = rapid.SampledFrom(modelCIDRs).Draw(t, "cidr")
		default:
			r.peers = rapid.SampledFrom([]string{"a", "b", "ab", "bc", "cd", "abc"}).Draw(t, "labels")
		}
		m.rules = append(m.rules, r)
	}
	for _, l := range "abcd" {
		for _, d := range "01" {
			m.enforced[string(l)+string(d)] = rapid.Bool().Draw(t, "enforced")
		}
	}
	return m
}

func id64(parts ...any) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%q", parts)
	return h.Sum64()>>1 | 1<<62
}

// Peers. Identities follow labels; a pod of the model differs from one of an
// earlier one only by its label.
func (p modelPod) identity() uint32 { return 256 + uint32(p.label) }

func (p modelPod) peer() uint64 {
	if p.ports {
		return uint64(p.identity()) | 0x1234<<32
	}
	return uint64(p.identity())
}

func cidrPeer(c string) uint64 {
	n := id64("cidr", c)&^abi.PeerCIDRv6 | abi.PeerCIDR
	if netip.MustParsePrefix(c).Addr().Is6() {
		n |= abi.PeerCIDRv6
	}
	return n
}

func cidrKey(c string) prefix {
	p := netip.MustParsePrefix(c)
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return prefix{PrefixLen: uint32(bits), Addr: abi.AddrFrom(p.Addr())}
}

// matched are the items that a peer matches, joined; "" for none.
func matched(items []string, label byte, cidr string) string {
	var out []string
	for _, item := range items {
		if label != 0 && slices.Contains([]byte(item), label) && item[0] >= 'a' && item[0] <= 'd' && !slices.Contains([]byte(item), ':') {
			out = append(out, item)
		}
		if cidr != "" && slices.Contains(modelCIDRs, item) {
			outer, inner := netip.MustParsePrefix(item), netip.MustParsePrefix(cidr)
			if outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr()) {
				out = append(out, item)
			}
		}
	}
	if len(out) == 0 {
		return ""
	}
	return fmt.Sprint(out)
}

type modelTables struct {
	endpoints map[projections.EndpointKey]abi.EndpointValue
	prefixes  map[prefix]abi.IPCacheValue
	classes   map[abi.ClassKey]abi.ClassValue
	policy    map[abi.PolicyKey]abi.PolicyValue
}

func (m model) build() (*projections.Tables, map[uint32]int) {
	out := modelTables{
		endpoints: make(map[projections.EndpointKey]abi.EndpointValue), prefixes: make(map[prefix]abi.IPCacheValue),
		classes: make(map[abi.ClassKey]abi.ClassValue), policy: make(map[abi.PolicyKey]abi.PolicyValue),
	}
	bind := make(map[uint32]int)
	for _, r := range m.rules {
		if r.cidr != "" {
			out.prefixes[cidrKey(r.cidr)] = abi.IPCacheValue{Peer: cidrPeer(r.cidr)}
		}
	}
	for _, p := range m.pods {
		out.prefixes[cidrKey(netip.PrefixFrom(p.addr, p.addr.BitLen()).String())] = abi.IPCacheValue{Peer: p.peer()}
		if p.id == 0 {
			continue
		}
		bind[p.id] = int(100 + p.id)
		v := abi.EndpointValue{
			ID: p.id, Identity: p.identity(),
			Egress: m.direction(&out, abi.Egress, p.label), Ingress: m.direction(&out, abi.Ingress, p.label),
		}
		if p.addr.Is4() {
			v.IPv4 = p.addr.As4()
		} else {
			v.IPv6 = p.addr.As16()
		}
		out.endpoints[projections.EndpointKey{ID: p.id}] = v
	}
	t := new(projections.Tables)
	var errs [4]error
	t.Endpoints, errs[0] = projections.NewEndpoints(tableRows(out.endpoints))
	t.IPCache, errs[1] = projections.NewIPCache(tableRows(out.prefixes))
	t.Classes, errs[2] = projections.NewClasses(tableRows(out.classes))
	t.Policy, errs[3] = projections.NewPolicy(tableRows(out.policy))
	for _, err := range errs {
		if err != nil {
			panic(err)
		}
	}
	return t, bind
}

func (m model) direction(out *modelTables, d abi.Direction, label byte) abi.PolicyRef {
	var rules []modelRule
	items := make(map[string]bool)
	for _, r := range m.rules {
		if r.direction == d && r.subject == label {
			rules = append(rules, r)
			if r.item() != "" {
				items[r.item()] = true
			}
		}
	}
	lens := uint32(1<<16 | abi.LensAllProtocols)
	ref := abi.PolicyRef{ClassLens: lens, BaseLens: lens, AnyLens: lens}
	if m.enforced[fmt.Sprintf("%c%d", label, d)] {
		ref.Flags = abi.PolicyEnforced
	}
	if len(rules) == 0 {
		return ref
	}
	sorted := slices.Sorted(maps.Keys(items))
	ref.Table = id64("table", rules)
	if len(sorted) > 0 {
		ref.Scope = id64("scope", d, sorted)
	}
	m.row(out, ref.Table, abi.ClassAny, rules, func(r modelRule) bool { return r.any })
	m.row(out, ref.Table, abi.ClassPod, rules, func(r modelRule) bool { return r.pods })
	class := func(base uint64, peer uint64, matches string) {
		if matches == "" {
			return
		}
		c := abi.ClassOf(base, id64("class", matches))
		out.classes[abi.ClassKey{Scope: ref.Scope, Peer: peer}] = abi.ClassValue{Class: c}
		m.row(out, ref.Table, c, rules, func(r modelRule) bool {
			return r.item() != "" && slices.Contains(splitMatches(matches), r.item())
		})
	}
	for _, p := range m.pods {
		peer := p.peer()
		if d == abi.Ingress {
			peer = uint64(p.identity())
		}
		class(abi.ClassPod, peer, matched(sorted, p.label, ""))
	}
	for _, r := range m.rules {
		if r.cidr != "" {
			class(baseClass(cidrPeer(r.cidr)), cidrPeer(r.cidr), matched(sorted, 0, r.cidr))
		}
	}
	return ref
}

func splitMatches(s string) []string {
	return slices.Collect(func(yield func(string) bool) {
		word := ""
		for _, c := range s[1:] {
			if c == ' ' || c == ']' {
				if !yield(word) {
					return
				}
				word = ""
				continue
			}
			word += string(c)
		}
	})
}

// row writes a class's rows for port 80 and for every protocol.
func (m model) row(out *modelTables, table, class uint64, rules []modelRule, applies func(modelRule) bool) {
	var all, port abi.Verdict
	for _, r := range rules {
		if !applies(r) {
			continue
		}
		v := abi.VerdictAllow
		if r.deny {
			v = abi.VerdictDeny
		}
		port = max(port, v)
		if r.allPorts {
			all = max(all, v)
		}
	}
	if all != abi.VerdictNone {
		out.policy[abi.PolicyKey{Table: table, Class: class}] = abi.PolicyValue{Row: 1, Verdict: all}
	}
	if port != abi.VerdictNone {
		out.policy[abi.PolicyKey{Table: table, Class: class, PortBE: [2]byte{0, 80}, Protocol: 6, PortBits: 16}] = abi.PolicyValue{Row: 2, Verdict: port}
	}
}

// verdicts is every answer that tables give: by endpoint, direction, peer and
// port. A peer is an address or, as the programs know a local sender, an
// endpoint's identity.
type verdicts map[string]abi.Verdict

func verdictsOf(t *projections.Tables) verdicts {
	out := make(verdicts)
	peers := make(map[string]uint64)
	for _, a := range modelAddrs {
		peers[a] = t.PeerOf(netip.MustParseAddr(a))
	}
	for row := range t.Endpoints.All() {
		peers[fmt.Sprintf("endpoint %d", row.Key.ID)] = uint64(row.Value.Identity)
	}
	for row := range t.Endpoints.All() {
		for name, peer := range peers {
			for d := range abi.Direction(2) {
				for _, port := range []uint16{80, 81} {
					a, err := t.Verdict(projections.Question{Endpoint: row.Key.ID, Direction: d, Peer: peer, Protocol: 6, Port: port})
					if err != nil {
						panic(err)
					}
					if d == abi.Egress && name[0] == 'e' {
						continue // own identity is for ingress only
					}
					out[fmt.Sprintf("endpoint %d direction %d peer %s port %d", row.Key.ID, d, name, port)] = a.Verdict
				}
			}
		}
	}
	return out
}

// questions are the keys of verdicts about one endpoint and one address.
func questions(id uint32, addr string) []string {
	var out []string
	for d := range 2 {
		for _, port := range []int{80, 81} {
			out = append(out, fmt.Sprintf("endpoint %d direction %d peer %s port %d", id, d, addr, port))
		}
	}
	return out
}
