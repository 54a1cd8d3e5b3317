package testns

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, name string) *NS {
	t.Helper()
	n, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestPacketsInsideOneNamespace(t *testing.T) {
	n := open(t, "one")
	if _, err := n.Output(context.Background(), "ip", "link", "set", "lo", "up"); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{"127.0.0.1", "::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(ip), 0)
		tcp, err := n.EchoTCP(at)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		udp, err := n.EchoUDP(at)
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		if err := n.ExchangeTCP(tcp.Addr(), time.Minute); err != nil {
			t.Errorf("TCP %s: %v", ip, err)
		}
		if err := n.ExchangeUDP(udp.Addr(), time.Minute); err != nil {
			t.Errorf("UDP %s: %v", ip, err)
		}
		if err := n.Ping(at.Addr(), time.Minute); err != nil {
			t.Errorf("ping %s: %v", ip, err)
		}
	}
}

func TestNamespacesAreApart(t *testing.T) {
	a, b := open(t, "apart"), open(t, "apart")
	if a.Path() == b.Path() {
		t.Fatalf("both are at %s", a.Path())
	}
	if err := a.Ping(netip.MustParseAddr("127.0.0.1"), time.Second); err == nil {
		t.Error("loopback of a new namespace is up, want down")
	}
}

func TestSysctlsAreTheNamespacesOwn(t *testing.T) {
	const file = "/proc/sys/net/ipv4/ip_forward"
	outside, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := "1\n"
	if string(outside) == want {
		want = "0\n"
	}
	n := open(t, "sysctl")
	if err := n.Do(func() error { return os.WriteFile(file, []byte(want), 0o644) }); err != nil {
		t.Fatal(err)
	}
	inside, err := n.Output(context.Background(), "cat", file)
	if err != nil || inside != want {
		t.Errorf("inside: %q, %v, want %q", inside, err, want)
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != string(outside) {
		t.Errorf("outside: %q, %v, want %q as before", now, err, outside)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	n, err := New("gone")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), n.Path()) {
		t.Errorf("%s is mounted", n.Path())
	}
	if _, err := os.Stat(n.dir); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want not to exist", n.dir, err)
	}
	if err := n.Do(func() error { return nil }); err == nil {
		t.Error("Do in a closed namespace gave no error")
	}
}

func TestBadName(t *testing.T) {
	for _, name := range []string{"", "a/b"} {
		if n, err := New(name); err == nil {
			t.Errorf("New(%q) gave no error", name)
			_ = n.Close()
		}
	}
}
