package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/projections"
)

const (
	// driftSettle is how long the kernel's news gather before they are looked at:
	// what goes often takes other things with it.
	driftSettle = 50 * time.Millisecond
	// driftLogEvery is how often the same drift is logged if it comes back again
	// and again. It is repaired each time.
	driftLogEvery = time.Minute
	// driftTold is how many drifts of one check are logged and sent to monitors one
	// by one; all are counted.
	driftTold = 20
)

// driftPlane is the dataplane as drift needs it.
type driftPlane interface {
	CheckShared(ctx context.Context, s dataplane.NodeSpec) ([]dataplane.Drift, error)
	SuspectInterfaces(ctx context.Context, all []dataplane.Bound) ([]string, error)
	RepairInterface(ctx context.Context, b dataplane.Bound) ([]dataplane.Drift, error)
	CheckRows(ctx context.Context, t *projections.Tables) ([]dataplane.Difference, error)
	Watch(ctx context.Context, changed func()) error
}

// drift finds what others change in the kernel, has it repaired and tells of it.
// docs/drift.md says what is checked and how often.
type drift struct {
	dp       driftPlane
	eps      *endpoints
	node     dataplane.NodeSpec
	every    time.Duration
	current  func() *projections.Tables
	publish  func(dataplane.Event) error
	repaired func(mapName string, rows int) // counts rows
	// names has the DNS proxy put its map right, and tells how many rows differed, and the
	// first of them; nil: there is no proxy. An error is no drift: one that does not answer
	// puts the map right when it starts.
	names  func(context.Context) (int, []dataplane.Difference, error)
	logger *slog.Logger

	wake     chan struct{}
	namesDue time.Time

	mu     sync.Mutex
	report apiserver.DriftReport
	logged map[string]*logged
}

// logged is when a drift was logged, and how often it came back since.
type logged struct {
	at    time.Time
	again int
}

// found is a drift and the endpoint it is of, if it is of one.
type found struct {
	dataplane.Drift
	endpoint uint32
}

// Report is what was found until now.
func (d *drift) Report() apiserver.DriftReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.report
	r.Kinds, r.Open = maps.Clone(r.Kinds), slices.Clone(r.Open)
	return r
}

// run checks until ctx ends: all from time to time, and all but the maps when the
// kernel has news.
func (d *drift) run(ctx context.Context) {
	d.wake = make(chan struct{}, 1)
	var watching sync.WaitGroup
	watching.Go(func() { d.watch(ctx) })
	defer watching.Wait()
	t := time.NewTicker(d.every)
	defer t.Stop()
	for {
		rows := false
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			rows = true
		case <-d.wake:
			if !sleep(ctx, driftSettle) {
				return
			}
		}
		d.pass(ctx, rows)
	}
}

// watch wakes run. Without it drift is still found, at the next tick.
func (d *drift) watch(ctx context.Context) {
	for {
		err := d.dp.Watch(ctx, func() {
			select {
			case d.wake <- struct{}{}:
			default:
			}
		})
		if ctx.Err() != nil {
			return
		}
		d.logger.Debug("the kernel's news are followed anew", "error", err)
		if !sleep(ctx, d.every) {
			return
		}
	}
}

// sleep is false if ctx ends before.
func sleep(ctx context.Context, t time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(t):
		return true
	}
}

// pass checks, repairs and tells.
func (d *drift) pass(ctx context.Context, rows bool) {
	all, err := d.shared(ctx)
	more, ierr := d.interfaces(ctx)
	all, err = append(all, more...), errors.Join(err, ierr)
	if rows {
		more, rerr := d.rows(ctx)
		all, err = append(append(all, more...), d.nameRows(ctx)...), errors.Join(err, rerr)
	}
	if ctx.Err() == nil {
		d.tell(all, err)
	}
}

func (d *drift) shared(ctx context.Context) ([]found, error) {
	ds, err := d.dp.CheckShared(ctx, d.node)
	var out []found
	for _, x := range ds {
		out = append(out, found{x, 0})
	}
	return out, err
}

// rows compares maps with what was written, and has the projector write anew what
// differs.
func (d *drift) rows(ctx context.Context) ([]found, error) {
	ds, err := d.dp.CheckRows(ctx, d.current())
	if len(ds) == 0 {
		return nil, err
	}
	err = errors.Join(err, d.eps.resync(ctx))
	var out []found
	by := make(map[string]int)
	for _, x := range ds {
		by[x.Map]++
		out = append(out, found{dataplane.Drift{Kind: dataplane.DriftRow, Object: x.Map, What: x.String(), Err: err}, 0})
	}
	if err == nil {
		for name, n := range by {
			d.repaired(name, n)
		}
	}
	return out, nil
}

// namesShare is the least time between two comparisons of the map of names, in units of
// what one takes: with very many names it is compared less often.
const namesShare = 50

// nameRows has the rows of the map of names compared and put right.
func (d *drift) nameRows(ctx context.Context) []found {
	began := time.Now()
	if d.names == nil || began.Before(d.namesDue) {
		return nil
	}
	count, ds, err := d.names(ctx)
	d.namesDue = time.Now().Add(namesShare*time.Since(began) - d.every)
	if err != nil {
		d.logger.Debug("the map of names is not compared", "error", err)
		return nil
	}
	var out []found
	for _, x := range ds {
		out = append(out, found{dataplane.Drift{Kind: dataplane.DriftRow, Object: x.Map, What: x.String()}, 0})
	}
	if count > 0 {
		d.repaired(namesMap, count)
	}
	return out
}

func (d *drift) interfaces(ctx context.Context) ([]found, error) {
	var all []dataplane.Bound
	eps := make(map[string]*fsm.Endpoint)
	for _, ep := range d.eps.local() {
		if b, ok := d.eps.interfaceOf(ep); ok {
			all, eps[ep.HostInterface] = append(all, b), ep
		}
	}
	suspects, err := d.dp.SuspectInterfaces(ctx, all)
	var out []found
	for _, name := range suspects {
		ep := eps[name]
		ds, rerr := d.endpoint(ctx, ep)
		err = errors.Join(err, rerr)
		for _, x := range ds {
			out = append(out, found{x, ep.ID})
		}
	}
	return out, err
}

// endpoint repairs an endpoint's interface. What is being added or deleted is
// waited for, and left alone if it is another one then.
func (d *drift) endpoint(ctx context.Context, ep *fsm.Endpoint) ([]dataplane.Drift, error) {
	m := d.eps
	defer m.lock(ep.Ref)()
	now, ok := m.view().Endpoint(ep.Ref)
	if !ok || now.Incarnation != ep.Incarnation || now.Node != m.node {
		return nil, nil
	}
	b, ok := m.interfaceOf(now)
	if !ok {
		return nil, nil
	}
	ds, err := d.dp.RepairInterface(ctx, b)
	for i := range ds {
		if errors.Is(ds[i].Err, dataplane.ErrNoInterface) {
			ds[i].Err = m.remake(ctx, now)
		}
	}
	return ds, err
}

// remake makes an interface that is gone anew if its container lives. Otherwise
// the endpoint stays in the log, without rows in the kernel, and waits for its
// delete. Call it under the endpoint's lock.
func (m *endpoints) remake(ctx context.Context, ep *fsm.Endpoint) error {
	spec := m.specOf(ep)
	id, err := dataplane.NetnsID(ep.Netns)
	if err == nil && id != ep.NetnsID {
		err = dataplane.ErrNoNamespace
	}
	var ifindex int
	if err == nil {
		ifindex, err = m.links.EnsureInterface(ctx, spec)
	}
	if err != nil {
		m.unbind(ep.HostInterface)
		m.setState(ep.Ref, "no interface: "+err.Error())
		// Its number may be another interface's soon.
		return errors.Join(err, m.resync(ctx), m.links.RemoveInterface(ctx, ep.HostInterface))
	}
	m.bind(ep.HostInterface, ifindex)
	if err = m.resync(ctx); err == nil {
		err = m.links.ActivateInterface(ctx, spec)
	}
	if err != nil {
		m.setState(ep.Ref, "not activated: "+err.Error())
		return err
	}
	m.setState(ep.Ref, stateReady)
	return nil
}

// interfaceOf is an endpoint's interface as it should be, if it has one.
func (m *endpoints) interfaceOf(ep *fsm.Endpoint) (dataplane.Bound, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ifindex, ok := m.bound[ep.HostInterface]
	return dataplane.Bound{InterfaceSpec: m.specOf(ep), Ifindex: ifindex}, ok
}

// tell counts, logs and publishes what a check found.
func (d *drift) tell(all []found, err error) {
	now := time.Now()
	d.mu.Lock()
	r := &d.report
	if r.Kinds == nil {
		r.Kinds, d.logged = make(map[dataplane.DriftKind]uint64), make(map[string]*logged)
	}
	failed := err != nil && (r.Err == nil || r.Err.Error() != err.Error())
	r.Open, r.Err, r.Checked = nil, err, now
	for _, f := range all {
		seen := apiserver.SeenDrift{Drift: f.Drift, At: now}
		r.Found++
		r.Kinds[f.Kind]++
		r.Last = &seen
		if f.Err == nil {
			r.Repaired++
		} else if len(r.Open) < driftTold {
			r.Open = append(r.Open, seen)
		}
	}
	d.mu.Unlock()

	if failed {
		d.logger.Error("drift is not looked for; tried again", "error", err)
	}
	for _, f := range all[:min(len(all), driftTold)] {
		d.log(f, now)
		_ = d.publish(dataplane.Event{Drift: &f.Drift, Endpoint: f.endpoint, SinceBoot: sinceBoot()})
	}
	if n := len(all) - driftTold; n > 0 {
		d.logger.Warn("more was changed by others than is logged one by one", "more", n)
	}
	maps.DeleteFunc(d.logged, func(_ string, l *logged) bool { return now.Sub(l.at) > 2*driftLogEvery })
}

// log logs what has not been logged a moment ago.
func (d *drift) log(f found, now time.Time) {
	key := string(f.Kind) + " " + f.Object
	if f.Err != nil {
		key += " stays"
	}
	if f.Kind == dataplane.DriftRow {
		key += f.What
	}
	l := d.logged[key]
	if l != nil && now.Sub(l.at) < driftLogEvery {
		l.again++
		return
	}
	args := []any{"kind", string(f.Kind), "object", f.Object, "what", f.What}
	if l != nil && l.again > 0 {
		args = append(args, "times_since_last_logged", l.again+1)
	}
	d.logged[key] = &logged{at: now}
	if f.Err != nil {
		d.logger.Error("changed by others and not repaired; tried again", append(args, "error", f.Err)...)
		return
	}
	d.logger.Warn("changed by others; repaired", args...)
}

// sinceBoot is now on the clock of the programs' events.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
