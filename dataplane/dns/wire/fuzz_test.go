package wire

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzQuery holds Parse to miekg/dns: whatever is forwarded is a query that
// another implementation reads in the same way, and what that one finds to be a
// plain query is forwarded.
func FuzzQuery(f *testing.F) {
	f.Add(pack(f, query("www.Example.com.", dns.TypeA)))
	f.Add(pack(f, withEDNS(query("a\\.b.io.", dns.TypeAAAA), 4096)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := bytes.Clone(msg)
		var q Query
		err := q.Parse(msg)
		if !bytes.Equal(msg, before) {
			t.Fatal("Parse wrote to the message")
		}
		if errors.Is(err, ErrIgnore) {
			return
		}
		answer := q.AppendError(nil, msg, Refused, ExtendedBlocked, "text")
		var a dns.Msg
		if uerr := a.Unpack(answer); uerr != nil || !a.Response || a.Id != q.ID {
			t.Fatalf("our answer %x: %v", answer, uerr)
		}
		if err != nil {
			return
		}
		var m dns.Msg
		if err := m.Unpack(msg); err != nil && !headerOnly(&m) {
			return // miekg/dns reads the data of records; a forwarder does not
		}
		if len(m.Question) != 1 {
			t.Fatalf("forwarded, but miekg/dns sees %d questions", len(m.Question))
		}
		if got := strings.ToLower(m.Question[0].Name); got != string(q.Name) || m.Question[0].Qtype != q.Type || m.Question[0].Qclass != q.Class {
			t.Fatalf("read %q %d %d, miekg/dns %v", q.Name, q.Type, q.Class, m.Question[0])
		}
		if a.Question[0] != m.Question[0] {
			t.Fatalf("our answer is to %v, not %v", a.Question[0], m.Question[0])
		}
	})
}

// headerOnly tells whether Unpack came as far as the question.
func headerOnly(m *dns.Msg) bool { return len(m.Question) == 1 }

// FuzzAnswer holds the addresses of an answer to what a plain walk over miekg/dns's
// records gives.
func FuzzAnswer(f *testing.F) {
	for _, texts := range [][]string{
		{"www.x.io. 30 A 192.0.2.1"},
		{"www.x.io. 30 CNAME y.io.", "y.io. 20 A 192.0.2.1", "y.io. 10 A 192.0.2.2", "z.io. 1 A 192.0.2.3"},
		{"www.x.io. 30 CNAME y.io.", "y.io. 20 CNAME www.x.io."},
	} {
		m := new(dns.Msg).SetReply(query("www.x.io.", dns.TypeA))
		m.Answer = records(f, texts...)
		m.Compress = true
		f.Add(pack(f, m))
	}
	asked := pack(f, query("www.x.io.", dns.TypeA))
	var q Query
	if err := q.Parse(asked); err != nil {
		f.Fatal(err)
	}
	question := bytes.Clone(q.Question(asked))
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := bytes.Clone(msg)
		var a Answer
		err := a.Parse(msg, question)
		if !bytes.Equal(msg, before) {
			t.Fatal("Parse wrote to the message")
		}
		short := Fit(bytes.Clone(msg), MinUDP, true)
		if len(short) > MinUDP {
			t.Fatalf("Fit left %d bytes", len(short))
		}
		if err != nil {
			return
		}
		var m dns.Msg
		if m.Unpack(msg) != nil {
			return
		}
		want := plainAddresses(&m)
		got := map[netip.Addr]bool{}
		for _, x := range a.Addresses {
			got[x.Addr] = true
			if !want[x.Addr] {
				t.Fatalf("recorded %s, which is not in the chain of\n%v", x.Addr, &m)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("recorded %v of %v:\n%v", got, want, &m)
		}
	})
}

// plainAddresses follows the first CNAME of each name from the question on.
func plainAddresses(m *dns.Msg) map[netip.Addr]bool {
	found := map[netip.Addr]bool{}
	if m.Rcode != dns.RcodeSuccess || len(m.Question) != 1 {
		return found
	}
	name := strings.ToLower(m.Question[0].Name)
	for range maxChain {
		next := ""
		for _, rr := range m.Answer {
			if strings.ToLower(rr.Header().Name) != name || rr.Header().Class != dns.ClassINET {
				continue
			}
			switch rr := rr.(type) {
			case *dns.A:
				if addr, ok := netip.AddrFromSlice(rr.A.To4()); ok {
					found[addr] = true
				}
			case *dns.CNAME:
				if next == "" {
					next = strings.ToLower(rr.Target)
				}
			}
		}
		if next == "" {
			return found
		}
		name = next
	}
	return found
}
