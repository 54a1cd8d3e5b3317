package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/miekg/dns"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testns"
)

// Names that the demo's DNS server knows: two hosts outside.
var knownNames = map[string]netip.Addr{"www.domain.com.": supplier[v4], "new.domain.com.": stranger[v4], "www.example.org.": stranger[v4]}

const (
	dnsServer = "kube-dns"
	dnsClient = "myservice"
	// dnsLimit bounds a lookup; an answer takes milliseconds.
	dnsLimit = 20 * time.Second
	// dropLimit is how long a packet that must not arrive is waited for.
	dropLimit = time.Second
)

// actNames shows the policy of Cilium 1.4's announcement, as it stands there: who may
// ask which names, and who may reach what was answered, also while no agent runs.
func (s *stage) actNames(ctx context.Context) error {
	s.out.section("Names: who may ask, and who may reach the answer")
	if err := s.addNames(ctx); err != nil {
		return err
	}
	if err := s.apply(ctx, "egress-domain-wildcard"); err != nil {
		return err
	}
	s.dropped(supplier[v4], "%s never asked for it", dnsClient)
	if err := s.lookUp(ctx, "www.domain.com.", dns.RcodeSuccess); err != nil {
		return err
	}
	err := s.reaches(supplier[v4])
	s.claim(err == nil, "%s is reached by the first packet after the answer%s", supplier[v4], becauseOf(err))
	if err := s.lookUp(ctx, "www.example.org.", dns.RcodeRefused); err != nil {
		return err
	}
	s.dropped(stranger[v4], "it was never looked up")

	if err := s.agent.kill(); err != nil {
		return err
	}
	s.claim(true, "agent killed; the DNS proxy is a process of its own")
	if err := s.lookUp(ctx, "new.domain.com.", dns.RcodeSuccess); err != nil {
		return err
	}
	err = s.reaches(stranger[v4])
	s.claim(err == nil, "without an agent: %s, never seen before, is reached%s", stranger[v4], becauseOf(err))
	return s.namesAfterRestart(ctx)
}

// namesAfterRestart starts the agent again and looks for the facts in its log.
func (s *stage) namesAfterRestart(ctx context.Context) error {
	if _, err := s.startAgent(ctx); err != nil {
		return err
	}
	facts, err := s.factsOfNames(ctx, 2)
	if err != nil {
		return err
	}
	s.claim(facts == 2, "agent back: %d names were answered, %d facts of DNS are in the log, each once", 2, facts)
	verified, err := s.status(ctx, true)
	if err != nil {
		return err
	}
	s.claim(verified.BootstrapRowsWritten == 0 && len(verified.Differences) == 0, "rows it had to write into the kernel: %d%s", verified.BootstrapRowsWritten, differences(verified))
	for _, a := range []netip.Addr{supplier[v4], stranger[v4]} {
		err := s.reaches(a)
		s.claim(err == nil, "%s is still reached%s", a, becauseOf(err))
	}
	return nil
}

// addNames adds a DNS server and a client, both in containers.
func (s *stage) addNames(ctx context.Context) error {
	s.later("DNS proxy", func() error { return endProxies(s.dir) })
	if _, err := s.client.Namespaces.Apply(ctx, connect.NewRequest(&varvev1.ApplyNamespaceRequest{Name: "kube-system"})); err != nil {
		return fmt.Errorf("namespace apply: %w", err)
	}
	for _, w := range []struct{ namespace, name, key, value string }{
		{"kube-system", dnsServer, "k8s-app", "kube-dns"}, {"default", dnsClient, "app", "myService"},
	} {
		ns, err := s.space(w.name)
		if err != nil {
			return err
		}
		resp, err := s.client.Endpoints.Add(ctx, connect.NewRequest(&varvev1.AddEndpointRequest{
			Namespace: w.namespace, Name: w.name, Labels: map[string]string{w.key: w.value}, Netns: ns.Path(),
		}))
		if err != nil {
			return fmt.Errorf("endpoint add %s: %w", w.name, err)
		}
		bare, _, _ := strings.Cut(resp.Msg.Endpoint.GetIpv4(), "/")
		addr, err := netip.ParseAddr(bare)
		if err != nil {
			return fmt.Errorf("endpoint %s: %w", w.name, err)
		}
		s.actors[w.name] = &actor{name: w.name, ref: w.namespace + "/" + w.name, space: ns, addr: [2]netip.Addr{v4: addr}}
	}
	return s.serveNames(s.actors[dnsServer].space)
}

// serveNames starts a DNS server that knows knownNames.
func (s *stage) serveNames(ns *testns.NS) error {
	var pc net.PacketConn
	err := ns.Do(func() (err error) {
		pc, err = net.ListenPacket("udp4", ":53")
		return err
	})
	if err != nil {
		return fmt.Errorf("DNS server: %w", err)
	}
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		if a, ok := knownNames[strings.ToLower(m.Question[0].Name)]; ok {
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: a.AsSlice()}}
		}
		_ = w.WriteMsg(r)
	})}
	done := s.spawn(func() { _ = server.ActivateAndServe() })
	s.later("DNS server", func() error {
		err := server.Shutdown()
		<-done
		return err
	})
	return nil
}

// lookUp asks for a name from the client's container, and claims the answer's code.
func (s *stage) lookUp(ctx context.Context, name string, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*dnsLimit)
	defer cancel()
	client := s.actors[dnsClient].space
	c, err := client.DialUDP(ctx, netip.AddrPortFrom(s.actors[dnsServer].addr[v4], 53))
	if err != nil {
		return fmt.Errorf("look-up of %s: %w", name, err)
	}
	defer c.Close()
	conn := &dns.Conn{Conn: c}
	_ = c.SetDeadline(time.Now().Add(dnsLimit))
	began := time.Now()
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
		return fmt.Errorf("look-up of %s: %w", name, err)
	}
	m, err := conn.ReadMsg()
	if err != nil {
		s.claim(false, "look-up of %s: %v", name, err)
		return nil
	}
	answer := dns.RcodeToString[m.Rcode]
	if len(m.Answer) > 0 {
		if a, ok := m.Answer[0].(*dns.A); ok {
			answer = a.A.String()
		}
	}
	s.claim(m.Rcode == want, "look-up of %s: %s, in %s", name, answer, ms(time.Since(began)))
	return nil
}

// reaches connects from the client's container to port 443 of an address.
func (s *stage) reaches(a netip.Addr) error {
	return s.actors[dnsClient].space.ExchangeTCP(netip.AddrPortFrom(a, 443), dnsLimit)
}

// dropped claims that such a connection is dropped in silence.
func (s *stage) dropped(a netip.Addr, format string, args ...any) {
	err := s.actors[dnsClient].space.ExchangeTCP(netip.AddrPortFrom(a, 443), dropLimit)
	text := fmt.Sprintf(format, args...)
	if err == nil || !timedOut(err) {
		text += fmt.Sprintf("; but: %v", err)
	}
	s.claim(err != nil && timedOut(err), "%s is dropped: %s", a, text)
}

// factsOfNames counts the observations in the log, once there are as many as wanted.
func (s *stage) factsOfNames(ctx context.Context, want int) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, err = s.countFacts(ctx); err != nil || n >= want {
			return n, err
		}
		select {
		case <-ctx.Done():
			return n, nil
		case <-tick.C:
		}
	}
}

func (s *stage) countFacts(ctx context.Context) (n int, err error) {
	stream, err := s.client.Log.Read(ctx, connect.NewRequest(&varvev1.ReadRequest{}))
	if err != nil {
		return 0, fmt.Errorf("log read: %w", err)
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	for stream.Receive() {
		if stream.Msg().GetKind() == "dns-observed" {
			n++
		}
	}
	return n, stream.Err()
}

// endProxies ends the DNS proxies of this run and waits until they are gone: one may
// have outlived its agent.
func endProxies(dir string) error {
	deadline := time.Now().Add(stopLimit)
	for time.Now().Before(deadline) {
		left := 0
		entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, e := range entries {
			cmdline, err := os.ReadFile(e)
			if err != nil || !strings.Contains(string(cmdline), "dns-proxy\x00") || !strings.Contains(string(cmdline), dir+"/") {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(e)))
			if err != nil {
				continue
			}
			if p, err := os.FindProcess(pid); err == nil && p.Signal(os.Interrupt) == nil {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		<-time.After(20 * time.Millisecond)
	}
	return errors.New("still there")
}
