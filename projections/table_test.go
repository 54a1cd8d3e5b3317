package projections

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

func TestTableIsASetInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfDistinct(rapid.Uint64(), rapid.ID[uint64]).Draw(t, "keys")
		make1 := func(keys []uint64) Table[abi.ClassKey, abi.ClassValue] {
			var rows []*Row[abi.ClassKey, abi.ClassValue]
			for _, k := range keys {
				rows = append(rows, &Row[abi.ClassKey, abi.ClassValue]{Key: abi.ClassKey{Scope: k, Peer: 1}, Value: abi.ClassValue{Class: k}})
			}
			table, err := NewClasses(rows)
			if err != nil {
				t.Fatal(err)
			}
			return table
		}
		a := make1(keys)
		b := make1(rapid.Permutation(keys).Draw(t, "permutation"))
		if a.Digest() != b.Digest() {
			t.Fatal("the digest depends on the order in which rows were given")
		}
		var digest log.Digest
		var previous []byte
		n := 0
		for r := range a.All() {
			key := appendClassKey(nil, r.Key)
			if n > 0 && string(previous) >= string(key) {
				t.Fatalf("row %d is out of order", n)
			}
			previous = key
			if got, ok := b.Get(r.Key); !ok || got.Value != r.Value {
				t.Fatalf("Get(%+v) = %+v, %v", r.Key, got, ok)
			}
			digest.Add(HashClass(r.Key, r.Value))
			n++
		}
		if n != len(keys) || a.Len() != n || digest.Sum() != a.Digest() {
			t.Fatalf("%d of %d rows, digest %s, sum of hashes %s", n, len(keys), a.Digest(), digest.Sum())
		}
	})
}

func TestTableRefusesTwoRowsOfOneKey(t *testing.T) {
	row := func(class uint64) *Row[abi.ClassKey, abi.ClassValue] {
		return &Row[abi.ClassKey, abi.ClassValue]{Key: abi.ClassKey{Scope: 1, Peer: 2}, Value: abi.ClassValue{Class: class}}
	}
	if _, err := NewClasses([]*Row[abi.ClassKey, abi.ClassValue]{row(3), row(4)}); !errors.Is(err, ErrDuplicateKey) {
		t.Errorf("error %v, want ErrDuplicateKey", err)
	}
}

// The encoders are written by hand: encoding/binary is the judge of them.
func TestEncodersWriteTheABI(t *testing.T) {
	ref := abi.PolicyRef{Table: 1 << 60, Scope: 3, ClassLens: 0x2ffff, AnyLens: 5, Flags: 1, BaseLens: 1 << 16}
	for _, c := range []struct {
		name  string
		got   []byte
		value any
	}{
		{"endpoint key", appendEndpointKey(nil, EndpointKey{0x01020304}), EndpointKey{0x01020304}},
		{"endpoint value", appendEndpointValue(nil, endpointValue(ref)), endpointValue(ref)},
		{"prefix", appendPrefix(nil, PrefixFrom(netip.MustParsePrefix("10.1.0.0/16"))), PrefixFrom(netip.MustParsePrefix("10.1.0.0/16"))},
		{"ipcache value", appendIPCacheValue(nil, abi.IPCacheValue{Peer: 1 << 62, Flags: 9}), abi.IPCacheValue{Peer: 1 << 62, Flags: 9}},
		{"class key", appendClassKey(nil, abi.ClassKey{Scope: 5, Peer: 6}), abi.ClassKey{Scope: 5, Peer: 6}},
		{"class value", appendClassValue(nil, abi.ClassValue{Class: 1 << 63}), abi.ClassValue{Class: 1 << 63}},
		{"policy key", appendPolicyKey(nil, policyKey(7, 8, node{6, 9, 0x8080})), policyKey(7, 8, node{6, 9, 0x8080})},
		{"policy value", appendPolicyValue(nil, abi.PolicyValue{Row: 1 << 61, Verdict: 2}), abi.PolicyValue{Row: 1 << 61, Verdict: 2}},
	} {
		want, err := binary.Append(nil, binary.LittleEndian, c.value)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, c.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func endpointValue(ref abi.PolicyRef) abi.EndpointValue {
	return abi.EndpointValue{
		ID: 1, Identity: 2, Egress: ref, Ingress: abi.PolicyRef{Table: 9}, IPv4: [4]byte{10, 0, 0, 1},
		MAC: [6]byte{2, 3, 4, 5, 6, 7}, Flags: 0x0102, IPv6: [16]byte{0xfd, 15: 1},
	}
}

func TestHashesLeaveOutWhatIsLocalToABoot(t *testing.T) {
	k := PrefixFrom(netip.MustParsePrefix("10.0.0.1/32"))
	a, b := abi.IPCacheValue{Peer: 300}, abi.IPCacheValue{Peer: 300, Ifindex: 17}
	if HashIPCache(k, a) != HashIPCache(k, b) {
		t.Error("an interface index changes the hash")
	}
	b.Peer++
	if HashIPCache(k, a) == HashIPCache(k, b) {
		t.Error("another peer has the same hash")
	}
}

func TestRangeNodesCoverExactlyTheRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint16().Draw(t, "first")
		last := rapid.Uint16Min(first).Draw(t, "last")
		nodes := rangeNodes(6, first, last)
		if len(nodes) > 30 {
			t.Fatalf("%d nodes", len(nodes))
		}
		next := uint32(first)
		for _, n := range nodes {
			if uint32(n.port) != next || n.port != maskPort(n.port, int(n.bits)) {
				t.Fatalf("node %+v does not continue at %d: %+v", n, next, nodes)
			}
			next += 1 << (16 - n.bits)
		}
		if next != uint32(last)+1 {
			t.Fatalf("nodes end at %d, range at %d", next-1, last)
		}
	})
}

func TestResolve(t *testing.T) {
	root, tcp := node{}, node{protocol: 6}
	tcp80 := node{6, 16, 80}
	tcp64 := node{6, 10, 64}
	allow, deny := abi.VerdictAllow, abi.VerdictDeny
	for _, c := range []struct {
		name   string
		claims []claim
		want   []decision
	}{
		{"nothing", nil, nil},
		{"an allow under an allow is no row", []claim{{node: tcp80, rule: 0}, {node: root, rule: 1}}, []decision{{node: root, verdict: allow, rules: []int{1}}}},
		{
			"a wide deny beats a narrow allow",
			[]claim{{node: tcp80, rule: 0}, {node: tcp, deny: true, rule: 1}},
			[]decision{{node: tcp, verdict: deny, rules: []int{1}}},
		},
		{
			"a narrow deny is carved out of a wide allow",
			[]claim{{node: tcp64, deny: true, rule: 2}, {node: tcp80, deny: true, rule: 1}, {node: root, rule: 0}},
			[]decision{{node: root, verdict: allow, rules: []int{0}}, {node: tcp64, verdict: deny, rules: []int{2}}},
		},
		{
			"every covering rule of the verdict is a cause, once",
			[]claim{{node: root, deny: true, rule: 3}, {node: root, rule: 0}, {node: root, deny: true, rule: 1}, {node: root, deny: true, rule: 3}},
			[]decision{{node: root, verdict: deny, rules: []int{1, 3}}},
		},
		{
			"covering causes come from above as well",
			[]claim{{node: tcp80, deny: true, rule: 0}, {node: tcp80, rule: 1}, {node: tcp, rule: 2}},
			[]decision{{node: tcp, verdict: allow, rules: []int{2}}, {node: tcp80, verdict: deny, rules: []int{0}}},
		},
	} {
		got := resolve(c.claims, func(node) *policy.DNSRules { return nil })
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(decision{}, node{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestIDsOfDifferentContentsNeverMeet(t *testing.T) {
	x := newIDs("default")
	a, b := new(content), new(content)
	first := x.id("table", a.str("one").str("two"))
	if again := newIDs("default").id("table", a); again != first {
		t.Error("the same content has another id in another run")
	}
	if other := newIDs("blue").id("table", a); other == first {
		t.Error("the cluster does not seed the id")
	}
	if other := x.id("table", b.str("onet").str("wo")); other == first {
		t.Error("parts of a content are not kept apart")
	}
	if x.err != nil {
		t.Fatal(x.err)
	}
	x.claim("table", first, log.Hash{1})
	if !errors.Is(x.err, ErrCollision) {
		t.Errorf("error %v, want ErrCollision", x.err)
	}
}

func TestCIDRPeersTellTheirFamily(t *testing.T) {
	x := newIDs("default")
	tables := &Tables{}
	for s, want := range map[string]uint64{"10.0.0.0/8": baseWorldIPv4, "0.0.0.0/0": baseWorldIPv4, "::/0": baseWorldIPv6} {
		if got := tables.classOf(0, x.cidrPeer(netip.MustParsePrefix(s))); got != want {
			t.Errorf("%s: base class %d, want %d", s, got, want)
		}
	}
}

func TestMaskAddr(t *testing.T) {
	ones := abi.Addr(slices.Repeat([]byte{0xff}, 16))
	for bits := range 129 {
		got := maskAddr(ones, bits)
		want := netip.PrefixFrom(netip.AddrFrom16(ones), bits).Masked().Addr().As16()
		if got != abi.Addr(want) {
			t.Errorf("%d bits: %x, want %x", bits, got, want)
		}
	}
}
