package fsm

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// names is what an endpoint has learned: "a.io. 10.0.0.1@60 10.0.0.2@90".
func names(v View, ref EndpointRef) []string {
	var out []string
	for n := range v.NamesOf(ref) {
		line := n.Name
		for _, a := range n.Addresses {
			line += fmt.Sprintf(" %s@%d", a.Addr, a.ExpiresNS/second)
		}
		out = append(out, line)
	}
	return out
}

func TestNames(t *testing.T) {
	f := base(t)
	web := EndpointRef{"default", "web"}
	f.ok(create("n1", "default", "web2", 1, "", nil)) // its key begins like web's
	f.ok(
		observe("n1", "default", "web", 5, "a.io.", map[string]int64{"203.0.113.1": 60, "203.0.113.2": 60}, seq(5)),
		observe("n1", "default", "web", 5, "a.io.", map[string]int64{"203.0.113.2": 50, "203.0.113.3": 90}, seq(6)),
		observe("n1", "default", "web", 5, "b.io.", map[string]int64{"2001:db8::1": 60}),
		observe("n1", "default", "web2", 1, "c.io.", map[string]int64{"203.0.113.1": 60}),
	)
	want := []string{"a.io. 203.0.113.1@60 203.0.113.2@60 203.0.113.3@90", "b.io. 2001:db8::1@60"}
	if diff := cmp.Diff(want, names(f.View(), web)); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
	if n, ok := f.View().NameOf(web, "a.io."); !ok || n.Addresses[1].Revision >= n.Addresses[2].Revision {
		t.Errorf("an expiry is of the event that gave it: %+v", n)
	}
	n1, _ := f.View().Node("n1")
	if n1.DNSSeq != 6 {
		t.Errorf("DNS facts are at %d, want 6", n1.DNSSeq)
	}
	// They are numbered apart from the agent's facts.
	if r := f.do(observe("n1", "default", "web", 5, "d.io.", map[string]int64{"203.0.113.4": 60}, seq(6))); r.Outcome != log.OutcomeRepeat {
		t.Errorf("a number that was seen: %+v", r)
	}
	f.ok(update("n1", "default", "web", 5, labels("x", "y"), seq(n1.JournalSeq+1)))

	f.ok(collected("n1", "default", "web", 5, "a.io.", []string{"203.0.113.1", "203.0.113.3", "203.0.113.9"}))
	f.ok(collected("n1", "default", "web", 5, "b.io.", []string{"2001:db8::1"}))
	f.ok(collected("n1", "default", "web", 5, "nobody.io.", []string{"2001:db8::1"}))
	if diff := cmp.Diff([]string{"a.io. 203.0.113.2@60"}, names(f.View(), web)); diff != "" {
		t.Errorf("collected (-want +got):\n%s", diff)
	}

	// What an endpoint learned goes with it, and with its incarnation.
	f.ok(create("n1", "default", "web", 6, "10.0.0.1", nil))
	if got := names(f.View(), web); got != nil {
		t.Errorf("a new incarnation knows %v", got)
	}
	if r := f.do(observe("n1", "default", "web", 5, "a.io.", map[string]int64{"203.0.113.1": 60})); r.Outcome != log.OutcomeRejected {
		t.Errorf("a late fact of the old one: %+v", r)
	}
	f.ok(deleteEndpoint("n1", "default", "web2", 1))
	if got := slices.Collect(f.View().Names()); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	f.ok(observe("n1", "default", "web", 6, "a.io.", map[string]int64{"203.0.113.1": 60}), leave("n1"))
	if got := slices.Collect(f.View().Names()); len(got) != 0 || len(f.learned) != 0 {
		t.Errorf("left behind with the node: %v, %v", got, f.learned)
	}
}

func TestBadNames(t *testing.T) {
	f := base(t)
	edit := func(change func(*eventpb.DnsObserved)) *eventpb.Event {
		e := observe("n1", "default", "web", 5, "a.io.", map[string]int64{"203.0.113.1": 60})
		change(e.GetDnsObserved())
		return e
	}
	for want, e := range map[string]*eventpb.Event{
		"name: has no dot":                  edit(func(o *eventpb.DnsObserved) { o.Name = "a.io" }),
		"name: byte 0 is 0x41":              edit(func(o *eventpb.DnsObserved) { o.Name = "A.io." }),
		"name: 0 bytes":                     edit(func(o *eventpb.DnsObserved) { o.Name = "" }),
		"chain[0]: byte 1 is 0x20":          edit(func(o *eventpb.DnsObserved) { o.Chain = []string{"a b."} }),
		"chain: 65 names":                   edit(func(o *eventpb.DnsObserved) { o.Chain = make([]string, 65) }),
		"addresses: 0 of them":              edit(func(o *eventpb.DnsObserved) { o.Addresses = nil }),
		"addresses[0].expires_unix_ns":      edit(func(o *eventpb.DnsObserved) { o.Addresses[0].ExpiresUnixNs = 0 }),
		"want them ascending":               edit(func(o *eventpb.DnsObserved) { o.Addresses = append(o.Addresses, o.Addresses[0]) }),
		"addresses[0]: ":                    edit(func(o *eventpb.DnsObserved) { o.Addresses[0].Address = []byte{1} }),
		"does not exist":                    edit(func(o *eventpb.DnsObserved) { o.Ref.Name = "none" }),
		"is of node n1, not of node \"n2\"": observe("n2", "default", "web", 5, "a.io.", map[string]int64{"203.0.113.1": 60}),
	} {
		before := f.View().Digest()
		if e.GetDnsObserved().Ref.Name == "none" {
			e.Stream = "dns/default/none"
		}
		r := f.do(e)
		if r.Outcome != log.OutcomeRejected || !strings.Contains(r.Reason, want) {
			t.Errorf("want %q: %+v", want, r)
		}
		if f.View().Digest() != before {
			t.Errorf("%q: a rejection changed the state", want)
		}
	}
}

// An endpoint's memory is bounded; what does not fit is recorded as rejected.
func TestLearnedIsBounded(t *testing.T) {
	f := base(t)
	a := netip.MustParseAddr("2001:db8::")
	for i := range maxLearned/eventpb.MaxNameAddresses + 1 {
		told := map[string]int64{}
		for range eventpb.MaxNameAddresses {
			a = a.Next()
			told[a.String()] = 60
		}
		r := f.do(observe("n1", "default", "web", 5, fmt.Sprintf("n%d.io.", i), told))
		if full := i == maxLearned/eventpb.MaxNameAddresses; (r.Outcome == log.OutcomeRejected) != full {
			t.Fatalf("name %d: %+v", i, r)
		}
	}
	f.ok(collected("n1", "default", "web", 5, "n0.io.", []string{"2001:db8::1"}))
	f.ok(observe("n1", "default", "web", 5, "more.io.", map[string]int64{"203.0.113.1": 60}))
}
