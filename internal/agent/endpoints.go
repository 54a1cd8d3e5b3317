package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

const (
	defaultNamespace = "default"
	defaultInterface = "eth0"
	// hostPrefix begins the name of every host side.
	hostPrefix = "vv"

	stateReady = "ready"
)

// interfaces is the dataplane as endpoints need it.
type interfaces interface {
	EnsureInterface(ctx context.Context, spec dataplane.InterfaceSpec) (ifindex int, err error)
	ActivateInterface(ctx context.Context, spec dataplane.InterfaceSpec) error
	RemoveInterface(ctx context.Context, hostName string) error
	// AdoptInterface finds one that is there and attaches the programs anew.
	AdoptInterface(ctx context.Context, hostName string) (ifindex int, err error)
	ListInterfaces(ctx context.Context) ([]string, error)
}

// endpoints connects workloads. The order of the steps of Add keeps the promise
// that no packet leaves a container before its programs and rows are in the
// kernel: interface made, down, with programs; event; rows; interface up. A crash
// between any two is mended by recover at the next start, or by a repeated Add.
type endpoints struct {
	node   string
	facts  *facts
	view   func() fsm.View
	wait   func(context.Context, log.Revision) error
	resync func(context.Context) error // projects anew with the bindings of now
	links  interfaces
	locals *locals
	ipam   *ipam
	cfg    *Config
	logger *slog.Logger

	mu     sync.Mutex
	locks  map[fsm.EndpointRef]*refLock
	bound  map[string]int             // host interface -> ifindex
	states map[fsm.EndpointRef]string // what is wrong with an endpoint
}

// refLock serialises the work on one endpoint.
type refLock struct {
	sync.Mutex
	users int
}

func newEndpoints(cfg *Config, f *facts, view func() fsm.View, wait func(context.Context, log.Revision) error, links interfaces) *endpoints {
	return &endpoints{
		node: cfg.Node, facts: f, view: view, wait: wait, links: links, cfg: cfg, logger: cfg.Logger,
		locals: newLocals(cfg.Node),
		ipam:   newIPAM(view, cfg.IPv4Range, cfg.IPv6Range),
		locks:  map[fsm.EndpointRef]*refLock{},
		bound:  map[string]int{},
		states: map[fsm.EndpointRef]string{},
	}
}

// lock takes the lock of one endpoint and returns its release.
func (m *endpoints) lock(ref fsm.EndpointRef) func() {
	m.mu.Lock()
	l := m.locks[ref]
	if l == nil {
		l = &refLock{}
		m.locks[ref] = l
	}
	l.users++
	m.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(m.locks, ref)
		}
	}
}

// bindings maps the ids of local endpoints to their host interfaces.
func (m *endpoints) bindings(view fsm.View) map[uint32]int {
	local := m.locals.of(view)
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[uint32]int, len(local))
	for _, ep := range local {
		if ifindex, ok := m.bound[ep.HostInterface]; ok {
			out[ep.ID] = ifindex
		}
	}
	return out
}

// State implements apiserver.Endpoints.
func (m *endpoints) State(ref fsm.EndpointRef) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.states[ref]; s != "" {
		return s
	}
	return stateReady
}

func (m *endpoints) setState(ref fsm.EndpointRef, state string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if state == stateReady {
		delete(m.states, ref)
	} else {
		m.states[ref] = state
	}
}

// Add implements apiserver.Endpoints.
func (m *endpoints) Add(ctx context.Context, actor apiserver.Actor, req *varvev1.AddEndpointRequest) (fsm.EndpointRef, bool, error) {
	want, err := m.parseAdd(req)
	if err != nil {
		return fsm.EndpointRef{}, false, connect.NewError(connect.CodeInvalidArgument, err)
	}
	defer m.lock(want.ref)()

	old, exists := m.view().Endpoint(want.ref)
	switch {
	case exists && old.Node != m.node:
		return want.ref, false, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("endpoint %s: is on node %s; delete it there first", name(want.ref), old.Node))
	case exists && old.NetnsID == want.netnsID && old.ContainerInterface == want.iface:
		return want.ref, false, m.readd(ctx, actor, old, want)
	case exists:
		// The name stands for another container now.
		if _, err := m.remove(ctx, actor, old); err != nil {
			return want.ref, false, err
		}
	}
	return want.ref, true, m.create(ctx, actor, want, old)
}

// create makes a new incarnation. old is the one before it, if there was one.
func (m *endpoints) create(ctx context.Context, actor apiserver.Actor, w wanted, old *fsm.Endpoint) (err error) {
	var undos []func()
	undo := func(f func()) { undos = append(undos, f) }
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(undos) {
				f()
			}
		}
	}()

	if err := m.address(&w); err != nil {
		code := connect.CodeResourceExhausted
		if errors.Is(err, errTaken) {
			code = connect.CodeAlreadyExists
		}
		return connect.NewError(code, fmt.Errorf("endpoint %s: %w", name(w.ref), err))
	}
	defer m.ipam.release(w.ipv4, w.ipv6)

	created := &eventpb.EndpointCreated{
		Ref: &eventpb.EndpointRef{Namespace: w.ref.Namespace, Name: w.ref.Name}, Incarnation: 1, Node: m.node,
		Labels: w.labels, ServiceAccount: w.sa, NamedPorts: w.ports,
		Netns: w.netns, NetnsId: w.netnsID, ContainerInterface: w.iface, Mtu: w.mtu, BigTcp: w.bigTCP,
		PolicyAuditMode: w.audit,
	}
	if old != nil {
		created.Incarnation = old.Incarnation + 1
	}
	mac, err := newMAC()
	if err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	created.Mac = mac[:]
	created.HostInterface = hostName(m.cfg.Cluster, m.node, w.ref)
	for _, a := range []netip.Addr{w.ipv4, w.ipv6} {
		if a.IsValid() {
			created.Addresses = append(created.Addresses, a.AsSlice())
		}
	}

	spec := m.specOf(&fsm.Endpoint{
		HostInterface: created.HostInterface, ContainerInterface: w.iface, Netns: w.netns, MAC: mac, IPv4: w.ipv4, IPv6: w.ipv6,
		MTU: uint16(w.mtu), BigTCP: w.bigTCP,
	})
	ifindex, err := m.links.EnsureInterface(ctx, spec)
	if err != nil {
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("endpoint %s: %w", name(w.ref), err))
	}
	cleanup := context.WithoutCancel(ctx)
	undo(func() {
		if err := m.links.RemoveInterface(cleanup, spec.HostName); err != nil {
			m.logger.Warn("half-made interface stays", "interface", spec.HostName, "error", err)
		}
	})
	m.bind(spec.HostName, ifindex)
	undo(func() { m.unbind(spec.HostName) })

	rev, err := m.facts.append(ctx, actor, &eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: created}})
	if err != nil {
		return connect.NewError(connect.CodeFailedPrecondition, err)
	}
	// From here on the endpoint is in the log: what fails is not undone but
	// mended, by a repeated Add or at the next start.
	undos = nil
	return m.activate(ctx, w.ref, rev, spec)
}

// address completes w's addresses and reserves all of them.
func (m *endpoints) address(w *wanted) error {
	pick := func(addr *netip.Addr, r netip.Prefix) error {
		switch {
		case !r.IsValid():
			return nil
		case addr.IsValid():
			return m.ipam.claim(*addr)
		}
		var err error
		*addr, err = m.ipam.take(r)
		return err
	}
	if err := pick(&w.ipv4, m.cfg.IPv4Range); err != nil {
		return err
	}
	if err := pick(&w.ipv6, m.cfg.IPv6Range); err != nil {
		m.ipam.release(w.ipv4)
		return err
	}
	return nil
}

// activate lets packets flow once the kernel has the endpoint's rows.
func (m *endpoints) activate(ctx context.Context, ref fsm.EndpointRef, rev log.Revision, spec dataplane.InterfaceSpec) error {
	err := m.wait(ctx, rev)
	if err == nil {
		err = m.links.ActivateInterface(ctx, spec)
	}
	if err != nil {
		m.setState(ref, "not activated: "+err.Error())
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("endpoint %s: recorded at revision %d, but not connected; add it again: %w", name(ref), rev, err))
	}
	m.setState(ref, stateReady)
	return nil
}

// readd is an Add of what is there: it mends the interface and changes labels, ports
// and what is asked for the interface if others were given.
func (m *endpoints) readd(ctx context.Context, actor apiserver.Actor, old *fsm.Endpoint, w wanted) error {
	for _, a := range []struct{ want, have netip.Addr }{{w.ipv4, old.IPv4}, {w.ipv6, old.IPv6}} {
		if a.want.IsValid() && a.want != a.have {
			return connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("endpoint %s: exists with address %s, not %s; delete it first", name(w.ref), a.have, a.want))
		}
	}
	rev := old.Revision
	if !maps.Equal(old.Labels, w.labels) || old.ServiceAccount != w.sa || !samePorts(old.NamedPorts, w.ports) ||
		uint32(old.MTU) != w.mtu || old.BigTCP != w.bigTCP || old.AuditMode != w.audit {
		update := updateOf(old)
		update.Labels, update.ServiceAccount, update.NamedPorts, update.Mtu, update.BigTcp = w.labels, w.sa, w.ports, w.mtu, w.bigTCP
		update.PolicyAuditMode = w.audit
		var err error
		if rev, err = m.update(ctx, actor, update); err != nil {
			return err
		}
	}
	now := *old
	now.Netns, now.MTU, now.BigTCP = w.netns, uint16(w.mtu), w.bigTCP
	spec := m.specOf(&now)
	ifindex, err := m.links.EnsureInterface(ctx, spec)
	if err != nil {
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("endpoint %s: %w", name(w.ref), err))
	}
	if m.bind(spec.HostName, ifindex) {
		if err := m.resync(ctx); err != nil {
			return connect.NewError(connect.CodeUnavailable, err)
		}
	}
	return m.activate(ctx, w.ref, rev, spec)
}

// updateOf is the event that changes nothing of old.
func updateOf(old *fsm.Endpoint) *eventpb.EndpointUpdated {
	update := &eventpb.EndpointUpdated{
		Ref:         &eventpb.EndpointRef{Namespace: old.Ref.Namespace, Name: old.Ref.Name},
		Incarnation: old.Incarnation, Labels: old.Labels, ServiceAccount: old.ServiceAccount,
		Mtu: uint32(old.MTU), BigTcp: old.BigTCP, PolicyAuditMode: old.AuditMode,
	}
	for _, p := range old.NamedPorts {
		update.NamedPorts = append(update.NamedPorts, &eventpb.NamedPort{Name: p.Name, Protocol: uint32(p.Protocol), Port: uint32(p.Port)})
	}
	return update
}

func (m *endpoints) update(ctx context.Context, actor apiserver.Actor, update *eventpb.EndpointUpdated) (log.Revision, error) {
	rev, err := m.facts.append(ctx, actor, &eventpb.Event{Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: update}})
	if err != nil {
		return 0, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return rev, nil
}

// change appends what edit makes of a local endpoint, and waits until it is in force.
// What edit returns false for stays as it is.
func (m *endpoints) change(ctx context.Context, actor apiserver.Actor, ref fsm.EndpointRef, edit func(*eventpb.EndpointUpdated) (bool, error)) error {
	defer m.lock(ref)()
	old, ok := m.view().Endpoint(ref)
	if !ok {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("endpoint %s does not exist; `varve endpoint list` shows what does", name(ref)))
	}
	if old.Node != m.node {
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("endpoint %s: is on node %s; change it there", name(ref), old.Node))
	}
	update := updateOf(old)
	if changed, err := edit(update); err != nil || !changed {
		return err
	}
	rev, err := m.update(ctx, actor, update)
	if err != nil {
		return err
	}
	if err := m.wait(ctx, rev); err != nil {
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("endpoint %s: recorded at revision %d, but not in force in the kernel: %w", name(ref), rev, err))
	}
	return nil
}

// SetLabels implements apiserver.Endpoints.
func (m *endpoints) SetLabels(ctx context.Context, actor apiserver.Actor, ref fsm.EndpointRef, set map[string]string, remove []string) error {
	return m.change(ctx, actor, ref, func(u *eventpb.EndpointUpdated) (bool, error) {
		old := u.Labels
		u.Labels = maps.Clone(old)
		if u.Labels == nil {
			u.Labels = map[string]string{}
		}
		for _, k := range remove {
			if _, ok := set[k]; ok {
				return false, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("label %s: both set and removed", k))
			}
			delete(u.Labels, k)
		}
		maps.Copy(u.Labels, set)
		return !maps.Equal(u.Labels, old), nil
	})
}

// SetAuditMode implements apiserver.Endpoints.
func (m *endpoints) SetAuditMode(ctx context.Context, actor apiserver.Actor, ref fsm.EndpointRef, on bool) error {
	return m.change(ctx, actor, ref, func(u *eventpb.EndpointUpdated) (bool, error) {
		changed := u.PolicyAuditMode != on
		u.PolicyAuditMode = on
		return changed, nil
	})
}

// Delete implements apiserver.Endpoints.
func (m *endpoints) Delete(ctx context.Context, actor apiserver.Actor, ref fsm.EndpointRef) (bool, error) {
	defer m.lock(ref)()
	old, ok := m.view().Endpoint(ref)
	if !ok {
		return false, nil
	}
	if old.Node != m.node {
		return false, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("endpoint %s: is on node %s; delete it there", name(ref), old.Node))
	}
	return m.remove(ctx, actor, old)
}

// remove disconnects the container before it forgets it: its address is not free
// for another one while its interface could still send from it.
func (m *endpoints) remove(ctx context.Context, actor apiserver.Actor, old *fsm.Endpoint) (bool, error) {
	ctx = context.WithoutCancel(ctx)
	if err := m.links.RemoveInterface(ctx, old.HostInterface); err != nil {
		return false, connect.NewError(connect.CodeInternal, fmt.Errorf("endpoint %s: %w", name(old.Ref), err))
	}
	rev, err := m.facts.append(ctx, actor, &eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{
		Ref: &eventpb.EndpointRef{Namespace: old.Ref.Namespace, Name: old.Ref.Name}, Incarnation: old.Incarnation,
	}}})
	if err != nil {
		m.setState(old.Ref, "disconnected, but still recorded: "+err.Error())
		return false, connect.NewError(connect.CodeUnavailable, fmt.Errorf("endpoint %s: disconnected, but still recorded; delete it again: %w", name(old.Ref), err))
	}
	m.setState(old.Ref, stateReady)
	if err := m.wait(ctx, rev); err != nil {
		return true, connect.NewError(connect.CodeUnavailable, fmt.Errorf("endpoint %s: deleted at revision %d, but its rows are still in the kernel: %w", name(old.Ref), rev, err))
	}
	m.unbind(old.HostInterface)
	return true, nil
}

// bind notes an interface's index, and tells whether that is news.
func (m *endpoints) bind(host string, ifindex int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.bound[host]
	m.bound[host] = ifindex
	return !ok || old != ifindex
}

func (m *endpoints) unbind(host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.bound, host)
}

// specOf is the interface of an endpoint: as it was asked for, else as the agent has it.
func (m *endpoints) specOf(ep *fsm.Endpoint) dataplane.InterfaceSpec {
	s := dataplane.InterfaceSpec{
		HostName: ep.HostInterface, ContainerName: ep.ContainerInterface, NetnsPath: ep.Netns, MAC: ep.MAC, IPv4: ep.IPv4, IPv6: ep.IPv6,
		Gateway4: gateway(m.cfg.IPv4Range), Gateway6: gateway(m.cfg.IPv6Range), MTU: int(ep.MTU),
		BigTCP4: ep.BigTCP || m.cfg.IPv4BigTCP, BigTCP6: ep.BigTCP || m.cfg.IPv6BigTCP,
	}
	if s.MTU == 0 {
		s.MTU = m.cfg.MTU
	}
	return s
}

// hostName is the host side's name: stable, so that what a crash left half-made
// is found again, and within the kernel's 15 bytes.
func hostName(cluster, node string, ref fsm.EndpointRef) string {
	sum := sha256.Sum256([]byte(cluster + "\x00" + node + "\x00" + ref.Namespace + "\x00" + ref.Name))
	return hostPrefix + hex.EncodeToString(sum[:6])
}

// newMAC is a random, locally administered unicast address.
func newMAC() ([6]byte, error) {
	var mac [6]byte
	if _, err := rand.Read(mac[:]); err != nil {
		return mac, fmt.Errorf("mac: %w", err)
	}
	mac[0] = mac[0]&^1 | 2
	return mac, nil
}

func name(ref fsm.EndpointRef) string { return ref.Namespace + "/" + ref.Name }
