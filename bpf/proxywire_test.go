package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
)

// relay is a proxy of the simplest sort: it passes on what containers send to the
// servers they sent it to, from their addresses, and counts.
type relay struct {
	t       *testing.T
	n       *node
	asked   atomic.Int64
	closers []io.Closer
	wg      sync.WaitGroup
}

// startRelay makes n's proxy map point at a relay.
func startRelay(t *testing.T, n *node) *relay {
	t.Helper()
	r := &relay{t: t, n: n}
	do(t, n.ns, func() error {
		// One port for all four listeners.
		u4, err := r.listenPacket("udp4", "0.0.0.0:0")
		if err != nil {
			return err
		}
		port := uint16(u4.LocalAddr().(*net.UDPAddr).Port)
		u6, err := r.listenPacket("udp6", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return err
		}
		for _, u := range []*net.UDPConn{u4, u6} {
			r.closers = append(r.closers, u)
			r.wg.Go(func() { r.serveUDP(u) })
		}
		for network, at := range map[string]string{"tcp4": "0.0.0.0", "tcp6": "[::]"} {
			l, err := (&net.ListenConfig{Control: transparent}).Listen(t.Context(), network, fmt.Sprintf("%s:%d", at, port))
			if err != nil {
				return err
			}
			r.closers = append(r.closers, l)
			r.wg.Go(func() { r.serveTCP(l) })
		}
		return n.o.Proxy.Put(uint32(0), abi.Proxy{PortBE: [2]byte{byte(port >> 8), byte(port)}})
	})
	t.Cleanup(r.stop)
	return r
}

func (r *relay) stop() {
	for _, c := range r.closers {
		_ = c.Close()
	}
	r.closers = nil
	r.wg.Wait()
}

// transparent makes a socket one of the proxy's.
func transparent(network, _ string, c syscall.RawConn) error {
	var err error
	set := func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, abi.MarkFromProxy))
		if network[3:] == "4" {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1))
		} else {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1))
		}
	}
	return errors.Join(c.Control(set), err)
}

func (r *relay) listenPacket(network, at string) (*net.UDPConn, error) {
	c, err := (&net.ListenConfig{Control: transparent}).ListenPacket(r.t.Context(), network, at)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func suffix(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// ask opens a connection to a server with a container's address.
func (r *relay) ask(network string, from netip.Addr, server netip.AddrPort) (c net.Conn, err error) {
	var local net.Addr = &net.UDPAddr{IP: from.AsSlice()}
	if network == "tcp" {
		local = &net.TCPAddr{IP: from.AsSlice()}
	}
	err = r.n.ns.Do(func() (err error) {
		d := net.Dialer{LocalAddr: local, Control: transparent, Timeout: patience}
		c, err = d.DialContext(context.Background(), network+suffix(from), server.String())
		return err
	})
	return c, err
}

func (r *relay) serveUDP(u *net.UDPConn) {
	buf, oob := make([]byte, 65536), make([]byte, 256)
	for {
		size, n, _, client, err := u.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		server, err := original(oob[:n])
		if err != nil {
			r.t.Error(err)
			return
		}
		r.asked.Add(1)
		question := append([]byte(nil), buf[:size]...)
		r.wg.Go(func() {
			c, err := r.ask("udp", client.Addr(), server)
			if err != nil {
				r.t.Error(err)
				return
			}
			defer c.Close()
			answer := make([]byte, 65536)
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Write(question); err != nil {
				return
			}
			size, err := c.Read(answer)
			if err != nil {
				return
			}
			if err := r.sendRaw(server, client, answer[:size]); err != nil {
				r.t.Error(err)
			}
		})
	}
}

// sendRaw sends a datagram as if it were the server's, without taking the server's
// port, which is in use if the server is on this host.
func (r *relay) sendRaw(server, client netip.AddrPort, payload []byte) error {
	packet := frame{src: server.Addr(), dst: client.Addr(), proto: udp, srcPort: server.Port(), dstPort: client.Port(), payload: payload}.packet()
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: client.Addr().As16()})
	if client.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: client.Addr().As4()}
	}
	return r.n.ns.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, abi.MarkFromProxy), unix.Sendto(fd, packet, 0, to))
	})
}

// original is the address that a datagram was sent to.
func original(oob []byte) (netip.AddrPort, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, m := range messages {
		to, err := unix.ParseOrigDstAddr(&m)
		if err != nil {
			continue
		}
		switch to := to.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port)), nil
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(to.Addr), uint16(to.Port)), nil
		}
	}
	return netip.AddrPort{}, errors.New("no original address")
}

func (r *relay) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		r.asked.Add(1)
		r.wg.Go(func() {
			defer c.Close()
			client := c.RemoteAddr().(*net.TCPAddr).AddrPort()
			server := c.LocalAddr().(*net.TCPAddr).AddrPort()
			up, err := r.ask("tcp", client.Addr().Unmap(), netip.AddrPortFrom(server.Addr().Unmap(), server.Port()))
			if err != nil {
				return // the client sees it
			}
			defer up.Close()
			go func() { _, _ = io.Copy(up, c); _ = up.(*net.TCPConn).CloseWrite() }()
			_, _ = io.Copy(c, up)
		})
	}
}

// route makes marked packets the host's own, as dataplane.SetupNode does.
func (n *node) route(t *testing.T) {
	t.Helper()
	do(t, n.ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		errs := []error{
			netlink.LinkSetUp(lo),
			os.WriteFile("/proc/sys/net/ipv4/conf/lo/accept_local", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv4/ip_early_demux", []byte("0"), 0),
		}
		for family, all := range map[int]netip.Prefix{unix.AF_INET: netip.MustParsePrefix("0.0.0.0/0"), unix.AF_INET6: netip.MustParsePrefix("::/0")} {
			mask := uint32(abi.MarkMask)
			rule := netlink.NewRule()
			rule.Family, rule.Mark, rule.Mask, rule.Table = family, abi.MarkToProxy, &mask, abi.ProxyTable
			errs = append(errs, netlink.RuleAdd(rule), netlink.RouteAdd(&netlink.Route{
				LinkIndex: lo.Attrs().Index, Table: abi.ProxyTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
				Dst: &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, all.Addr().BitLen())},
			}))
		}
		return errors.Join(errs...)
	})
}

// echoAt starts echo servers for TCP and UDP.
func echoAt(t *testing.T, ns *testns.NS, at netip.AddrPort) {
	t.Helper()
	tcp, err := ns.EchoTCP(at)
	if err != nil {
		t.Fatal(err)
	}
	udp, err := ns.EchoUDP(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(tcp.Close(), udp.Close()) })
}

// outside is a namespace behind an uplink of the host, which has the addresses
// outside4 and outside6.
func (n *node) outside(t *testing.T) *testns.NS {
	t.Helper()
	out := newNS(t, "outside")
	var uplink netlink.Link
	do(t, n.ns, func() error {
		f, err := os.Open(out.Path())
		if err != nil {
			return err
		}
		defer f.Close()
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "out", PeerNamespace: netlink.NsFd(int(f.Fd()))}); err != nil {
			return err
		}
		if uplink, err = netlink.LinkByName("uplink"); err != nil {
			return err
		}
		errs := []error{testns.SkipDAD("uplink"), netlink.LinkSetUp(uplink)}
		for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/rp_filter", "ipv4/conf/uplink/rp_filter"} {
			errs = append(errs, os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0))
		}
		for _, a := range []netip.Addr{outside4, outside6} {
			errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Attrs().Index, Dst: whole(a), Scope: netlink.SCOPE_LINK}))
		}
		return errors.Join(errs...)
	})
	do(t, out, func() error {
		l, err := netlink.LinkByName("out")
		if err != nil {
			return err
		}
		errs := []error{up("lo"), testns.SkipDAD("out"), netlink.LinkSetUp(l), addAddr(l, outside4), addAddr(l, outside6)}
		for _, a := range []netip.Addr{n.a.v4, n.a.v6} {
			errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: whole(a), Scope: netlink.SCOPE_LINK}))
			// Nobody there answers for a container's address.
			errs = append(errs, netlink.NeighAdd(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, IP: a.AsSlice(), HardwareAddr: uplink.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
			}))
		}
		return errors.Join(errs...)
	})
	var d abi.Device
	copy(d.MAC[:], uplink.Attrs().HardwareAddr)
	n.put(n.o.Devices, uint32(uplink.Attrs().Index), d)
	return out
}

// asks gives a an egress policy by which it may ask port 53 of pods, the host and
// the world by the proxy, and nothing else.
func (w *world) asks() {
	w.t.Helper()
	var rows []row
	for _, class := range []uint64{abi.ClassPod, uint64(abi.IdentityHost), uint64(abi.IdentityWorldIPv4), uint64(abi.IdentityWorldIPv6)} {
		for _, proto := range []uint8{6, 17} {
			rows = append(rows, allow(class, proto, 53))
		}
	}
	w.enforce(&w.a, abi.Egress, rows...)
	var key abi.PolicyKey
	var value abi.PolicyValue
	it := w.o.Policy.Iterate()
	var asking []abi.PolicyKey
	for it.Next(&key, &value) {
		if key.Table == w.a.value.Egress.Table {
			asking = append(asking, key)
		}
	}
	for i, key := range asking {
		w.put(w.o.Policy, key, abi.PolicyValue{Row: uint64(100 + i), Verdict: abi.VerdictAllow, Flags: abi.PolicyDNS})
	}
	w.a.value.Egress.Flags |= abi.PolicyAsks
	w.put(w.o.Endpoints, abi.EndpointKey{Ifindex: w.a.ifindex}, w.a.value)
}

// TestWireProxy sends questions of a container to a server in another container, on
// the host and outside, over UDP and TCP and both families: all by the proxy, and
// from the container's own address.
func TestWireProxy(t *testing.T) {
	n := newNode(t)
	n.route(t)
	out := n.outside(t)
	n.asks()
	// Only pods may ask b, so only if the proxy comes with a's address may it.
	n.enforce(&n.b, abi.Ingress, allow(abi.ClassPod, 6, 53), allow(abi.ClassPod, 17, 53))
	r := startRelay(t, n)
	for _, server := range []struct {
		where string
		ns    *testns.NS
		addr  netip.Addr
	}{
		{"container", n.pods[1], n.b.v4}, {"container", n.pods[1], n.b.v6},
		{"host", n.ns, host4}, {"host", n.ns, host6},
		{"outside", out, outside4}, {"outside", out, outside6},
	} {
		at := netip.AddrPortFrom(server.addr, 53)
		echoAt(t, server.ns, at)
		for network, exchange := range map[string]func(netip.AddrPort, time.Duration) error{
			"udp": n.pods[0].ExchangeUDP, "tcp": n.pods[0].ExchangeTCP,
		} {
			t.Run(fmt.Sprintf("%s %s %s", server.where, network, server.addr), func(t *testing.T) {
				for range 3 {
					before := r.asked.Load()
					if err := exchange(at, patience); err != nil {
						t.Fatalf("%v; %v", err, n.counters())
					}
					if got := r.asked.Load() - before; got != 1 {
						t.Errorf("the proxy saw %d questions, want 1", got)
					}
				}
			})
		}
	}
	// Other ports and the other direction are none of the proxy's affair.
	before := r.asked.Load()
	echoAt(t, n.pods[1], netip.AddrPortFrom(n.b.v4, 54))
	if err := n.pods[0].ExchangeUDP(netip.AddrPortFrom(n.b.v4, 54), silence); err == nil {
		t.Error("port 54 is open")
	}
	if got := r.asked.Load() - before; got != 0 {
		t.Errorf("the proxy saw %d packets for another port", got)
	}
}

// TestWireProxyBusyPort: that the proxy asks from the very port that the container
// uses itself, which a restart of either may bring about, confuses nobody.
func TestWireProxyBusyPort(t *testing.T) {
	n := newNode(t)
	n.route(t)
	n.asks()
	r := startRelay(t, n)
	at := netip.AddrPortFrom(n.b.v4, 53)
	echoAt(t, n.pods[1], at)
	c, err := n.pods[0].DialUDP(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := testns.RoundTrip(c, "one", patience); err != nil {
		t.Fatal(err)
	}
	// The proxy's own exchange, from the container's port.
	var up net.Conn
	do(t, n.ns, func() (err error) {
		port := c.LocalAddr().(*net.UDPAddr).Port
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: n.a.v4.AsSlice(), Port: port}, Control: transparent}
		up, err = d.DialContext(t.Context(), "udp4", at.String())
		return err
	})
	defer up.Close()
	if err := testns.RoundTrip(up, "upstream", patience); err != nil {
		t.Fatalf("%v; %v", err, n.counters())
	}
	before := r.asked.Load()
	if err := testns.RoundTrip(c, "two", patience); err != nil {
		t.Fatalf("%v; %v", err, n.counters())
	}
	if r.asked.Load() != before+1 {
		t.Error("a question went around the proxy")
	}
}

// TestWireProxyAway: without a proxy, or with somebody else on its port, nothing
// passes, neither around it nor to a server on the host.
func TestWireProxyAway(t *testing.T) {
	n := newNode(t)
	n.route(t)
	n.asks()
	for _, a := range []netip.Addr{host4, n.b.v4} {
		ns := n.ns
		if a == n.b.v4 {
			ns = n.pods[1]
		}
		echoAt(t, ns, netip.AddrPortFrom(a, 53))
	}
	refused := func(when string) {
		t.Helper()
		for _, a := range []netip.Addr{host4, n.b.v4} {
			before := n.counters()[counterName(abi.ProxyMissing, abi.Egress)]
			at := netip.AddrPortFrom(a, 53)
			if n.pods[0].ExchangeUDP(at, silence) == nil || n.pods[0].ExchangeTCP(at, silence) == nil {
				t.Errorf("%s: %s answered", when, a)
			}
			if n.counters()[counterName(abi.ProxyMissing, abi.Egress)] < before+2 {
				t.Errorf("%s: counters %v", when, n.counters())
			}
		}
	}
	refused("never started")
	r := startRelay(t, n)
	if err := n.pods[0].ExchangeUDP(netip.AddrPortFrom(n.b.v4, 53), patience); err != nil {
		t.Fatal(err)
	}
	r.stop()
	refused("stopped")
	var at abi.Proxy
	if err := n.o.Proxy.Lookup(uint32(0), &at); err != nil {
		t.Fatal(err)
	}
	echoAt(t, n.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(at.PortBE[0])<<8|uint16(at.PortBE[1])))
	refused("another on its port")
}

// TestAroundProxy: a server that may be asked by the proxy only gets no packet to
// the container, nor the host's stack one of the container's to the server.
func TestAroundProxy(t *testing.T) {
	w := newWorld(t, smallSizes())
	w.asks()
	families(t, func(t *testing.T, v family) {
		w.from(w.b, v.out(w.b, v.of(w.a), udp, 53, 4000, 0)).refused(t, abi.ProxyBypassed, abi.Egress)
		w.to(w.b, v.in(v.of(w.a), w.b, udp, 4000, 53, 0)).refused(t, abi.ProxyBypassed, abi.Ingress)
		w.from(w.b, v.out(w.b, v.of(w.a), udp, 54, 4000, 0)).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.forget()
	})
}
