package agent

import (
	"cmp"
	"context"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/projections"
)

// loadTimeout bounds how long a change of policy waits for the DNS proxy. One that
// is dead reads the rules when it starts; until then connections under names that
// only the new policy has in this form are refused, and no others admitted.
const loadTimeout = 2 * time.Second

// dnsRules keeps the DNS proxy's rules in step with the maps: the file has the new
// rules beside the old before the kernel gets rows that mention them, and the new
// ones alone once it has them.
type dnsRules struct {
	path    string
	cluster string
	node    string
	local   *locals
	proxy   dnslink.Proxy
	logger  *slog.Logger

	mu     sync.Mutex
	inFile *dnslink.Rules // nil: unknown
	// of and endpoints are what the rules in the file were made of, and nothing else; of is
	// nil while the file may hold other rules as well.
	of        *projections.Tables
	endpoints []*fsm.Endpoint
}

// around writes the rules of tables, calls sync, which brings the kernel to these
// tables, and then forgets the rules of before. The delta leads to tables.
func (d *dnsRules) around(ctx context.Context, view fsm.View, tables *projections.Tables, delta *projections.Delta, sync func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	endpoints := d.local.of(view)
	alike := d.alike(endpoints, delta)
	d.of = nil
	var err error
	if alike {
		err = sync()
	} else {
		err = d.change(ctx, rulesOf(d.cluster, d.node, endpoints, tables), sync)
	}
	if err == nil {
		d.of, d.endpoints = tables, endpoints
	}
	return err
}

// alike tells whether the rules in the file are those of the tables to which delta
// leads, too, so that none need be made.
func (d *dnsRules) alike(endpoints []*fsm.Endpoint, delta *projections.Delta) bool {
	if d.of == nil || d.of != delta.From || delta.Questions.Len()+delta.Learned.Len() > 0 || !slices.Equal(endpoints, d.endpoints) {
		return false
	}
	inFile := func(id uint32) (*dnslink.Endpoint, bool) {
		i, ok := slices.BinarySearchFunc(d.inFile.Endpoints, id, func(e dnslink.Endpoint, id uint32) int { return cmp.Compare(e.ID, id) })
		if !ok {
			return nil, false
		}
		return &d.inFile.Endpoints[i], true
	}
	for _, rows := range [][]*projections.Row[projections.EndpointKey, abi.EndpointValue]{delta.Endpoints.Added, delta.Endpoints.Changed} {
		for _, row := range rows {
			listed, ok := inFile(row.Key.ID)
			if ok != usesNames(&row.Value) || ok && !slices.Equal(listed.Tables, []uint64{row.Value.Egress.Table}) {
				return false
			}
		}
	}
	return !slices.ContainsFunc(delta.Endpoints.Removed, func(row *projections.Row[projections.EndpointKey, abi.EndpointValue]) bool {
		_, ok := inFile(row.Key.ID)
		return ok
	})
}

// change is around for rules that may be other ones than those in the file.
func (d *dnsRules) change(ctx context.Context, next *dnslink.Rules, sync func() error) error {
	if d.inFile == nil {
		// What an earlier run left is what the kernel may still have.
		if left, err := dnslink.ReadRules(d.path); err == nil {
			d.inFile = left
		} else {
			d.inFile = &dnslink.Rules{}
		}
	}
	if sameRules(d.inFile, next) {
		return sync()
	}
	both := unite(d.inFile, next)
	if err := d.write(ctx, both); err != nil {
		return err
	}
	if err := sync(); err != nil {
		return err
	}
	if sameRules(both, next) {
		return nil
	}
	return d.write(ctx, next)
}

func (d *dnsRules) write(ctx context.Context, r *dnslink.Rules) error {
	if err := dnslink.WriteRules(d.path, r); err != nil {
		return err
	}
	d.inFile = r
	wait, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := d.proxy.Load(wait); err != nil && ctx.Err() == nil {
		d.logger.Debug("the DNS proxy has not taken the rules; it reads them when it starts", "revision", r.Revision, "error", err)
	}
	return nil
}

// usesNames tells whether an endpoint's policy looks at names.
func usesNames(v *abi.EndpointValue) bool { return v.Egress.Flags&(abi.PolicyAsks|abi.PolicyFQDN) != 0 }

// rulesOf is what the tables say of names to the node's endpoints, which are in the
// order of their ids.
func rulesOf(cluster, node string, endpoints []*fsm.Endpoint, t *projections.Tables) *dnslink.Rules {
	r := &dnslink.Rules{Cluster: cluster, Node: node, Revision: uint64(t.Revision)}
	sets := newSets(r)
	for q := range t.Questions.All() {
		set := dnslink.EveryName
		if q.Value != projections.EveryName {
			set = sets.of(q.Value.Selectors())
		}
		r.Rows = append(r.Rows, dnslink.Row{ID: q.Key.Row, Set: set})
	}
	for l := range t.Learned.All() {
		r.Classes = append(r.Classes, dnslink.Class{Table: l.Key.Table, ID: l.Key.Class, Set: sets.of(l.Value.Selectors())})
	}
	if len(r.Rows)+len(r.Classes) == 0 {
		return r
	}
	for _, e := range endpoints {
		row, ok := t.Endpoints.Get(projections.EndpointKey{ID: e.ID})
		if !ok || !usesNames(&row.Value) {
			continue
		}
		r.Endpoints = append(r.Endpoints, dnslink.Endpoint{
			ID: e.ID, Namespace: e.Ref.Namespace, Name: e.Ref.Name, Incarnation: e.Incarnation,
			IPv4: e.IPv4, IPv6: e.IPv6, Tables: []uint64{row.Value.Egress.Table},
		})
	}
	return r
}

// sets gives each set of selectors one place in a file.
type sets struct {
	rules *dnslink.Rules
	at    map[string]int
}

func newSets(r *dnslink.Rules) *sets { return &sets{r, make(map[string]int)} }

func (s *sets) of(selectors []string) int {
	key := strings.Join(selectors, " ") // no selector has a space
	i, ok := s.at[key]
	if !ok {
		i = len(s.rules.Sets)
		s.at[key] = i
		s.rules.Sets = append(s.rules.Sets, selectors)
	}
	return i
}

// sameRules compares without the revision, which moves with every event.
func sameRules(a, b *dnslink.Rules) bool {
	x, y := *a, *b
	x.Revision, y.Revision = 0, 0
	return reflect.DeepEqual(x, y)
}

// unite is the rules of both: rows and classes are named by their content, and an
// endpoint has the tables of both.
func unite(old, new *dnslink.Rules) *dnslink.Rules {
	r := &dnslink.Rules{Cluster: new.Cluster, Node: new.Node, Revision: new.Revision}
	sets := newSets(r)
	rows, classes, endpoints := map[uint64]bool{}, map[[2]uint64]bool{}, map[uint32]int{}
	for _, from := range []*dnslink.Rules{new, old} {
		for _, x := range from.Rows {
			if !rows[x.ID] {
				rows[x.ID] = true
				if x.Set != dnslink.EveryName {
					x.Set = sets.of(from.Sets[x.Set])
				}
				r.Rows = append(r.Rows, x)
			}
		}
		for _, x := range from.Classes {
			if key := [2]uint64{x.Table, x.ID}; !classes[key] {
				classes[key] = true
				x.Set = sets.of(from.Sets[x.Set])
				r.Classes = append(r.Classes, x)
			}
		}
		for _, x := range from.Endpoints {
			i, ok := endpoints[x.ID]
			if !ok {
				endpoints[x.ID] = len(r.Endpoints)
				x.Tables = slices.Clone(x.Tables)
				r.Endpoints = append(r.Endpoints, x)
				continue
			}
			for _, t := range x.Tables {
				if have := &r.Endpoints[i]; !slices.Contains(have.Tables, t) {
					have.Tables = append(have.Tables, t)
				}
			}
		}
	}
	return r
}
