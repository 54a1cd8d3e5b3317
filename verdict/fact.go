package verdict

import (
	"net/netip"
	"slices"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// Fact is an address that an endpoint was told when it asked for a name.
type Fact struct {
	Name  string // as asked, lower case, with a dot at its end
	Addr  netip.Addr
	Chain []string // the names that led there (CNAME)
	// ExpiresNS is when it ceases to admit new connections, in Unix time.
	ExpiresNS int64
	// Revision of the observation; 0: the log does not have it yet.
	Revision log.Revision
}

// Standing is what a Fact does for a connection.
type Standing string

// Standings.
const (
	// Admits: some rule opens the address by this name, on this port.
	Admits Standing = "admits"
	// Expired: some rule would, but the fact has expired.
	Expired Standing = "expired"
	// NoRule: no rule opens the name's addresses on this port.
	NoRule Standing = "no rule"
)

// KnownFact is a Fact and what it does for the connection that is asked about.
type KnownFact struct {
	Fact
	Standing Standing
}

// FactsOf is what an endpoint knows of an address, by name, expired facts that are not
// collected yet among them.
func FactsOf(view fsm.View, e *fsm.Endpoint, addr netip.Addr) []Fact {
	return factsWhere(view, e, func(_ *fsm.Name, a fsm.NameAddress) bool { return a.Addr == addr })
}

// FactsOfName is what an endpoint knows of a name, by address.
func FactsOfName(view fsm.View, e *fsm.Endpoint, name string) []Fact {
	n, ok := view.NameOf(e.Ref, name)
	if !ok {
		return nil
	}
	var out []Fact
	for _, a := range n.Addresses {
		out = append(out, factOf(n, a))
	}
	return out
}

func factsWhere(view fsm.View, e *fsm.Endpoint, keep func(*fsm.Name, fsm.NameAddress) bool) []Fact {
	var out []Fact
	for n := range view.NamesOf(e.Ref) {
		for _, a := range n.Addresses {
			if keep(n, a) {
				out = append(out, factOf(n, a))
			}
		}
	}
	return out
}

func factOf(n *fsm.Name, a fsm.NameAddress) Fact {
	return Fact{Name: n.Name, Addr: a.Addr, Chain: n.Chain, ExpiresNS: a.ExpiresNS, Revision: a.Revision}
}

// Join adds facts from elsewhere to those of the log. Of one that is in both, the later
// expiry holds, and the log's revision.
func Join(facts, more []Fact) []Fact {
	out := slices.Clone(facts)
	for _, m := range more {
		i := slices.IndexFunc(out, func(f Fact) bool { return f.Name == m.Name && f.Addr == m.Addr })
		if i < 0 {
			out = append(out, m)
		} else {
			out[i].ExpiresNS = max(out[i].ExpiresNS, m.ExpiresNS)
		}
	}
	return out
}

// Admit is the classes of a policy table by which facts of one address admit a connection
// at a moment, each once: projections.Question.Learned.
func Admit(t *projections.Tables, table uint64, facts []Fact, nowNS int64) []uint64 {
	var classes []uint64
	for _, f := range facts {
		if f.ExpiresNS > nowNS {
			classes = append(classes, t.Opens(table, f.Name)...)
		}
	}
	slices.Sort(classes)
	return slices.Compact(classes)
}
