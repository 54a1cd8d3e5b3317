package verdict_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// observe lets an endpoint of two learn an address.
func observe(t *testing.T, state *fsm.State, endpoint, name, addr string, expiresNS int64) {
	t.Helper()
	view := state.View()
	e, ok := view.Endpoint(fsm.EndpointRef{Namespace: "default", Name: endpoint})
	if !ok {
		t.Fatalf("no endpoint %s", endpoint)
	}
	n, _ := view.Node(e.Node)
	apply(t, state, eventpb.Role_ROLE_NODE, e.Node, &eventpb.Event{JournalSeq: n.DNSSeq + 1, Payload: &eventpb.Event_DnsObserved{DnsObserved: &eventpb.DnsObserved{
		Node: e.Node, Ref: &eventpb.EndpointRef{Namespace: "default", Name: endpoint}, Incarnation: e.Incarnation, Name: name,
		Addresses: []*eventpb.DnsAddress{{Address: netip.MustParseAddr(addr).AsSlice(), ExpiresUnixNs: expiresNS}},
	}}})
}

// What an endpoint was told admits it, on the ports of the rules that have the name,
// until it expires, and nobody else.
func TestFactsAdmit(t *testing.T) {
	state := state(t)
	observe(t, state, "dns", "api.example.com.", "203.0.113.7", 1000)
	observe(t, state, "dns", "example.org.", "203.0.113.7", 2000)
	observe(t, state, "dns", "other.net.", "203.0.113.8", 2000)
	observe(t, state, "dns", "web.example.com.", "10.0.0.1", 2000)
	observe(t, state, "v6", "api.example.com.", "2001:db8::7", 2000)
	view := state.View()
	more := []verdict.Fact{
		{Name: "new.example.com.", Addr: netip.MustParseAddr("203.0.113.9"), ExpiresNS: 1500},
		{Name: "api.example.com.", Addr: netip.MustParseAddr("203.0.113.7"), ExpiresNS: 1200},
	}
	for _, c := range []struct {
		from, to, port string
		at             int64
		more           []verdict.Fact
		allowed        bool
		facts          string
	}{
		{"dns", "203.0.113.7", "443/tcp", 999, nil, true, "api.example.com. admits @11, example.org. admits @12"},
		{"dns", "203.0.113.7", "443/tcp", 1000, nil, true, "api.example.com. expired @11, example.org. admits @12"},
		{"dns", "203.0.113.7", "443/tcp", 1100, more, true, "api.example.com. admits @11, example.org. admits @12"},
		{"dns", "203.0.113.7", "80/tcp", 999, nil, true, "api.example.com. no rule @11, example.org. admits @12"},
		{"dns", "203.0.113.7", "80/tcp", 2000, nil, false, "api.example.com. no rule @11, example.org. expired @12"},
		{"dns", "203.0.113.8", "443/tcp", 999, nil, false, "other.net. no rule @13"},
		{"dns", "203.0.113.9", "443/tcp", 999, nil, false, ""},
		{"dns", "203.0.113.9", "443/tcp", 999, more, true, "new.example.com. admits @0"},
		// An address of the cluster is not reached by a name.
		{"dns", "10.0.0.1", "443/tcp", 999, nil, false, ""},
		// Nobody has what another was told, and who is not isolated needs no name.
		{"client", "203.0.113.7", "443/tcp", 999, nil, false, ""},
		{"v6", "2001:db8::7", "443/tcp", 999, nil, true, ""},
		// A name is judged by what is known of it.
		{"dns", "api.example.com", "443/tcp", 999, nil, true, "api.example.com. admits @11, example.org. admits @12"},
		{"dns", "api.example.com", "443/tcp", 1000, nil, false, ""},
		{"dns", "new.example.com", "443/tcp", 999, more, true, "new.example.com. admits @0"},
		{"dns", "never.example.com", "443/tcp", 999, nil, false, ""},
		{"dns", "other.net", "443/tcp", 999, nil, false, "other.net. no rule @13"},
	} {
		q := verdict.Question{TimeNS: c.at, More: c.more}
		var err error
		for words, party := range map[string]*verdict.Party{c.from: &q.From, c.to: &q.To} {
			if *party, err = verdict.ParseParty(view, words); err != nil {
				t.Fatal(err)
			}
		}
		if q.Protocol, q.Port, err = verdict.ParsePort(c.port); err != nil {
			t.Fatal(err)
		}
		a, err := verdict.Ask(view, verdict.Projected(view, projections.Options{}), q)
		if err != nil {
			t.Fatal(err)
		}
		var facts []string
		for _, f := range a.Egress.Facts {
			facts = append(facts, fmt.Sprintf("%s %s @%d", f.Name, f.Standing, f.Revision))
		}
		if a.Allowed() != c.allowed || strings.Join(facts, ", ") != c.facts {
			t.Errorf("%s to %s, %s at %d: allowed %v by %v, want %v by %s", c.from, c.to, c.port, c.at, a.Allowed(), facts, c.allowed, c.facts)
		}
		if byName := c.from == "dns" && c.to != "10.0.0.1"; a.Egress.ByName != byName {
			t.Errorf("%s to %s: by name %v", c.from, c.to, a.Egress.ByName)
		}
		if a.Allowed() && a.Egress.ByName && len(a.Egress.Rules) == 0 {
			t.Errorf("%s to %s: admitted by no rule", c.from, c.to)
		}
	}
	// Addresses of a name are judged one by one, by whatever rule.
	q := verdict.Question{TimeNS: 999, Protocol: 6, Port: 443, To: verdict.Party{Name: "web.example.com."}}
	q.From, _ = verdict.ParseParty(view, "dns")
	a, err := verdict.Ask(view, verdict.Projected(view, projections.Options{}), q)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]bool{false}, a.Name.Passes); diff != "" || a.Name.Judged != netip.MustParseAddr("10.0.0.1") || a.To.Name != "web.example.com." {
		t.Errorf("judged %s as %s: %s", a.Name.Judged, a.To, diff)
	}
}
