package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/raftlog"
	"github.com/varve-net/varve/projections"
)

// checkTimeout bounds one check of status.
const checkTimeout = 5 * time.Second

type agentService struct{ *Server }

func (s agentService) Status(ctx context.Context, req *connect.Request[varvev1.StatusRequest]) (*connect.Response[varvev1.StatusResponse], error) {
	s.settle(ctx)
	var resp *varvev1.StatusResponse
	err := s.Projector.Hold(ctx, func(view fsm.View, tables *projections.Tables) (err error) {
		resp, err = s.status(ctx, req.Msg.Verify, view, tables)
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// settle waits a moment for what was acknowledged before this call to be in force.
// What keeps it from that is one of the checks.
func (s *Server) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = s.Projector.Wait(ctx, s.Log.View().Revision())
}

// status describes the view in force, and nothing moves meanwhile; only the log
// may be ahead of it.
func (s agentService) status(ctx context.Context, verify bool, view fsm.View, tables *projections.Tables) (*varvev1.StatusResponse, error) {
	info := s.Info()
	head, _ := s.Log.Head()
	chain, digest := view.Chain(), view.Digest()
	resp := &varvev1.StatusResponse{
		Version: info.Version, Cluster: info.Cluster, Node: info.Node, Pid: uint64(info.PID), StartedUnixNs: info.StartedUnixNS,
		Revision: uint64(head), Chain: chain[:], StateDigest: digest[:],
		ReplayedEvents: info.ReplayedEvents, ReplayNanoseconds: uint64(info.ReplayNS),
		BootstrapNanoseconds: uint64(info.BootstrapNS), BootstrapRowsWritten: info.BootstrapWritten,
	}
	for range view.Identities() {
		resp.Identities++
	}
	for range view.Policies() {
		resp.Policies++
	}
	for ep := range view.Endpoints() {
		if ep.Node == s.Node {
			resp.Endpoints++
		}
	}
	if tables != nil {
		resp.AppliedRevision = uint64(tables.Revision)
		d := tables.Digest()
		resp.TablesDigest = d[:]
		resp.Tables = s.tableStatus(tables)
	}

	type check struct {
		name string
		run  func(context.Context) (string, error)
	}
	checks := []check{
		{"log", s.checkLog(view)},
		{"history", s.checkHistory},
		{"clock", s.checkClock},
		{"projection", s.checkProjection(tables)},
		{"endpoints", s.checkEndpoints(view)},
		{"maps", s.checkMaps(tables)},
	}
	if s.Flows != nil {
		resp.Flows = s.flowStatus()
		checks = append(checks, check{"flows", s.checkFlows})
	}
	if s.Drift != nil {
		report := s.Drift()
		resp.Drift = driftStatus(report)
		checks = append(checks, check{"drift", checkDrift(report)})
	}
	if verify {
		checks = append(checks, check{"kernel", s.checkKernel(tables, resp)})
	}
	resp.Checks = make([]*varvev1.Check, len(checks))
	var g errgroup.Group
	for i, c := range checks {
		g.Go(func() error {
			began := time.Now()
			ctx, cancel := context.WithTimeout(ctx, checkTimeout)
			defer cancel()
			msg, err := c.run(ctx)
			out := &varvev1.Check{Name: c.name, Ok: err == nil, Message: msg, Nanoseconds: uint64(time.Since(began))}
			if err != nil {
				out.Message = err.Error()
			}
			resp.Checks[i] = out
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return resp, nil
}

func (s agentService) tableStatus(t *projections.Tables) []*varvev1.TableStatus {
	capacity := s.Kernel.Capacities()
	var out []*varvev1.TableStatus
	for _, sum := range summaries(t) {
		out = append(out, &varvev1.TableStatus{Name: sum.name, Rows: uint64(sum.rows), Capacity: uint64(capacity[sum.name]), Digest: sum.digest[:]})
	}
	return out
}

type summary struct {
	name   string
	rows   int
	digest log.Hash
}

// summaries are the tables in the order in which status shows them.
func summaries(t *projections.Tables) []summary {
	return []summary{
		{"endpoints", t.Endpoints.Len(), t.Endpoints.Digest()},
		{"ipcache", t.IPCache.Len(), t.IPCache.Digest()},
		{"classes", t.Classes.Len(), t.Classes.Digest()},
		{"policy", t.Policy.Len(), t.Policy.Digest()},
	}
}

func (s agentService) checkLog(view fsm.View) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		head, chain := s.Log.Head()
		if head < view.Revision() {
			return "", fmt.Errorf("history ends at revision %d, the state is at %d: restart the agent to replay", head, view.Revision())
		}
		return fmt.Sprintf("revision %d, chain %.8s, kept from revision %d", head, chain, s.Log.First()), nil
	}
}

// checkHistory: what is lost of the past keeps nobody from anything but asking for it.
func (s agentService) checkHistory(context.Context) (string, error) {
	lost := s.Log.History().Lost()
	if len(lost) == 0 {
		return "whole, as far as it was read", nil
	}
	errs := make([]error, 0, maxLostNamed+1)
	for i, l := range lost {
		if i == maxLostNamed {
			errs = append(errs, fmt.Errorf("and %d more; `varve log verify` names the first", len(lost)-i))
			break
		}
		errs = append(errs, fmt.Errorf("revisions %d to %d are lost: %w", l.First, l.Last, l.Err))
	}
	return "", errors.Join(errs...)
}

// maxLostNamed is how many places of damage status names.
const maxLostNamed = 4

// checkClock: events keep the log's time while the clock is behind it.
func (s agentService) checkClock(context.Context) (string, error) {
	behind := s.Log.ClockBehind()
	if behind > raftlog.ClockTolerance {
		return "", fmt.Errorf("%s behind the log's time: events keep the last one's time until it has caught up; set the clock right", behind.Round(time.Millisecond))
	}
	return "not behind the log's time", nil
}

func (s agentService) checkProjection(tables *projections.Tables) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		if err := s.Projector.Err(); err != nil {
			return "", err
		}
		if tables == nil {
			return "", fmt.Errorf("nothing is in force yet")
		}
		return fmt.Sprintf("revision %d in force", tables.Revision), nil
	}
}

// pressure is from how full a map on is a trouble: the next change may not fit, since
// while it goes on a map holds the old rows and the new ones.
const pressure = 0.9

// checkMaps looks for maps that will soon be full.
func (s agentService) checkMaps(tables *projections.Tables) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		if tables == nil {
			return "nothing is in force yet", nil
		}
		capacity := s.Kernel.Capacities()
		fullest, most := "", 0.0
		var errs []error
		for _, m := range mapRows(tables.Need()) {
			size, known := capacity[m.name]
			if !known {
				continue
			}
			full := float64(m.rows) / float64(size)
			if full >= most {
				fullest, most = m.name, full
			}
			if full >= pressure {
				errs = append(errs, fmt.Errorf("map %s is %.0f%% full, %d of %d rows; raise its size with %s",
					m.name, 100*full, m.rows, size, dataplane.SizeFlag(m.name)))
			}
		}
		if len(errs) > 0 {
			return "", errors.Join(errs...)
		}
		return fmt.Sprintf("fullest is %s, %.0f%%", fullest, 100*most), nil
	}
}

func (s agentService) checkEndpoints(view fsm.View) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		var ready, bad int
		var first string
		for ep := range view.Endpoints() {
			if ep.Node != s.Node {
				continue
			}
			if state := s.Endpoints.State(ep.Ref); state == "ready" {
				ready++
			} else if bad++; bad == 1 {
				first = endpointName(ep.Ref) + ": " + state
			}
		}
		if bad > 0 {
			return "", fmt.Errorf("%d ready, %d not; %s", ready, bad, first)
		}
		return fmt.Sprintf("%d ready", ready), nil
	}
}

func (s agentService) checkKernel(tables *projections.Tables, resp *varvev1.StatusResponse) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if tables == nil {
			return "", fmt.Errorf("nothing is in force yet")
		}
		diffs, err := s.Kernel.Verify(ctx, tables)
		if err != nil {
			return "", err
		}
		have, err := s.Kernel.KernelTables(ctx)
		if err != nil {
			return "", err
		}
		d := have.Digest()
		resp.KernelDigest = d[:]
		for i, sum := range summaries(have) {
			resp.Tables[i].KernelDigest = sum.digest[:]
		}
		for _, x := range diffs {
			resp.Differences = append(resp.Differences, &varvev1.Difference{Table: x.Map, Kind: x.Kind.String(), Key: x.Key, Want: x.Want, Have: x.Have})
		}
		// The log has facts a moment after the kernel, so the map of names is compared with
		// what its only writer knows.
		names, err := s.verifyNames(ctx, resp)
		if err != nil {
			return "", err
		}
		if n := len(diffs) + names; n > 0 {
			return "", fmt.Errorf("%d rows differ from the projection", n)
		}
		if want := tables.Digest(); want != d {
			return "", fmt.Errorf("digest %s, the projection has %s", d, want)
		}
		return "equal to the projection, digest " + fmt.Sprintf("%.8s", d), nil
	}
}

// verifyNames has the map `fqdn` compared, and tells how many rows differ.
func (s agentService) verifyNames(ctx context.Context, resp *varvev1.StatusResponse) (int, error) {
	if s.Names == nil {
		return 0, nil
	}
	n, told, err := s.Names.Verify(ctx)
	if err != nil {
		return 0, fmt.Errorf("map fqdn is not compared: %w", err)
	}
	for _, x := range told {
		resp.Differences = append(resp.Differences, &varvev1.Difference{Table: x.Map, Kind: x.Kind.String(), Key: x.Key, Want: x.Want, Have: x.Have})
	}
	return n, nil
}
