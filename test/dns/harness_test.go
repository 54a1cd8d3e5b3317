// Package dns holds the real binary, with its DNS proxy, to what docs/dns.md promises:
// real servers and clients ask each other through it, and packets follow the answers.
package dns

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/dnsrpc"
	"github.com/varve-net/varve/internal/testbin"
	"github.com/varve-net/varve/internal/testns"
)

const (
	// limit is how long what must happen may take on a loaded machine.
	limit = 3 * time.Minute
	// silence is how long an answer that must not come is waited for.
	silence = 300 * time.Millisecond
)

// binary is the agent under test, built once.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "varve-dns-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary, err = testbin.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Documentation ranges (RFC 5737, RFC 3849); all of them are inside the test's own
// namespaces.
var (
	nodeAddr    = pair("198.51.100.1", "2001:db8:100::1")
	outsideAddr = pair("198.51.100.2", "2001:db8:100::2")
	unboundAddr = pair("198.51.100.3", "2001:db8:100::3")
)

// addrs is one address of each family.
type addrs [2]netip.Addr

func pair(v4, v6 string) addrs { return addrs{netip.MustParseAddr(v4), netip.MustParseAddr(v6)} }

// site is the number'th pair of addresses of the outside world. All of them answer.
func site(number int) addrs {
	return pair(fmt.Sprintf("203.0.%d.%d", 112+number/250, 1+number%250), fmt.Sprintf("2001:db8:113::%x", 1+number))
}

// pod is a container.
type pod struct {
	*testns.NS
	ref  string
	addr addrs
}

// stage is a node with an agent, and the world outside.
type stage struct {
	t             *testing.T
	dir           string
	args          []string // more of the agent
	node, outside *testns.NS
	agent         *testbin.Process
	client        *api.Client
	proxy         *dnsrpc.Client
}

func newStage(t *testing.T, args ...string) *stage {
	t.Helper()
	s := &stage{t: t, dir: t.TempDir(), args: args}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(s.dir, "bpf"), unix.MNT_DETACH) })
	s.node, s.outside = s.space("node"), s.space("outside")
	var err error
	if s.client, err = api.New(filepath.Join(s.dir, "varve.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	s.proxy = dnsrpc.NewClient(filepath.Join(s.dir, "dns.sock"))
	t.Cleanup(s.proxy.Close)
	s.ip(s.node, fmt.Sprintf("link add uplink type veth peer name eth0 netns %s", s.outside.Path()))
	err = errors.Join(s.node.Do(func() error { return testns.SkipDAD("uplink") }), s.outside.Do(func() error { return testns.SkipDAD("eth0") }))
	if err != nil {
		t.Fatal(err)
	}
	s.ip(s.node, "link set uplink up", "addr add 198.51.100.1/24 dev uplink", "addr add 2001:db8:100::1/64 dev uplink nodad",
		"route add 203.0.112.0/20 via 198.51.100.2", "route add 2001:db8:113::/64 via 2001:db8:100::2")
	s.ip(s.outside, "link set eth0 up", "addr add 198.51.100.2/24 dev eth0", "addr add 198.51.100.3/24 dev eth0",
		"addr add 2001:db8:100::2/64 dev eth0 nodad", "addr add 2001:db8:100::3/64 dev eth0 nodad",
		"route add local 203.0.112.0/20 dev lo", "route add local 2001:db8:113::/64 dev lo",
		"route add 10.244.0.0/24 via 198.51.100.1", "route add fd00:10:244::/64 via 2001:db8:100::1")
	err = s.node.Do(func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644))
	})
	if err != nil {
		t.Fatal(err)
	}
	s.echo(s.outside, 443)
	s.start()
	t.Cleanup(s.endProxy)
	return s
}

// space makes a namespace with its loopback up.
func (s *stage) space(name string) *testns.NS {
	s.t.Helper()
	ns, err := testns.New(name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = ns.Close() })
	s.ip(ns, "link set lo up")
	return ns
}

// ip runs commands of ip(8) in a namespace.
func (s *stage) ip(ns *testns.NS, commands ...string) {
	s.t.Helper()
	batch := filepath.Join(s.t.TempDir(), "ip")
	if err := os.WriteFile(batch, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if _, err := ns.Output(s.t.Context(), "ip", "-batch", batch); err != nil {
		s.t.Fatal(err)
	}
}

// echo serves a port over TCP and UDP on every address of a namespace.
func (s *stage) echo(ns *testns.NS, port uint16) {
	s.t.Helper()
	tcp, err := ns.EchoTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = tcp.Close() })
	udp, err := ns.EchoUDPEverywhere(port)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = udp.Close() })
}

// places are arguments that agent and proxy have in common. An answer may wait long for
// its addresses: no test is to fail since the machine was busy.
func (s *stage) places() []string {
	return []string{"--config", os.DevNull, "--state-dir", filepath.Join(s.dir, "state"), "--bpf-root", filepath.Join(s.dir, "bpf"),
		"--node-name", "node-1", "--dns-socket", filepath.Join(s.dir, "dns.sock"), "--tofqdns-proxy-response-max-delay", "10s"}
}

// run starts the binary in the node's namespace.
func (s *stage) run(args ...string) *testbin.Process {
	s.t.Helper()
	p, err := testbin.Start(s.node, binary, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		p.Kill()
		if log := p.Log(); s.t.Failed() || strings.Contains(log, "panic") || strings.Contains(log, "fatal error") {
			s.t.Errorf("%s:\n%s", args[0], log)
		}
	})
	return p
}

// start starts the agent and waits until what its log says is in force.
func (s *stage) start() {
	s.t.Helper()
	s.launch()
	s.inForce()
}

// launch starts the agent.
func (s *stage) launch() {
	s.t.Helper()
	args := append([]string{"agent"}, s.places()...)
	args = append(args, "--socket", filepath.Join(s.dir, "varve.sock"), "--snapshot-threshold", "64")
	for _, a := range nodeAddr {
		args = append(args, "--node-ip", a.String())
	}
	s.agent = s.run(append(args, s.args...)...)
}

// startProxy starts a proxy without an agent, as the system's unit does.
func (s *stage) startProxy() {
	s.t.Helper()
	s.run(append([]string{"dns-proxy"}, s.places()...)...)
	s.proxyPID()
}

// proxyPID waits for a proxy with rules and returns its process.
func (s *stage) proxyPID() (pid int) {
	s.t.Helper()
	s.eventually("the proxy answers", func(ctx context.Context) error {
		st, err := s.proxy.Status(ctx)
		if err == nil && st.Rules == 0 {
			err = errors.New("it has no rules")
		}
		pid = st.PID
		return err
	})
	return pid
}

// killProxy ends the proxy with SIGKILL.
func (s *stage) killProxy() {
	s.t.Helper()
	pid := s.proxyPID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	s.eventually("the proxy is gone", func(ctx context.Context) error {
		if st, err := s.proxy.Status(ctx); err == nil && st.PID == pid {
			return fmt.Errorf("process %d answers", pid)
		}
		return nil
	})
}

// endProxy ends a proxy that outlived its agent.
func (s *stage) endProxy() {
	if s.agent != nil {
		s.agent.Kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		st, err := s.proxy.Status(ctx)
		if err != nil || st.PID <= 0 {
			return
		}
		_ = unix.Kill(st.PID, unix.SIGKILL)
	}
}

// eventually waits until something holds.
func (s *stage) eventually(what string, try func(context.Context) error) {
	s.t.Helper()
	var err error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err = try(ctx)
		cancel()
		if err == nil {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	s.t.Fatalf("%s: %v", what, err)
}

func (s *stage) status(ctx context.Context, verify bool) (*varvev1.StatusResponse, error) {
	r, err := s.client.Agent.Status(ctx, connect.NewRequest(&varvev1.StatusRequest{Verify: verify}))
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}

// inForce waits until the kernel has what the log says.
func (s *stage) inForce() {
	s.t.Helper()
	s.eventually("the log is in force", func(ctx context.Context) error {
		st, err := s.status(ctx, false)
		if err == nil && st.Revision != st.AppliedRevision {
			err = fmt.Errorf("revision %d of %d", st.AppliedRevision, st.Revision)
		}
		return err
	})
}

// equal waits until the kernel's maps are, row by row, what the log says.
func (s *stage) equal() {
	s.t.Helper()
	s.eventually("status --verify", func(ctx context.Context) error {
		st, err := s.status(ctx, true)
		if err != nil {
			return err
		}
		if len(st.Differences) > 0 || !bytes.Equal(st.KernelDigest, st.TablesDigest) {
			return fmt.Errorf("tables %x, kernel %x: %v", st.TablesDigest, st.KernelDigest, st.Differences)
		}
		return nil
	})
}

// add connects a pod.
func (s *stage) add(ref, key, value string) *pod {
	s.t.Helper()
	namespace, name, _ := strings.Cut(ref, "/")
	p := &pod{NS: s.space(name), ref: ref}
	r, err := s.client.Endpoints.Add(s.t.Context(), connect.NewRequest(&varvev1.AddEndpointRequest{
		Namespace: namespace, Name: name, Labels: map[string]string{key: value}, Netns: p.Path(),
	}))
	if err != nil {
		s.t.Fatal(err)
	}
	for i, a := range []string{r.Msg.Endpoint.GetIpv4(), r.Msg.Endpoint.GetIpv6()} {
		bare, _, _ := strings.Cut(a, "/")
		if p.addr[i], err = netip.ParseAddr(bare); err != nil {
			s.t.Fatal(err)
		}
	}
	return p
}

// apply applies a policy of testdata and waits until it is in force.
func (s *stage) apply(file string, replace ...string) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		s.t.Fatal(err)
	}
	manifest := strings.NewReplacer(replace...).Replace(string(text))
	if _, err := s.client.Policies.Apply(s.t.Context(), connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: manifest, Source: file})); err != nil {
		s.t.Fatal(err)
	}
	s.inForce()
}

// reaches wants the first packet to an address to pass: one datagram, one answer. A
// TCP connection would hide that its first segment was lost.
func (s *stage) reaches(p *pod, to netip.Addr) {
	s.t.Helper()
	if err := p.ExchangeUDP(addrPort(to), limit); err != nil {
		s.t.Fatalf("%s, first datagram: %v", p.ref, err)
	}
	if err := p.ExchangeTCP(addrPort(to), limit); err != nil {
		s.t.Fatalf("%s: %v", p.ref, err)
	}
}

// closed is nil if an address is dropped in silence.
func closed(p *pod, to netip.Addr) error {
	udp := make(chan error, 1)
	go func() { udp <- p.ExchangeUDP(addrPort(to), silence) }()
	for _, err := range []error{p.ExchangeTCP(addrPort(to), silence), <-udp} {
		if !isTimeout(err) {
			return fmt.Errorf("%s to %s: want it dropped in silence, got %v", p.ref, to, err)
		}
	}
	return nil
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err) || errors.As(err, &ne) && ne.Timeout()
}

func (s *stage) dropped(p *pod, to netip.Addr) {
	s.t.Helper()
	if err := closed(p, to); err != nil {
		s.t.Fatal(err)
	}
}

// addrPort is where the outside world listens.
func addrPort(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 443) }
