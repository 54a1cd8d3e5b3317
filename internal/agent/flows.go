package agent

import (
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/projections"
)

// recorder turns the events of the ring buffer into the flow record. It is of the
// one goroutine that reads them, and costs it little: who has an address follows
// the log change by change, and what is behind a row is looked up once.
type recorder struct {
	store *flows.Store
	// inForce is what the kernel enforces: the state and its tables.
	inForce func() (fsm.View, *projections.Tables)

	view  fsm.View
	names map[netip.Addr]string // endpoints

	rules   map[uint64][]string // of policy rows that were seen
	indexed *projections.Tables // of which rules holds every row

	boot      time.Duration // of the boot clock,
	bootNS    int64         // at this time of the wall clock
	clockRead func() (boot time.Duration, ns int64)
}

func newRecorder(store *flows.Store, inForce func() (fsm.View, *projections.Tables)) *recorder {
	return &recorder{store: store, inForce: inForce, names: map[netip.Addr]string{}, rules: map[uint64][]string{}, clockRead: clocks}
}

// openFlows opens the node's flow record; nil if it is turned off.
func openFlows(cfg *Config, dp *dataplane.Dataplane) (*flows.Store, error) {
	if cfg.FlowStoreMaxBytes == 0 {
		return nil, nil
	}
	return flows.Open(flows.Config{
		Dir: filepath.Join(cfg.StateDir, "flows"), MaxBytes: cfg.FlowStoreMaxBytes, MaxAge: cfg.FlowStoreMaxAge, Logger: cfg.Logger,
		Lost: func() (uint64, error) { _, lost, err := dp.Counters(); return lost, err },
	})
}

// clocks reads the boot clock and the wall clock.
func clocks() (time.Duration, int64) {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return 0, 0
	}
	return time.Duration(boot.Nano()), time.Now().UnixNano()
}

// maxRules bounds what is remembered of rows.
const maxRules = 100_000

// observe records one event; those that are about no packet are passed over.
func (r *recorder) observe(e dataplane.Event) {
	f, ok := flowOf(e)
	if !ok {
		return
	}
	view, tables := r.inForce()
	r.follow(view)
	f.FirstNS = r.wallClock(e.SinceBoot)
	f.LastNS = f.FirstNS
	f.FirstRevision = view.Revision()
	f.LastRevision = f.FirstRevision
	f.SrcName, f.DstName = r.names[f.Src], r.names[f.Dst]
	f.Rules = r.rulesOf(f.Row, tables)
	r.store.Observe(f)
}

// flowOf is what an event itself says.
func flowOf(e dataplane.Event) (flows.Flow, bool) {
	f := flows.Flow{Count: 1, Key: flows.Key{
		Src: e.Src, Dst: e.Dst, SrcIdentity: apiserver.IdentityOf(e.SrcPeer, e.Src), DstIdentity: apiserver.IdentityOf(e.DstPeer, e.Dst),
		Protocol: e.Protocol, Port: e.DstPort, Direction: e.Direction, Row: e.Row,
	}}
	if e.Protocol == unix.IPPROTO_ICMP || e.Protocol == unix.IPPROTO_ICMPV6 {
		f.Port = e.SrcPort // the type
	}
	switch {
	case e.Drift != nil:
		return f, false
	case e.Type == abi.EventNewFlow:
		f.Verdict = flows.Forwarded
	case e.Type == abi.EventAudited:
		f.Verdict, f.Reason = flows.Audited, e.Reason
	case e.Type == abi.EventDrop:
		f.Verdict, f.Reason = flows.Dropped, e.Reason
	default:
		return f, false
	}
	return f, true
}

// follow brings the names to a view.
func (r *recorder) follow(view fsm.View) {
	if view.Revision() == r.view.Revision() {
		return
	}
	changes, ok := view.ChangesSince(r.view)
	if !ok {
		clear(r.names)
		for e := range view.Endpoints() {
			r.name(e)
		}
		r.view = view
		return
	}
	for _, c := range changes {
		if c.Kind != fsm.ChangeEndpoint {
			continue
		}
		if was, ok := r.view.Endpoint(c.Endpoint()); ok {
			for _, a := range []netip.Addr{was.IPv4, was.IPv6} {
				// Unless another endpoint, changed before, has it by now.
				if r.names[a] == was.Ref.String() {
					delete(r.names, a)
				}
			}
		}
	}
	for _, c := range changes {
		if c.Kind != fsm.ChangeEndpoint {
			continue
		}
		if is, ok := view.Endpoint(c.Endpoint()); ok {
			r.name(is)
		}
	}
	r.view = view
}

func (r *recorder) name(e *fsm.Endpoint) {
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			r.names[a] = e.Ref.String()
		}
	}
}

// rulesOf is the rules behind a policy row. A row's number stands for its rules for
// ever, so those of rows that are gone by now are remembered.
func (r *recorder) rulesOf(row uint64, tables *projections.Tables) []string {
	if row == 0 {
		return nil
	}
	if known, ok := r.rules[row]; ok || tables == nil || tables == r.indexed {
		return known
	}
	if len(r.rules) > maxRules {
		clear(r.rules)
	}
	for p := range tables.Policy.All() {
		if _, ok := r.rules[p.Value.Row]; ok {
			continue
		}
		var rules []string
		for _, ref := range p.Cause.Rules {
			rules = append(rules, ref.String())
		}
		r.rules[p.Value.Row] = rules
	}
	r.indexed = tables
	return r.rules[row]
}

// wallClock is when something happened that the boot clock stamped. The clocks are
// compared once a second or so, since the wall clock may be set.
func (r *recorder) wallClock(sinceBoot time.Duration) int64 {
	if d := sinceBoot - r.boot; r.bootNS == 0 || d > time.Second || d < -time.Second {
		r.boot, r.bootNS = r.clockRead()
	}
	return r.bootNS + int64(sinceBoot-r.boot)
}
