package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

var statusRE = regexp.MustCompile(`status: (\w+)`)

// dig asks a server from a pod and returns the answer's code, its addresses in order,
// and all that dig printed.
func (s *stage) dig(p *pod, server netip.Addr, name, kind string, args ...string) (code string, addresses []netip.Addr, out string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args = append([]string{"-r", "+tries=1", "+time=30", "@" + server.String(), name, kind}, args...)
	out, err := p.Output(ctx, "dig", args...)
	if err != nil {
		s.t.Fatal(err)
	}
	m := statusRE.FindStringSubmatch(out)
	if m == nil {
		s.t.Fatalf("dig %v: %s", args, out)
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 5 && !strings.HasPrefix(line, ";") && (f[3] == "A" || f[3] == "AAAA") {
			addresses = append(addresses, netip.MustParseAddr(f[4]))
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return m[1], addresses, out
}

// resolves wants a name's addresses of both families from a server, with dig.
func (s *stage) resolves(p *pod, server netip.Addr, name string, want addrs) {
	s.t.Helper()
	for i, kind := range []string{"A", "AAAA"} {
		code, got, out := s.dig(p, server, name, kind)
		if code != "NOERROR" || !slices.Contains(got, want[i]) {
			s.t.Fatalf("%s of %s from %s: want %s:\n%s", kind, name, server, want[i], out)
		}
	}
}

// opens asks for short.domain.com and connects to an address of it. On a machine so busy
// that the address may have closed again meanwhile it asks once more.
func (s *stage) opens(p *pod, server, to netip.Addr) net.Conn {
	s.t.Helper()
	for {
		asked := time.Now()
		s.resolves(p, server, "short.domain.com", site(301))
		late := time.Since(asked) > shortTTL*time.Second/2
		ctx, cancel := context.WithTimeout(s.t.Context(), shortTTL*time.Second)
		conn, err := p.DialTCP(ctx, addrPort(to))
		cancel()
		if err == nil {
			return conn
		}
		if !late {
			s.t.Fatalf("%s, which short.domain.com has just opened: %v", to, err)
		}
	}
}

// rejected wants an answer's code, without addresses.
func (s *stage) rejected(p *pod, server netip.Addr, name, code string) {
	s.t.Helper()
	if got, addresses, out := s.dig(p, server, name, "A"); got != code || len(addresses) > 0 {
		s.t.Fatalf("%s: want %s:\n%s", name, code, out)
	}
}

// command runs a program in a pod that finds a server in its resolv.conf.
func (s *stage) command(p *pod, server netip.Addr, name string, args ...string) (string, error) {
	s.t.Helper()
	return s.resolving(p, server, "timeout:30 attempts:1", name, args...)
}

// resolving is command with options of resolv.conf(5).
func (s *stage) resolving(p *pod, server netip.Addr, options, name string, args ...string) (string, error) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, "nameserver %s\noptions %s\n", server, options), 0o644); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return p.Output(ctx, "unshare", append([]string{"--mount", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`, "sh", file, name}, args...)...)
}

// resolver is Go's own, in a pod.
func resolver(p *pod, server netip.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		to := netip.AddrPortFrom(server, 53)
		if strings.HasPrefix(network, "tcp") {
			return p.DialTCP(ctx, to)
		}
		return p.DialUDP(ctx, to)
	}}
}

// goLookUp asks with Go's resolver.
func (s *stage) goLookUp(p *pod, server netip.Addr, name string) []netip.Addr {
	s.t.Helper()
	var got []netip.Addr
	s.eventually("Go's resolver: "+name, func(ctx context.Context) (err error) {
		got, err = resolver(p, server).LookupNetIP(ctx, "ip", name)
		return err
	})
	for i := range got {
		got[i] = got[i].Unmap()
	}
	return got
}
