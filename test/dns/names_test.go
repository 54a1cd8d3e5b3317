package dns

import (
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// The policy of Cilium 1.4's announcement, unmodified.
func TestTheExampleOfTheAnnouncement(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.namespace("kube-system")
	server := s.add("kube-system/kube-dns", "k8s-app", "kube-dns")
	s.authority(server.NS, netip.IPv6Unspecified())
	service := s.add("default/service", "app", "myService")
	s.apply("egress-domain-wildcard.yaml")
	for _, to := range site(1) {
		s.dropped(service, to)
	}
	for i, to := range site(1) {
		s.resolves(service, server.addr[i], "n1.domain.com", site(1))
		if err := service.ExchangeTCP(addrPort(to), limit); err != nil {
			t.Fatal(err)
		}
		s.rejected(service, server.addr[i], "n2.example.org", "REFUSED")
		s.dropped(service, site(2)[i])
	}
	s.equal()
}

// namespace makes one in the log.
func (s *stage) namespace(name string) {
	s.t.Helper()
	if _, err := s.client.Namespaces.Apply(s.t.Context(), connect.NewRequest(&varvev1.ApplyNamespaceRequest{Name: name})); err != nil {
		s.t.Fatal(err)
	}
}

// town is a stage with servers in a pod, on the host and outside, and two clients.
type town struct {
	*stage
	kubeDNS, client, other *pod
}

func newTown(t *testing.T, args ...string) *town {
	t.Helper()
	w := &town{stage: newStage(t, args...)}
	w.namespace("kube-system")
	w.kubeDNS = w.add("kube-system/kube-dns", "k8s-app", "kube-dns")
	w.authority(w.kubeDNS.NS, netip.IPv6Unspecified())
	for i := range nodeAddr {
		w.authority(w.node, nodeAddr[i])
		w.authority(w.outside, outsideAddr[i])
	}
	w.client, w.other = w.add("default/client", "app", "client"), w.add("default/other", "app", "client")
	w.apply("client.yaml")
	return w
}

// on is the same town for a subtest.
func (w *town) on(t *testing.T) *town {
	s, sub := *w.stage, *w
	s.t, sub.stage = t, &s
	return &sub
}

var firstPackets = flag.Int("first-packets", 200, "names whose addresses TestNames sends a first packet to")

// Each case has names of its own.
func TestNames(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	servers := []struct {
		where string
		addrs
	}{{"pod", w.kubeDNS.addr}, {"host", nodeAddr}, {"outside", outsideAddr}}
	number := 1
	for _, server := range servers {
		for i, at := range server.addrs {
			t.Run(fmt.Sprintf("server/%s/%d", server.where, i), func(t *testing.T) {
				w := w.on(t)
				to, name := site(number), fmt.Sprintf("n%d.domain.com", number)
				number++
				for _, a := range to {
					w.dropped(w.client, a)
				}
				w.resolves(w.client, at, name, to)
				for _, a := range to {
					w.reaches(w.client, a)
				}
				w.dropped(w.other, to[i])
				w.rejected(w.client, at, "n2.example.com", "REFUSED")
				if code, _, out := w.dig(w.client, at, name, "A", "+tcp"); code != "NOERROR" {
					t.Fatal(out)
				}
				if code, _, out := w.dig(w.client, at, "n2.example.com", "A", "+tcp"); code != "REFUSED" {
					t.Fatal(out)
				}
			})
		}
	}
	t.Run("never asked", func(t *testing.T) {
		w := w.on(t)
		for _, a := range site(300) {
			w.dropped(w.client, a)
		}
	})
	t.Run("first packets", func(t *testing.T) {
		w := w.on(t)
		for i := range *firstPackets {
			number, family := 1000+i, i%2
			server := servers[i%len(servers)].addrs[family]
			want := site(number)
			if got := w.goLookUp(w.client, server, fmt.Sprintf("n%d.domain.com.", number)); !slices.Contains(got, want[0]) || !slices.Contains(got, want[1]) {
				t.Fatalf("site %d: %v", number, got)
			}
			for _, a := range want {
				w.reaches(w.client, a)
			}
		}
	})
	t.Run("alias", func(t *testing.T) {
		w := w.on(t)
		w.resolves(w.client, w.kubeDNS.addr[0], "alias.domain.com", site(302))
		for _, a := range site(302) {
			w.reaches(w.client, a)
		}
	})
	t.Run("too long for a datagram", func(t *testing.T) {
		w := w.on(t)
		_, _, out := w.dig(w.client, outsideAddr[1], "big.domain.com", "A", "+noedns", "+ignore")
		if !strings.Contains(out, " tc") {
			t.Fatalf("want it truncated:\n%s", out)
		}
		if _, got, out := w.dig(w.client, outsideAddr[1], "big.domain.com", "A"); len(got) != many {
			t.Fatalf("%d addresses over TCP, want %d:\n%s", len(got), many, out)
		}
		w.reaches(w.client, site(400)[0])
		w.reaches(w.client, site(400 + many - 1)[0])
		if got := w.goLookUp(w.other, outsideAddr[0], "big.domain.com."); len(got) != 2*many {
			t.Fatalf("Go's resolver has %d addresses, want %d", len(got), 2*many)
		}
		w.reaches(w.other, site(400 + many - 1)[1])
	})
	w.equal()
}

func TestServersAndClientsOfOthers(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	masq := w.add("kube-system/masq", "k8s-app", "kube-dns")
	w.dnsmasq(masq.NS, masq.addr[0])
	w.unbound(w.outside, unboundAddr, outsideAddr[0])
	w.web(w.outside)
	for i := range masq.addr {
		w.resolves(w.client, masq.addr[i], "masq.domain.com", site(310))
		w.resolves(w.client, unboundAddr[i], "n311.domain.com", site(311))
		w.resolves(w.client, unboundAddr[i], "alias.domain.com", site(302))
		w.rejected(w.client, unboundAddr[i], "n1.example.com", "REFUSED")
		for _, number := range []int{302, 310, 311} {
			w.reaches(w.client, site(number)[i])
			w.dropped(w.other, site(number)[i])
		}
	}
	t.Run("getent", func(t *testing.T) {
		w := w.on(t)
		for i, server := range unboundAddr {
			name := fmt.Sprintf("n%d.domain.com", 320+i)
			out, err := w.command(w.client, server, "getent", "ahosts", name)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range site(320 + i) {
				if !strings.Contains(out, a.String()+" ") {
					t.Fatalf("%s: want %s:\n%s", name, a, out)
				}
				w.reaches(w.client, a)
			}
			if out, err := w.command(w.client, server, "getent", "ahosts", "n320.example.com"); err == nil {
				t.Fatalf("a name that no rule allows:\n%s", out)
			}
		}
	})
	t.Run("curl", func(t *testing.T) {
		w := w.on(t)
		for i, server := range masq.addr {
			out, err := w.command(w.other, server, "curl", "-sS", "--max-time", "50", []string{"-4", "-6"}[i], "http://masq.domain.com:8080/")
			if err != nil || !strings.Contains(out, "page of masq.domain.com") {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		if out, err := w.command(w.other, masq.addr[0], "curl", "-sS", "--max-time", "50", "http://n320.example.com:8080/"); err == nil {
			t.Fatalf("a name that no rule allows:\n%s", out)
		}
	})
	w.equal()
}
