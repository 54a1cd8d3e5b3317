package relay

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/varve-net/varve/dataplane/dns/wire"
)

// kernel is a Learner that opens addresses when the test says so, and a policy of
// *.domain.com. Names that begin with "fail" cannot be made durable.
type kernel struct {
	mu      sync.Mutex
	open    map[netip.Addr]bool
	lessons chan lesson
}

// lesson waits for its addresses to be opened.
type lesson struct {
	name      string
	addresses []netip.Addr
	waiter    Waiter
}

func newKernel() *kernel {
	return &kernel{open: map[netip.Addr]bool{}, lessons: make(chan lesson, 1024)}
}

func (k *kernel) Known(o *Observation) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range o.Addresses {
		if !k.open[o.Addresses[i].Addr] {
			return false
		}
	}
	return true
}

func (k *kernel) Learn(o *Observation, w Waiter) {
	l := lesson{name: string(o.Name), waiter: w}
	for i := range o.Addresses {
		l.addresses = append(l.addresses, o.Addresses[i].Addr)
	}
	k.lessons <- l
}

// settle opens what a lesson says, or fails to.
func (k *kernel) settle(r *Relay, l lesson) {
	if strings.HasPrefix(l.name, "fail") {
		l.waiter.Learned(errors.New("the disk is full"))
		return
	}
	k.mu.Lock()
	for _, a := range l.addresses {
		k.open[a] = true
	}
	k.mu.Unlock()
	l.waiter.Learned(nil)
	r.Flush()
}

// settleAll settles what waits.
func (k *kernel) settleAll(r *Relay) {
	for {
		select {
		case l := <-k.lessons:
			k.settle(r, l)
		default:
			return
		}
	}
}

// forget closes everything.
func (k *kernel) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.open)
}

// holds fails the test if an answer names an address of the name asked that is not open:
// by the relay's own reading, and by miekg/dns's of the records under that name.
func (k *kernel) holds(t testing.TB, msg []byte) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	var m dns.Msg
	if m.Unpack(msg) != nil || m.Rcode != dns.RcodeSuccess || len(m.Question) != 1 || m.Question[0].Qclass != dns.ClassINET {
		return
	}
	check := func(a netip.Addr) {
		if !k.open[a] {
			t.Fatalf("%s was released and is not open:\n%v", a, &m)
		}
	}
	asked := m.Question[0]
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Rrtype != asked.Qtype || h.Class != dns.ClassINET || !strings.EqualFold(h.Name, asked.Name) {
			continue
		}
		var raw []byte
		switch rr := rr.(type) {
		case *dns.A:
			raw = rr.A.To4()
		case *dns.AAAA:
			raw = rr.AAAA
		}
		if a, ok := netip.AddrFromSlice(raw); ok {
			check(a)
		}
	}
	question, err := (&dns.Msg{Question: m.Question}).Pack()
	if err != nil {
		return
	}
	var a wire.Answer
	if a.Parse(msg, question[12:]) == nil {
		for i := range a.Addresses {
			check(a.Addresses[i].Addr)
		}
	}
}
