package dns

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/varve-net/varve/dataplane/dns/match"
	"github.com/varve-net/varve/dataplane/dns/relay"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/policy"
)

// rules is the rules file, ready for use. It is immutable.
type rules struct {
	dnslink.Rules
	// rows are the names that a row admits; one without a Set admits every name.
	rows      map[uint64]*relay.NameSet
	endpoints map[uint32]*endpointRules
	byKey     map[endpointKey]*endpointRules

	sets    map[string]*match.Set // by content, so that the next rules can have them
	classes map[string]*classSet  // by the tables that they are of
}

// endpointRules is what the rules say of an endpoint.
type endpointRules struct {
	dnslink.Endpoint
	classes *classSet
}

// key names an endpoint as facts do.
func (e *endpointRules) key() endpointKey {
	return endpointKey{e.Namespace, e.Name, e.Incarnation}
}

// classSet finds the classes that a name belongs to. It is immutable.
type classSet struct {
	set *match.Set
	ids []uint64 // by the ids of set
}

// of returns the classes of a name, ascending.
func (c *classSet) of(name []byte) []uint64 {
	if c == nil || c.set.Len() == 0 {
		return nil
	}
	var buf [16]uint32
	var ids []uint64
	for _, i := range c.set.Append(buf[:0], name) {
		ids = append(ids, c.ids[i])
	}
	slices.Sort(ids)
	return ids
}

// compile makes rules ready. Sets of names that were in the rules before are taken
// from there: with thousands of names they cost more than all else.
func compile(raw *dnslink.Rules, before *rules) (*rules, error) {
	r := &rules{
		Rules: *raw, rows: map[uint64]*relay.NameSet{}, endpoints: map[uint32]*endpointRules{}, byKey: map[endpointKey]*endpointRules{},
		sets: map[string]*match.Set{}, classes: map[string]*classSet{},
	}
	parsed := make([][]policy.FQDNSelector, len(raw.Sets))
	for i, texts := range raw.Sets {
		for _, text := range texts {
			s, err := parseSelector(text)
			if err != nil {
				return nil, fmt.Errorf("rules: set %d: %w", i, err)
			}
			parsed[i] = append(parsed[i], s)
		}
	}
	for _, row := range raw.Rows {
		if row.Set == dnslink.EveryName {
			r.rows[row.ID] = &relay.NameSet{Row: row.ID}
			continue
		}
		texts := raw.Sets[row.Set]
		r.rows[row.ID] = &relay.NameSet{Row: row.ID, Selectors: texts, Set: r.set(strings.Join(texts, " "), before, func() (p []match.Pattern) {
			for i, s := range parsed[row.Set] {
				p = append(p, match.Pattern{Selector: s, ID: uint32(i)})
			}
			return p
		})}
	}
	byTable := map[uint64][]dnslink.Class{}
	for _, c := range raw.Classes {
		byTable[c.Table] = append(byTable[c.Table], c)
	}
	for i := range raw.Endpoints {
		e := &raw.Endpoints[i]
		x := &endpointRules{Endpoint: *e, classes: r.classesOf(e.Tables, byTable, parsed, before)}
		r.endpoints[e.ID], r.byKey[x.key()] = x, x
	}
	return r, nil
}

// classesOf makes the classes of some tables, which endpoints mostly share.
func (r *rules) classesOf(tables []uint64, byTable map[uint64][]dnslink.Class, parsed [][]policy.FQDNSelector, before *rules) *classSet {
	sorted := slices.Clone(tables)
	slices.Sort(sorted)
	name := fmt.Sprint(slices.Compact(sorted))
	if c := r.classes[name]; c != nil {
		return c
	}
	c := new(classSet)
	at := map[uint64]uint32{}
	var patterns []match.Pattern
	var content strings.Builder
	for _, t := range slices.Compact(sorted) {
		for _, class := range byTable[t] {
			i, ok := at[class.ID]
			if !ok {
				i = uint32(len(c.ids))
				at[class.ID] = i
				c.ids = append(c.ids, class.ID)
			}
			content.WriteString(" class " + strconv.Itoa(int(i)))
			for _, s := range parsed[class.Set] {
				patterns = append(patterns, match.Pattern{Selector: s, ID: i})
				content.WriteString(" " + s.String())
			}
		}
	}
	c.set = r.set(content.String(), before, func() []match.Pattern { return patterns })
	r.classes[name] = c
	return c
}

// set is the set of some content, made if it is not there yet.
func (r *rules) set(content string, before *rules, patterns func() []match.Pattern) *match.Set {
	if s := r.sets[content]; s != nil {
		return s
	}
	var s *match.Set
	if before != nil {
		s = before.sets[content]
	}
	if s == nil {
		s = match.New(patterns())
	}
	r.sets[content] = s
	return s
}

// parseSelector reads a selector's canonical text.
func parseSelector(text string) (policy.FQDNSelector, error) {
	if strings.Contains(text, "*") {
		return policy.ParseFQDN("", text)
	}
	return policy.ParseFQDN(text, "")
}
