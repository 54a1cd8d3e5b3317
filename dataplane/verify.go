package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// ReadTables reads maps back as logical rows: endpoints by id, without interface
// numbers and causes. Its digest equals that of the desired tables if the rows
// do. Node, Revision and Names are empty.
func ReadTables(ctx context.Context, m Maps) (*projections.Tables, error) {
	r, err := readRows(ctx, m)
	if err != nil {
		return nil, err
	}
	var eps []*projections.Row[projections.EndpointKey, abi.EndpointValue]
	for _, v := range r.endpoints {
		eps = append(eps, &projections.Row[projections.EndpointKey, abi.EndpointValue]{
			Key: projections.EndpointKey{ID: v.ID}, Value: v,
		})
	}
	prefixes := tableRows(r.prefixes)
	for _, row := range prefixes {
		row.Value.Ifindex = 0
	}
	t := new(projections.Tables)
	if t.Endpoints, err = projections.NewEndpoints(eps); err != nil {
		return nil, fmt.Errorf("map endpoints: two interfaces have one endpoint: %w", err)
	}
	if t.IPCache, err = projections.NewIPCache(prefixes); err != nil {
		return nil, fmt.Errorf("map ipcache: %w", err)
	}
	if t.Classes, err = projections.NewClasses(tableRows(r.classes)); err != nil {
		return nil, fmt.Errorf("map classes: %w", err)
	}
	if t.Policy, err = projections.NewPolicy(tableRows(r.policy)); err != nil {
		return nil, fmt.Errorf("map policy: %w", err)
	}
	return t, nil
}

func tableRows[K, V comparable](m map[K]V) []*projections.Row[K, V] {
	out := make([]*projections.Row[K, V], 0, len(m))
	for k, v := range m {
		out = append(out, &projections.Row[K, V]{Key: k, Value: v})
	}
	return out
}

// DifferenceKind says how a row of the kernel differs from the desired one.
type DifferenceKind uint8

// Kinds of differences.
const (
	Missing DifferenceKind = iota + 1 // desired, not in the kernel
	Extra                             // in the kernel, not desired
	Differs                           // in both, with other values
)

// String is the kind in a word.
func (k DifferenceKind) String() string {
	switch k {
	case Missing:
		return "missing"
	case Extra:
		return "extra"
	case Differs:
		return "differs"
	}
	return fmt.Sprintf("difference %d", uint8(k))
}

// Difference is one row of the kernel that is not as desired, in people's words.
type Difference struct {
	Map  string
	Kind DifferenceKind
	Key  string
	Have string // empty if Missing
	Want string // empty if Extra
}

// String is one line, e.g. "ipcache: 10.0.0.1 differs: has peer 300, want peer 301".
func (d Difference) String() string {
	switch d.Kind {
	case Missing:
		return fmt.Sprintf("%s: %s missing: want %s", d.Map, d.Key, d.Want)
	case Extra:
		return fmt.Sprintf("%s: %s extra: has %s", d.Map, d.Key, d.Have)
	}
	return fmt.Sprintf("%s: %s differs: has %s, want %s", d.Map, d.Key, d.Have, d.Want)
}

// Verify reads the maps and compares them row by row with desired, interface
// numbers included. The differences are sorted by map, key and kind. Endpoints
// missing from bind are reported as missing from the map.
func Verify(ctx context.Context, m Maps, desired *projections.Tables, bind map[uint32]int) ([]Difference, error) {
	have, err := readRows(ctx, m)
	if err != nil {
		return nil, err
	}
	want, unbound := bindRows(desired, bind)
	n := names(desired.Names)
	out := compareRows(m, have, want, n)
	for _, id := range unbound {
		row, _ := desired.Endpoints.Get(projections.EndpointKey{ID: id})
		out = append(out, Difference{
			Map: m.Endpoints.Name(), Kind: Missing, Key: fmt.Sprintf("endpoint %d without interface", id), Want: n.endpoint(row.Value),
		})
	}
	sortDifferences(out)
	return out, nil
}

// compareRows compares all maps row by row.
func compareRows(m Maps, have, want *rows, n names) []Difference {
	haveExact, haveTrie := split(have.prefixes)
	wantExact, wantTrie := split(want.prefixes)
	return slices.Concat(
		differences(m.IPCache.Name(), haveExact, wantExact, n.prefix, n.owner),
		differences(m.IPCacheLPM.Name(), haveTrie, wantTrie, n.prefix, n.owner),
		differences(m.Endpoints.Name(), have.endpoints, want.endpoints, n.endpointKey, n.endpoint),
		differences(m.Classes.Name(), have.classes, want.classes, n.classKey, n.class),
		differences(m.Policy.Name(), have.policy, want.policy, n.policyKey, n.policy),
	)
}

func sortDifferences(ds []Difference) {
	slices.SortFunc(ds, func(a, b Difference) int {
		if c := strings.Compare(a.Map, b.Map); c != 0 {
			return c
		}
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return int(a.Kind) - int(b.Kind)
	})
}

func differences[K, V comparable](name string, have, want map[K]V, key func(K) string, value func(V) string) []Difference {
	var out []Difference
	for k, v := range want {
		if old, ok := have[k]; !ok {
			out = append(out, Difference{Map: name, Kind: Missing, Key: key(k), Want: value(v)})
		} else if old != v {
			out = append(out, Difference{Map: name, Kind: Differs, Key: key(k), Have: value(old), Want: value(v)})
		}
	}
	for k, v := range have {
		if _, ok := want[k]; !ok {
			out = append(out, Difference{Map: name, Kind: Extra, Key: key(k), Have: value(v)})
		}
	}
	return out
}

// names puts rows into words.
type names map[uint64]string

func (n names) id(id uint64) string {
	switch {
	case id == 0:
		return "none"
	case n[id] != "":
		return fmt.Sprintf("%016x (%s)", id, n[id])
	}
	return fmt.Sprintf("%016x", id)
}

func (n names) peer(peer uint64) string {
	if peer&abi.PeerCIDR != 0 {
		return "CIDR " + n.id(peer)
	}
	if ports := peer >> 32; ports != 0 {
		return fmt.Sprintf("identity %d with ports %08x", uint32(peer), ports)
	}
	return fmt.Sprintf("identity %d", peer)
}

func (n names) classID(class uint64) string {
	switch {
	case class == abi.ClassAny:
		return "any peer"
	case class == abi.ClassPod:
		return "any pod"
	case class < uint64(abi.IdentityFirstDynamic):
		return fmt.Sprintf("identity %d", class)
	}
	return n.id(class)
}

func (n names) prefix(p prefix) string {
	a := p.Addr.Addr()
	bits := int(p.PrefixLen)
	switch {
	case bits == fullLength:
		return a.String()
	case a.Is4() && bits >= int(allIPv4.PrefixLen):
		bits -= int(allIPv4.PrefixLen)
	case a.Is4():
		a = netip.AddrFrom16(p.Addr)
	}
	return netip.PrefixFrom(a, bits).String()
}

func (n names) owner(v abi.IPCacheValue) string {
	s := n.peer(v.Peer)
	if v.Ifindex != 0 {
		s += fmt.Sprintf(" at interface %d", v.Ifindex)
	}
	if v.Flags != 0 {
		s += fmt.Sprintf(" flags %#x", v.Flags)
	}
	return s
}

func (n names) endpointKey(k abi.EndpointKey) string { return fmt.Sprintf("interface %d", k.Ifindex) }

func (n names) endpoint(v abi.EndpointValue) string {
	s := fmt.Sprintf("endpoint %d identity %d MAC %x", v.ID, v.Identity, v.MAC)
	for _, a := range addresses(v) {
		s += " " + a.Addr().String()
	}
	for d, ref := range refs(&v) {
		s += fmt.Sprintf(" %s table %s scope %s lens %#x/%#x/%#x flags %#x",
			[]string{"egress", "ingress"}[d], n.id(ref.Table), n.id(ref.Scope), ref.ClassLens, ref.BaseLens, ref.AnyLens, ref.Flags)
	}
	return s
}

func (n names) classKey(k abi.ClassKey) string {
	return fmt.Sprintf("scope %s %s", n.id(k.Scope), n.peer(k.Peer))
}

func (n names) class(v abi.ClassValue) string { return "class " + n.classID(v.Class) }

func (n names) policyKey(k abi.PolicyKey) string {
	s := fmt.Sprintf("table %s class %s", n.id(k.Table), n.classID(k.Class))
	if k.Protocol == 0 {
		return s + " every protocol"
	}
	port := uint32(k.PortBE[0])<<8 | uint32(k.PortBE[1])
	last := port | (0xffff >> k.PortBits)
	if port == last {
		return fmt.Sprintf("%s protocol %d port %d", s, k.Protocol, port)
	}
	return fmt.Sprintf("%s protocol %d ports %d-%d", s, k.Protocol, port, last)
}

func (n names) policy(v abi.PolicyValue) string {
	switch v.Verdict {
	case abi.VerdictAllow:
		return fmt.Sprintf("allow by row %016x", v.Row)
	case abi.VerdictDeny:
		return fmt.Sprintf("deny by row %016x", v.Row)
	}
	return fmt.Sprintf("verdict %d by row %016x", v.Verdict, v.Row)
}
