package policy

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/bpf/abi"
)

func TestEndpointLabels(t *testing.T) {
	got := EndpointLabels("home", "alpha",
		map[string]string{"team": "red", "kubernetes.io/metadata.name": "alpha"},
		map[string]string{
			"app":  "web",
			"flag": "",
			// None of these may take effect.
			"io.kubernetes.pod.namespace":              "kube-system",
			"io.cilium.k8s.policy.cluster":             "away",
			"io.cilium.k8s.policy.serviceaccount":      "root",
			"io.cilium.k8s.namespace.labels.team":      "blue",
			"io.cilium.k8s.namespace.labels.superuser": "yes",
			"host":          "",
			"reserved:host": "",
		}, "")
	want := "k8s:app=web,k8s:flag=,k8s:host=," +
		"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=alpha," +
		"k8s:io.cilium.k8s.namespace.labels.team=red," +
		"k8s:io.cilium.k8s.policy.cluster=home," +
		"k8s:io.cilium.k8s.policy.serviceaccount=default," +
		"k8s:io.kubernetes.pod.namespace=alpha,k8s:reserved:host="
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, ok := got.Get(SourceReserved, "host"); ok {
		t.Error("a workload's label became a reserved one")
	}
}

func TestNewLabels(t *testing.T) {
	in := []Label{{"k8s", "b", "1"}, {"any", "z", ""}, {"k8s", "b", "2"}, {"k8s", "a", "x"}}
	got := NewLabels(in...)
	if want := "any:z=,k8s:a=x,k8s:b=2"; got.String() != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if in[0].Key != "b" || in[1].Key != "z" {
		t.Error("the argument was sorted in place")
	}
	if len(NewLabels()) != 0 {
		t.Error("no labels made some")
	}
}

func TestParseLabel(t *testing.T) {
	for in, want := range map[string]Label{
		"k8s:app=web":   {"k8s", "app", "web"},
		"k8s:flag=":     {"k8s", "flag", ""},
		"reserved:host": {"reserved", "host", ""},
		"k8s:a=b=c:d":   {"k8s", "a", "b=c:d"},
		"k8s:io.x/y=1":  {"k8s", "io.x/y", "1"},
	} {
		got, err := ParseLabel(in)
		if err != nil || got != want || got.String() != in {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "app=web", ":app", "k8s:", "k8s:=web"} {
		if l, err := ParseLabel(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, %v", in, l, err)
		}
	}
}

func TestReservedLabels(t *testing.T) {
	for id, want := range map[uint32]string{
		0:                         "",
		abi.IdentityHost:          "reserved:host",
		abi.IdentityWorld:         "reserved:world",
		abi.IdentityUnmanaged:     "reserved:unmanaged",
		abi.IdentityHealth:        "reserved:health",
		abi.IdentityInit:          "reserved:init",
		abi.IdentityRemoteNode:    "reserved:remote-node",
		abi.IdentityKubeAPIServer: "reserved:kube-apiserver,reserved:remote-node",
		abi.IdentityIngress:       "reserved:ingress",
		abi.IdentityWorldIPv4:     "reserved:world-ipv4",
		abi.IdentityWorldIPv6:     "reserved:world-ipv6",
		11:                        "",
		abi.IdentityFirstDynamic:  "",
	} {
		if got := ReservedLabels(id).String(); got != want {
			t.Errorf("%d: %q, want %q", id, got, want)
		}
	}
	if CIDRLabels(false).String() != "reserved:world-ipv4" || CIDRLabels(true).String() != "reserved:world-ipv6" {
		t.Error("a range's labels are not its family's world")
	}
}

func TestEntities(t *testing.T) {
	const pod = abi.IdentityFirstDynamic
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")
	every := []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, pod, 1 << 20}
	cluster := []uint32{1, 3, 4, 5, 6, 7, 8, pod, 1 << 20}
	for e, want := range map[Entity]struct {
		ids    []uint32
		v4, v6 bool
	}{
		EntityAll:           {every, true, true},
		EntityWorld:         {[]uint32{2, 9, 10}, true, true},
		EntityWorldIPv4:     {[]uint32{9}, true, false},
		EntityWorldIPv6:     {[]uint32{10}, false, true},
		EntityCluster:       {cluster, false, false},
		EntityClusterMesh:   {cluster, false, false},
		EntityHost:          {[]uint32{1}, false, false},
		EntityRemoteNode:    {[]uint32{6, 7}, false, false},
		EntityKubeAPIServer: {[]uint32{7}, false, false},
		EntityHealth:        {[]uint32{4}, false, false},
		EntityInit:          {[]uint32{5}, false, false},
		EntityIngress:       {[]uint32{8}, false, false},
		EntityUnmanaged:     {[]uint32{3}, false, false},
		EntityNone:          {nil, false, false},
		"bogus":             {nil, false, false},
	} {
		var ids []uint32
		for _, id := range every {
			if e.MatchesIdentity(id) {
				ids = append(ids, id)
			}
		}
		if diff := cmp.Diff(want.ids, ids); diff != "" {
			t.Errorf("%s: identities -want +got:\n%s", e, diff)
		}
		if e.MatchesCIDR(v4) != want.v4 || e.MatchesCIDR(v6) != want.v6 {
			t.Errorf("%s: ranges %t %t", e, e.MatchesCIDR(v4), e.MatchesCIDR(v6))
		}
		if e.MatchesPods() != e.MatchesIdentity(pod) {
			t.Errorf("%s: pods and identities disagree", e)
		}
		if e.Valid() != (e != "bogus") {
			t.Errorf("%s: valid is %t", e, e.Valid())
		}
	}
	if n := len(Entities()); n != 14 {
		t.Errorf("%d entities", n)
	}
}

func TestDirectionsAreTheABIs(t *testing.T) {
	if uint8(Egress) != uint8(abi.Egress) || uint8(Ingress) != uint8(abi.Ingress) {
		t.Error("directions are numbered differently from bpf/abi")
	}
}

func TestRefs(t *testing.T) {
	for s, r := range map[string]Ref{
		"np/default/web":  {KindNetworkPolicy, "default", "web"},
		"cnp/default/web": {KindCiliumNetworkPolicy, "default", "web"},
		"ccnp/web.x":      {KindCiliumClusterwideNetworkPolicy, "", "web.x"},
	} {
		if r.String() != s || r.Stream() != "policy/"+s {
			t.Errorf("%+v: %s, %s", r, r, r.Stream())
		}
		if back, err := ParseStream(r.Stream()); err != nil || back != r {
			t.Errorf("%s: %+v, %v", s, back, err)
		}
	}
	for _, s := range []string{
		"", "web", "policy/", "policy/np/web", "policy/ccnp/default/web", "policy/cnp//web",
		"policy/cnp/default/", "policy/cnp/de.fault/web", "policy/ccnp/UP", "policy/xnp/a/b", "endpoint/a/b",
	} {
		if r, err := ParseStream(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %+v, %v", s, r, err)
		}
	}
	for in, want := range map[string]Kind{
		"np": KindNetworkPolicy, "CNP": KindCiliumNetworkPolicy,
		"ciliumclusterwidenetworkpolicy": KindCiliumClusterwideNetworkPolicy,
	} {
		if k, err := ParseKind(in); err != nil || k != want {
			t.Errorf("%s: %v, %v", in, k, err)
		}
	}
	if _, err := ParseKind("pod"); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	for s, name := range map[Section]string{SectionIngress: "ingress", SectionEgress: "egress", SectionIngressDeny: "ingressDeny", SectionEgressDeny: "egressDeny", 0: "unknown", 9: "unknown"} {
		if s.String() != name {
			t.Errorf("%d: %s", s, s)
		}
	}
}
