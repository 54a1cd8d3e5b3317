package agent

import (
	"context"
	"strings"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
)

// adopt finds the interfaces of the endpoints in the log, without touching what
// is whole: under traffic this changes nothing but the programs behind the links.
// What has no interface any more (its container is gone, or the machine was
// restarted) stays in the log, is reported by status, and waits for its delete.
func (m *endpoints) adopt(ctx context.Context) error {
	for _, ep := range m.local() {
		ifindex, err := m.links.AdoptInterface(ctx, ep.HostInterface)
		if err == nil {
			m.bind(ep.HostInterface, ifindex)
			continue
		}
		if id, nerr := dataplane.NetnsID(ep.Netns); nerr == nil && id == ep.NetnsID {
			// Its container lives: a crash came between event and interface.
			if ifindex, err = m.links.EnsureInterface(ctx, m.specOf(ep)); err == nil {
				m.bind(ep.HostInterface, ifindex)
				continue
			}
		}
		m.setState(ep.Ref, "no interface: "+err.Error())
		m.logger.Warn("endpoint has no interface; delete it, or add it again", "endpoint", name(ep.Ref), "error", err)
	}
	return nil
}

// recover finishes what a crash left half done, once the rows are in the kernel:
// it activates every endpoint whose container is there, and removes interfaces
// that no endpoint in the log has.
func (m *endpoints) recover(ctx context.Context) {
	known := map[string]bool{}
	for _, ep := range m.local() {
		known[ep.HostInterface] = true
		if m.State(ep.Ref) != stateReady {
			continue
		}
		if id, err := dataplane.NetnsID(ep.Netns); err != nil || id != ep.NetnsID {
			continue
		}
		if err := m.links.ActivateInterface(ctx, m.specOf(ep)); err != nil {
			m.setState(ep.Ref, "not activated: "+err.Error())
			m.logger.Warn("endpoint is not connected; add it again", "endpoint", name(ep.Ref), "error", err)
		}
	}
	links, err := m.links.ListInterfaces(ctx)
	if err != nil {
		m.logger.Warn("stale interfaces are not looked for", "error", err)
		return
	}
	for _, host := range links {
		if known[host] || !strings.HasPrefix(host, hostPrefix) {
			continue
		}
		if err := m.links.RemoveInterface(ctx, host); err != nil {
			m.logger.Warn("stale interface stays", "interface", host, "error", err)
			continue
		}
		m.logger.Info("removed an interface that a crash had left half-made", "interface", host)
	}
}

// local lists this node's endpoints.
func (m *endpoints) local() []*fsm.Endpoint { return m.locals.of(m.view()) }
