package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func query(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.Id = 0x1234
	return m
}

func withEDNS(m *dns.Msg, size uint16) *dns.Msg { return m.SetEdns0(size, true) }

func records(t testing.TB, texts ...string) (rrs []dns.RR) {
	t.Helper()
	for _, text := range texts {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	return rrs
}

func TestQuery(t *testing.T) {
	long := strings.Repeat("a", 63)
	longest := strings.Join([]string{long, long, long, long[:61]}, ".") + "."
	for _, c := range []struct {
		msg  *dns.Msg
		name string
		size int
	}{
		{query("www.Example.COM.", dns.TypeA), "www.example.com.", 512},
		{withEDNS(query("x.io.", dns.TypeAAAA), 1232), "x.io.", 1232},
		{withEDNS(query("x.io.", dns.TypeHTTPS), 100), "x.io.", 512},
		{query(".", dns.TypeNS), ".", 512},
		{query(`a\.b\ c.\000\200x.io.`, dns.TypeTXT), `a\.b\ c.\000\200x.io.`, 512},
		{query(longest, dns.TypeA), longest, 512},
	} {
		var q Query
		msg := pack(t, c.msg)
		if err := q.Parse(msg); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if string(q.Name) != c.name || q.UDPSize != c.size || q.ID != 0x1234 || q.Type != c.msg.Question[0].Qtype || q.Class != dns.ClassINET {
			t.Errorf("%s: read %s %+v", c.name, q.Name, q)
		}
	}
}

func TestNoQuery(t *testing.T) {
	good := pack(t, withEDNS(query("www.x.io.", dns.TypeA), 1232))
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	set := func(at int, v byte) []byte { return change(func(b []byte) []byte { b[at] = v; return b }) }
	twice := query("x.io.", dns.TypeA)
	twice.Extra = append(twice.Extra, &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}, &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}})
	owned := query("x.io.", dns.TypeA)
	owned.Extra = append(owned.Extra, &dns.OPT{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeOPT}})
	update := query("x.io.", dns.TypeA)
	update.Opcode = dns.OpcodeUpdate
	for what, c := range map[string]struct {
		msg  []byte
		want error
	}{
		"empty":               {nil, ErrIgnore},
		"cut header":          {good[:11], ErrIgnore},
		"a response":          {set(2, 0x81), ErrIgnore},
		"an update":           {pack(t, update), ErrUnsupported},
		"a transfer":          {pack(t, query("x.io.", dns.TypeAXFR)), ErrUnsupported},
		"no question":         {set(5, 0), ErrFormat},
		"two questions":       {set(5, 2), ErrFormat},
		"an answer":           {set(7, 1), ErrFormat},
		"a record too much":   {set(11, 2), ErrFormat},
		"a record too little": {set(11, 0), ErrFormat},
		"trailing bytes":      {append(bytes.Clone(good), 0), ErrFormat},
		"cut":                 {good[:len(good)-1], ErrFormat},
		"cut name":            {good[:16], ErrFormat},
		"a pointer to itself": {change(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), ErrFormat},
		"a pointer forward":   {change(func(b []byte) []byte { b[12], b[13] = 0xc0, 20; return b }), ErrFormat},
		"a pointer to header": {change(func(b []byte) []byte { b[12], b[13] = 0xc0, 2; return b }), ErrFormat},
		"a reserved length":   {set(12, 0x43), ErrFormat},
		"two OPTs":            {pack(t, twice), ErrFormat},
		"an OPT with a name":  {pack(t, owned), ErrFormat},
		"OPT asked for":       {pack(t, query("x.io.", dns.TypeOPT)), ErrFormat},
	} {
		var q Query
		if err := q.Parse(c.msg); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		} else if !errors.Is(err, ErrIgnore) {
			var m dns.Msg
			if err := m.Unpack(q.AppendError(nil, c.msg, FormErr, NoExtended, "")); err != nil || m.Rcode != dns.RcodeFormatError || m.Id != 0x1234 {
				t.Errorf("%s: answered with %v %v", what, &m, err)
			}
		}
	}
}

func TestAppendError(t *testing.T) {
	for _, edns := range []bool{false, true} {
		m := query("wWw.x.io.", dns.TypeA)
		m.CheckingDisabled = true
		if edns {
			m.SetEdns0(4096, true)
		}
		msg := pack(t, m)
		var q Query
		if err := q.Parse(msg); err != nil {
			t.Fatal(err)
		}
		var r dns.Msg
		if err := r.Unpack(q.AppendError(nil, msg, Refused, ExtendedBlocked, "no rule allows it")); err != nil {
			t.Fatal(err)
		}
		if !r.Response || r.Id != m.Id || r.Rcode != dns.RcodeRefused || !r.RecursionDesired || !r.RecursionAvailable || !r.CheckingDisabled || r.Question[0] != m.Question[0] {
			t.Errorf("answer: %v", &r)
		}
		opt := r.IsEdns0()
		if (opt != nil) != edns {
			t.Fatalf("OPT %v for EDNS %t", opt, edns)
		}
		if edns {
			if e, ok := opt.Option[0].(*dns.EDNS0_EDE); !ok || e.InfoCode != dns.ExtendedErrorCodeProhibited || e.ExtraText != "no rule allows it" || !opt.Do() {
				t.Errorf("OPT %v", opt)
			}
		}
	}
}

func TestAnswer(t *testing.T) {
	chain := []string{"www.x.io. 300 CNAME a.cdn.net.", "a.cdn.net. 60 CNAME b.cdn.net.", "b.cdn.net. 120 A 192.0.2.1", "b.cdn.net. 20 A 192.0.2.2"}
	reversed := slices.Clone(chain)
	slices.Reverse(reversed)
	for _, c := range []struct {
		what, name string
		qtype      uint16
		answer     []string
		extra      []string
		want       string
	}{
		{"direct", "www.x.io.", dns.TypeA, []string{"www.x.io. 30 A 192.0.2.1"}, nil, "192.0.2.1/30"},
		{"other case", "wwW.x.io.", dns.TypeA, []string{"www.X.io. 30 A 192.0.2.1"}, nil, "192.0.2.1/30"},
		{"IPv6", "www.x.io.", dns.TypeAAAA, []string{"www.x.io. 30 AAAA 2001:db8::1"}, nil, "2001:db8::1/30"},
		{"chain", "www.x.io.", dns.TypeA, chain, nil, "192.0.2.1/60 192.0.2.2/20 a.cdn.net.>b.cdn.net."},
		{"chain in another order", "www.x.io.", dns.TypeA, reversed, nil, "192.0.2.2/20 192.0.2.1/60 a.cdn.net.>b.cdn.net."},
		{"any", "www.x.io.", dns.TypeANY, []string{"www.x.io. 1 A 192.0.2.1", "www.x.io. 2 AAAA 2001:db8::1", "www.x.io. 3 TXT x"}, nil, "192.0.2.1/1 2001:db8::1/2"},
		{"another name's", "www.x.io.", dns.TypeA, []string{"www.x.io. 30 A 192.0.2.1", "evil.io. 30 A 192.0.2.66"}, []string{"www.x.io. 30 A 192.0.2.67"}, "192.0.2.1/30"},
		{"a chain that leads nowhere", "www.x.io.", dns.TypeA, []string{"www.x.io. 30 CNAME y.io.", "z.io. 30 A 192.0.2.66"}, nil, "y.io."},
		{"a loop", "www.x.io.", dns.TypeA, []string{"www.x.io. 30 CNAME y.io.", "y.io. 30 CNAME www.x.io."}, nil, "y.io."},
		{"another type", "www.x.io.", dns.TypeMX, []string{"www.x.io. 30 MX 10 mail.x.io.", "www.x.io. 30 A 192.0.2.66"}, []string{"mail.x.io. 30 A 192.0.2.67"}, ""},
		{"the other family", "www.x.io.", dns.TypeAAAA, []string{"www.x.io. 30 A 192.0.2.66"}, nil, ""},
		{"another class", "www.x.io.", dns.TypeA, []string{"www.x.io. 30 CH A 192.0.2.66"}, nil, ""},
	} {
		for _, compress := range []bool{false, true} {
			q := query(c.name, c.qtype)
			m := new(dns.Msg).SetReply(q)
			m.Compress = compress
			m.Answer, m.Extra = records(t, c.answer...), records(t, c.extra...)
			got, err := addresses(pack(t, q), pack(t, m))
			if err != nil || got != c.want {
				t.Errorf("%s: %q %v, want %q", c.what, got, err, c.want)
			}
		}
	}
}

// addresses are those that a reply gives, as "ADDRESS/TTL ...".
func addresses(query, reply []byte) (string, error) {
	var q Query
	if err := q.Parse(query); err != nil {
		return "", err
	}
	var a Answer
	if err := a.Parse(reply, q.Question(query)); err != nil {
		return "", err
	}
	var out []string
	for _, x := range a.Addresses {
		out = append(out, fmt.Sprintf("%s/%d", x.Addr, x.TTLSeconds))
	}
	if len(a.Chain) > 0 {
		out = append(out, string(bytes.Join(a.Chain, []byte(">"))))
	}
	return strings.Join(out, " "), nil
}

func TestReplyToAnother(t *testing.T) {
	q := query("www.x.io.", dns.TypeA)
	for what, c := range map[string]struct {
		change func(m *dns.Msg)
		want   error
	}{
		"another name":    {func(m *dns.Msg) { m.Question[0].Name = "wwx.x.io." }, ErrNotReply},
		"a longer name":   {func(m *dns.Msg) { m.Question[0].Name = "www.x.io.io." }, ErrNotReply},
		"another type":    {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }, ErrNotReply},
		"another class":   {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, ErrNotReply},
		"a query":         {func(m *dns.Msg) { m.Response = false }, ErrNotReply},
		"no question":     {func(m *dns.Msg) { m.Question = nil }, ErrNotReply},
		"an update":       {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, ErrNotReply},
		"a server's pain": {func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeFormatError }, nil},
		"a name error":    {func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, nil},
	} {
		m := new(dns.Msg).SetReply(q)
		c.change(m)
		if got, err := addresses(pack(t, q), pack(t, m)); !errors.Is(err, c.want) || got != "" {
			t.Errorf("%s: %q %v, want %v", what, got, err, c.want)
		}
	}
}

func TestBadReply(t *testing.T) {
	q := query("x.io.", dns.TypeA)
	m := new(dns.Msg).SetReply(q)
	m.Answer = records(t, "x.io. 30 A 192.0.2.1")
	good := pack(t, m)
	for n := headerSize + 10; n < len(good); n++ {
		if _, err := addresses(pack(t, q), good[:n]); !errors.Is(err, ErrBadReply) {
			t.Errorf("cut to %d: %v", n, err)
		}
	}
	m.Truncated = true
	short := pack(t, m)
	if got, err := addresses(pack(t, q), short[:len(short)-3]); err != nil || got != "" {
		t.Errorf("a truncated one that is cut: %q %v", got, err)
	}
	// An address of 5 bytes, and a CNAME that does not fill its record.
	for _, text := range []string{
		"123481800001000100000000" + "017802696f0000010001" + "c00c000100010000001e0005c000020100",
		"123481800001000100000000" + "017802696f0000010001" + "c00c000500010000001e0003c00c00",
	} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := addresses(pack(t, q), b); !errors.Is(err, ErrBadReply) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestRestore(t *testing.T) {
	q := query("wWw.X.iO.", dns.TypeA)
	msg := pack(t, q)
	m := new(dns.Msg).SetReply(query("www.x.io.", dns.TypeA))
	reply := pack(t, m)
	var parsed Query
	if err := parsed.Parse(msg); err != nil {
		t.Fatal(err)
	}
	Restore(reply, 0x4711, parsed.Question(msg))
	var got dns.Msg
	if err := got.Unpack(reply); err != nil || got.Id != 0x4711 || got.Question[0].Name != "wWw.X.iO." {
		t.Errorf("%v %v", &got, err)
	}
}

func TestFit(t *testing.T) {
	q := query("www.a-rather-long-name.example.com.", dns.TypeA)
	m := new(dns.Msg).SetReply(q)
	for i := range 30 {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).AsSlice()})
	}
	long := pack(t, m)
	for _, c := range []struct {
		size      int
		compress  bool
		truncated bool
	}{{4096, false, false}, {600, true, false}, {600, false, true}, {512, true, true}, {512, false, true}} {
		out := Fit(bytes.Clone(long), c.size, c.compress)
		var got dns.Msg
		if err := got.Unpack(out); err != nil || len(out) > c.size || got.Truncated != c.truncated || got.Id != m.Id {
			t.Errorf("%+v: %d bytes, truncated %t: %v", c, len(out), got.Truncated, err)
		}
	}
	if out := Fit(append(bytes.Clone(long[:100]), make([]byte, 600)...), 512, true); len(out) > 512 || len(out) < headerSize {
		t.Errorf("what cannot be read came out with %d bytes", len(out))
	}
}
