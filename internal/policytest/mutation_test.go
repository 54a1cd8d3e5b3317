package policytest

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/naive"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// asked is a verdict that is known to be right.
type asked struct {
	q     projections.Question
	allow bool
}

// place is where rows are that a verdict depends on.
type place struct{ table, class uint64 }

// mutants counts what became of rows that were removed, or whose verdict was turned.
type mutants struct {
	total int
	// byCases: a verdict of the case differs, the case fails.
	byCases int
	// byNaive: none does, since the case does not ask there; but a verdict of the
	// naive evaluator for another party or port does.
	byNaive int
	// silent: no packet can tell, e.g. since the base class says the same.
	silent   int
	survived []string
}

// TestMutations: the cases notice if any row of their tables is removed or turned from
// allow to deny or back. Where a case asks nothing that the row decides, the naive
// evaluator does; rows that no packet can tell apart are the rest.
func TestMutations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.jsonl*")
	if err != nil {
		t.Fatal(err)
	}
	var sum mutants
	for _, file := range files {
		if err := readFile(file, func(c testCase, err error) {
			if err != nil || c.Kind != "" || c.Error != "" {
				return
			}
			if sets, err := parsePolicies(&c); err == nil {
				state, err := replay(&c, sets)
				if err != nil {
					t.Fatalf("%s: %v", c.name(), err)
				}
				mutate(t, &c, state.View(), &sum)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d mutants: %d fail a case, %d more a naive verdict, %d no packet can tell", sum.total, sum.byCases, sum.byNaive, sum.silent)
	for _, s := range sum.survived {
		t.Errorf("survived: %s", s)
	}
	if sum.total < 5000 || sum.byCases < 2000 {
		t.Errorf("only %d mutants, %d of them fail a case", sum.total, sum.byCases)
	}
}

func mutate(t *testing.T, c *testCase, view fsm.View, sum *mutants) {
	t.Helper()
	tables, err := projections.Build(view, nodeName, projections.Options{})
	if err != nil {
		t.Fatal(err)
	}
	recorded := byPlace(t, tables, recordedVerdicts(t, c, view, tables))
	derived := byPlace(t, tables, naiveVerdicts(view, tables))
	var ranges []uint64 // that have an address: some are covered by narrower ones
	for _, a := range borders(slices.Collect(view.Policies())) {
		if peer := tables.PeerOf(a); outside(peer) {
			ranges = append(ranges, peer)
		}
	}
	byTable := make(map[uint64][]*projections.PolicyRow)
	for row := range tables.Policy.All() {
		byTable[row.Key.Table] = append(byTable[row.Key.Table], row)
	}
	for _, id := range slices.Sorted(maps.Keys(byTable)) {
		for i, row := range byTable[id] {
			turned := *row
			turned.Value.Verdict = abi.VerdictAllow + abi.VerdictDeny - row.Value.Verdict
			for _, rows := range [][]*projections.PolicyRow{
				slices.Delete(slices.Clone(byTable[id]), i, i+1),
				slices.Replace(slices.Clone(byTable[id]), i, i+1, &turned),
			} {
				mutant := *tables
				if mutant.Policy, err = projections.NewPolicy(rows); err != nil {
					t.Fatal(err)
				}
				at := place{row.Key.Table, row.Key.Class}
				sum.total++
				switch {
				case notices(t, &mutant, recorded[at], row.Key):
					sum.byCases++
				case notices(t, &mutant, derived[at], row.Key):
					sum.byNaive++
				case silent(t, tables, &mutant, ranges, row.Key):
					sum.silent++
				default:
					sum.survived = append(sum.survived, fmt.Sprintf("%s: row %+v of %s, now %d rows", c.name(), row.Key, tables.Names[row.Key.Class], len(rows)))
				}
			}
		}
	}
}

func notices(t *testing.T, mutant *projections.Tables, all []asked, k abi.PolicyKey) bool {
	t.Helper()
	return slices.ContainsFunc(all, func(a asked) bool {
		return covers(k, a.q.Protocol, a.q.Port) && allows(t, mutant, a.q) != a.allow
	})
}

func allows(t *testing.T, tables *projections.Tables, q projections.Question) bool {
	t.Helper()
	a, err := tables.Verdict(q)
	if err != nil {
		t.Fatal(err)
	}
	return a.Verdict == abi.VerdictAllow
}

// covers tells whether a row can decide for a port.
func covers(k abi.PolicyKey, protocol uint8, port uint16) bool {
	return k.Protocol == 0 || k.Protocol == protocol && (portOf(k)^port)>>(16-k.PortBits) == 0
}

func portOf(k abi.PolicyKey) uint16 { return uint16(k.PortBE[0])<<8 | uint16(k.PortBE[1]) }

// byPlace sorts verdicts by the classes whose rows they depend on.
func byPlace(t *testing.T, tables *projections.Tables, all []asked) map[place][]asked {
	t.Helper()
	out := make(map[place][]asked)
	for _, x := range all {
		a, err := tables.Verdict(x.q)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Verdict == abi.VerdictAllow; got != x.allow {
			t.Fatalf("%+v: the tables say %v, the cases %v", x.q, got, x.allow)
		}
		classes := []uint64{a.Class, abi.BaseOf(a.Class), abi.ClassAny}
		slices.Sort(classes)
		for _, class := range slices.Compact(classes) {
			out[place{a.Table, class}] = append(out[place{a.Table, class}], x)
		}
	}
	return out
}

// recordedVerdicts is what the truth of the case says.
func recordedVerdicts(t *testing.T, c *testCase, view fsm.View, tables *projections.Tables) []asked {
	t.Helper()
	truth, err := c.truth()
	if err != nil {
		t.Fatal(err)
	}
	parties, err := gather(c, view, tables)
	if err != nil {
		t.Fatal(err)
	}
	var out []asked
	for i, p := range c.Probes {
		proto, err := protocol(p.Proto)
		if err != nil {
			t.Fatal(err)
		}
		for from := range parties {
			for to := range parties {
				for _, s := range sides(parties[from], parties[to]) {
					if want := truth[i][from][to]; want != '.' && s.subject.endpoint != 0 {
						out = append(out, asked{projections.Question{
							Endpoint: s.subject.endpoint, Direction: s.direction, Peer: s.other.peer, Protocol: proto, Port: p.Port,
						}, want&s.bit != 0})
					}
				}
			}
		}
	}
	return out
}

// naiveVerdicts is what the naive evaluator says of every pod and everybody that a
// policy can tell apart, at every port that some rule or row tells apart.
func naiveVerdicts(view fsm.View, tables *projections.Tables) []asked {
	policies := slices.Collect(view.Policies())
	type peer struct {
		naive.Party
		number uint64
	}
	var pods, peers []peer
	for e := range view.Endpoints() {
		id, _ := view.Identity(e.Identity)
		addr := e.IPv4
		if !addr.IsValid() {
			addr = e.IPv6
		}
		pods = append(pods, peer{naive.Party{Endpoint: e, Labels: id.Labels}, tables.PeerOf(addr)})
	}
	peers = slices.Clone(pods)
	for id := abi.IdentityHost; id <= abi.IdentityIngress; id++ {
		if id != abi.IdentityWorld {
			peers = append(peers, peer{naive.Party{Reserved: id, Labels: policy.ReservedLabels(id)}, uint64(id)})
		}
	}
	for _, a := range borders(policies) {
		if number := tables.PeerOf(a); outside(number) {
			peers = append(peers, peer{naive.Party{Addr: a, Labels: policy.CIDRLabels(a.Is6())}, number})
		}
	}
	ports := portBorders(policies, view, tables)
	var out []asked
	for _, subject := range pods {
		for _, other := range peers {
			if other.Endpoint == subject.Endpoint {
				continue
			}
			for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
				for _, p := range ports {
					out = append(out, asked{projections.Question{
						Endpoint: subject.Endpoint.ID, Direction: abi.Direction(d), Peer: other.number, Protocol: p.Protocol, Port: p.First,
					}, naive.Allows(policies, d, subject.Party, other.Party, p.Protocol, p.First)})
				}
			}
		}
	}
	return out
}

// outside tells whether a peer is an address of the world.
func outside(peer uint64) bool {
	return peer&abi.PeerCIDR != 0 || peer == uint64(abi.IdentityWorldIPv4) || peer == uint64(abi.IdentityWorldIPv6)
}

// borders is the first and last address of each range that a policy names, those
// beside it, and one of each family that no policy names.
func borders(policies []*fsm.Policy) []netip.Addr {
	out := []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")}
	add := func(p netip.Prefix) {
		first := p.Masked().Addr()
		last := first.AsSlice()
		for bit := p.Bits(); bit < first.BitLen(); bit++ {
			last[bit/8] |= 0x80 >> (bit % 8)
		}
		end, _ := netip.AddrFromSlice(last)
		out = append(out, first, end, first.Prev(), end.Next())
	}
	for _, p := range policies {
		for _, s := range p.Policy.Specs {
			for _, r := range s.Rules {
				for _, peer := range r.Peers {
					if peer.CIDR.IsValid() {
						add(peer.CIDR)
					}
					for _, e := range peer.Except {
						add(e)
					}
				}
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.DeleteFunc(slices.Compact(out), func(a netip.Addr) bool { return !a.IsValid() })
}

// portBorders is every port at which some rule or row begins or ends to hold,
// and one of each protocol that no rule names.
func portBorders(policies []*fsm.Policy, view fsm.View, tables *projections.Tables) []policy.Port {
	var out []policy.Port
	add := func(protocol uint8, port int) {
		last := 65535
		if protocol == policy.ProtoICMP || protocol == policy.ProtoICMPv6 {
			last = 255
		}
		if 0 <= port && port <= last {
			out = append(out, policy.Port{Protocol: protocol, First: uint16(port)})
		}
	}
	for _, protocol := range []uint8{policy.ProtoTCP, policy.ProtoUDP, policy.ProtoSCTP, policy.ProtoICMP, policy.ProtoICMPv6} {
		add(protocol, 251)
	}
	for _, p := range policies {
		for _, s := range p.Policy.Specs {
			for _, r := range s.Rules {
				for _, port := range r.Ports {
					if port.Name == "" {
						for _, n := range []int{int(port.First) - 1, int(port.First), int(port.Last), int(port.Last) + 1} {
							add(port.Protocol, n)
						}
					}
				}
			}
		}
	}
	for row := range tables.Policy.All() {
		if row.Key.Protocol != 0 {
			first := int(portOf(row.Key))
			last := first | 0xffff>>row.Key.PortBits
			for _, n := range []int{first - 1, first, last, last + 1} {
				add(row.Key.Protocol, n)
			}
		}
	}
	for e := range view.Endpoints() {
		for _, n := range e.NamedPorts {
			add(n.Protocol, int(n.Port))
		}
	}
	slices.SortFunc(out, func(a, b policy.Port) int {
		return int(a.Protocol)<<16 + int(a.First) - int(b.Protocol)<<16 - int(b.First)
	})
	return slices.Compact(out)
}

// silent tells whether no packet at all shows the difference: asked of everybody who
// may have the row's class, at every port where rows of its table begin or end.
func silent(t *testing.T, tables, mutant *projections.Tables, ranges []uint64, k abi.PolicyKey) bool {
	t.Helper()
	type pair struct {
		subject   uint32
		direction abi.Direction
		peer      uint64
	}
	var pairs []pair
	for row := range tables.Endpoints.All() {
		for d, ref := range map[abi.Direction]abi.PolicyRef{abi.Egress: row.Value.Egress, abi.Ingress: row.Value.Ingress} {
			if ref.Table != k.Table {
				continue
			}
			for id := abi.IdentityHost; id <= abi.IdentityWorldIPv6; id++ {
				if id != abi.IdentityWorld {
					pairs = append(pairs, pair{row.Key.ID, d, uint64(id)})
				}
			}
			for other := range tables.Endpoints.All() {
				if other.Key != row.Key { // nothing stands between a pod and itself
					pairs = append(pairs, pair{row.Key.ID, d, tables.PeerOf(addressOf(other.Value))})
				}
			}
			for _, peer := range ranges {
				pairs = append(pairs, pair{row.Key.ID, d, peer})
			}
		}
	}
	protocols := []uint8{k.Protocol}
	if k.Protocol == 0 {
		protocols = []uint8{policy.ProtoTCP, policy.ProtoUDP, policy.ProtoSCTP, policy.ProtoICMP, policy.ProtoICMPv6}
	}
	ports := map[uint16]bool{0: true}
	for row := range tables.Policy.All() {
		if row.Key.Table == k.Table {
			first := portOf(row.Key)
			ports[first], ports[first-1] = true, true
			last := first | uint16(0xffff>>row.Key.PortBits)
			ports[last], ports[last+1] = true, true
		}
	}
	for _, p := range pairs {
		for _, protocol := range protocols {
			for port := range ports {
				q := projections.Question{Endpoint: p.subject, Direction: p.direction, Peer: p.peer, Protocol: protocol, Port: port}
				icmp := protocol == policy.ProtoICMP || protocol == policy.ProtoICMPv6
				if covers(k, protocol, port) && (!icmp || port <= 255) && allows(t, tables, q) != allows(t, mutant, q) {
					return false
				}
			}
		}
	}
	return true
}

func addressOf(v abi.EndpointValue) netip.Addr {
	if v.IPv4 != [4]byte{} {
		return netip.AddrFrom4(v.IPv4)
	}
	return netip.AddrFrom16(v.IPv6)
}
