package apiserver

import (
	"errors"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// preflight refuses policies for which this node's maps have no room, before they
// are recorded.
func (s *Server) preflight(view fsm.View, sets []*eventpb.PolicySet) error {
	tables := s.Projector.Current()
	if tables == nil || len(sets) == 0 {
		return nil
	}
	compiled := make([]*policy.Policy, len(sets))
	for i, set := range sets {
		p, err := policy.Compile(set)
		if err != nil {
			return policyError(err)
		}
		compiled[i] = p
	}
	capacity := s.Kernel.Capacities()
	need, err := projections.Preflight(tables, view, projections.Options{}, compiled, func(n projections.Need) bool {
		return fitsMaps(n, capacity) == nil
	})
	if err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	if err := fitsMaps(need, capacity); err != nil {
		return connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return nil
}

// preflightState is preflight of another state altogether.
func (s *Server) preflightState(view fsm.View) error {
	tables := s.Projector.Current()
	if tables == nil {
		return nil
	}
	need, err := projections.PreflightState(tables, view, projections.Options{})
	if err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	if err := fitsMaps(need, s.Kernel.Capacities()); err != nil {
		return connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return nil
}

type rowsOf struct {
	name string
	rows int
}

// mapRows is a need by the maps' names.
func mapRows(n projections.Need) []rowsOf {
	return []rowsOf{{"endpoints", n.Endpoints}, {"ipcache", n.Addresses}, {"ipcache_lpm", n.Ranges}, {"classes", n.Classes}, {"policy", n.Policy}}
}

// fitsMaps is a *dataplane.FullError for each map that is too small.
func fitsMaps(n projections.Need, capacity map[string]int) error {
	var errs []error
	for _, m := range mapRows(n) {
		if most, known := capacity[m.name]; known && m.rows > most {
			errs = append(errs, &dataplane.FullError{Map: m.name, MaxEntries: most, Need: m.rows, Unfit: m.rows - most})
		}
	}
	return errors.Join(errs...)
}
