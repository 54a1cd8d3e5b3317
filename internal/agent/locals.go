package agent

import (
	"cmp"
	"slices"
	"sync"

	"github.com/varve-net/varve/fsm"
)

// locals is the endpoints of this node, which a View has among those of the whole
// cluster: found once, and from then on kept by what changed. Safe for concurrent use.
type locals struct {
	node string

	mu    sync.Mutex
	view  fsm.View // that was looked at last
	byRef map[fsm.EndpointRef]*fsm.Endpoint
	byID  []*fsm.Endpoint // ascending; never written to once it was returned
}

func newLocals(node string) *locals { return &locals{node: node} }

// of is the node's endpoints in a View, by id. Do not change them.
func (l *locals) of(view fsm.View) []*fsm.Endpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	changes, ok := view.ChangesSince(l.view)
	switch {
	case !ok:
		l.byRef = make(map[fsm.EndpointRef]*fsm.Endpoint)
		for e := range view.Endpoints() {
			l.set(e.Ref, e)
		}
		l.sort()
	case l.follow(view, changes):
		l.sort()
	}
	l.view = view
	return l.byID
}

// follow tells whether one of the node's endpoints came, went or changed.
func (l *locals) follow(view fsm.View, changes []fsm.Change) bool {
	touched := false
	for _, c := range changes {
		if c.Kind == fsm.ChangeEndpoint {
			e, _ := view.Endpoint(c.Endpoint())
			touched = l.set(c.Endpoint(), e) || touched
		}
	}
	return touched
}

// set notes what an endpoint is now, nil if it is gone, and tells whether it is or was
// one of the node.
func (l *locals) set(ref fsm.EndpointRef, e *fsm.Endpoint) bool {
	if e != nil && e.Node == l.node {
		l.byRef[ref] = e
		return true
	}
	_, was := l.byRef[ref]
	delete(l.byRef, ref)
	return was
}

func (l *locals) sort() {
	l.byID = make([]*fsm.Endpoint, 0, len(l.byRef))
	for _, e := range l.byRef {
		l.byID = append(l.byID, e)
	}
	slices.SortFunc(l.byID, func(a, b *fsm.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
}
