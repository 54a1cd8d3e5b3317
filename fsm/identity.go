package fsm

import (
	"cmp"
	"container/list"
	"errors"
	"slices"
	"strings"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// Numbers of identities: below are the reserved ones, as in Cilium; above are
// cluster ids and node-local scopes.
const (
	minIdentity   = 256
	maxIdentity   = 65535
	identityCount = maxIdentity - minIdentity + 1
)

// A number without endpoints is kept for its labels until both have passed since
// its release. The revisions let every projection and every node's map forget
// it, the time lets packets in flight and lagging nodes do so, and a rolling
// restart of a workload finds its old number again.
const (
	graceRevisions = 10_000
	graceNS        = 10 * 60 * 1_000_000_000
)

var errIdentitiesExhausted = errors.New("identities: all 65280 numbers are taken; " +
	"use fewer distinct label sets, or retry when released numbers are 10 minutes and 10000 revisions old")

// identityIndex finds identities in ways that the tables do not. It follows from
// them and is rebuilt from a snapshot.
type identityIndex struct {
	byLabels map[string]uint32 // by labelKey
	// known remembers the needs of workloads seen before, by namespace and
	// workloadKey. A namespace's are replaced when its labels change.
	known      map[string]map[string]*need
	knownCount int
	// released holds the numbers with no endpoint, the longest released first.
	released   *list.List
	releasedAt map[uint32]*list.Element
}

func newIdentityIndex() identityIndex {
	return identityIndex{
		byLabels:   map[string]uint32{},
		known:      map[string]map[string]*need{},
		released:   list.New(),
		releasedAt: map[uint32]*list.Element{},
	}
}

// labelKey is the canonical form of a label set.
func labelKey(b []byte, labels policy.Labels) []byte {
	for i := range labels {
		b = appendString(b, labels[i].Source)
		b = appendString(b, labels[i].Key)
		b = appendString(b, labels[i].Value)
	}
	return b
}

// need is a label set for which an event needs an identity.
type need struct {
	labels policy.Labels
	key    string
	// workload and account are the endpoint's own part of the labels. The endpoints
	// that have the need share them.
	workload map[string]string
	account  string
	// id is that of the labels as long as the number's row is of that revision. It
	// spares hashing a long key.
	id       uint32
	revision log.Revision
}

// identityOf finds the identity that a need's labels have, if they have one.
func (s *State) identityOf(n *need) (uint32, bool) {
	if c, ok := s.write.identity.find(s.tables.identities, n.id); ok && c.row.Revision == n.revision {
		return n.id, true
	}
	id, ok := s.byLabels[n.key]
	if ok {
		c, _ := s.write.identity.find(s.tables.identities, id)
		n.id, n.revision = id, c.row.Revision
	}
	return id, ok
}

// maxKnown bounds the memory of needs.
const maxKnown = 16384

// needOf is the label set for which an endpoint of a namespace needs an identity, from
// its workload's labels and account. Most come many times over, and to make one costs
// more than to find it. The need keeps nothing of the endpoint.
func (s *State) needOf(namespace string, e *Endpoint, workload []byte) *need {
	if n, ok := s.known[namespace][string(workload)]; ok {
		return n
	}
	own := Endpoint{Ref: EndpointRef{Namespace: strings.Clone(namespace)}, ServiceAccount: strings.Clone(e.ServiceAccount)}
	if len(e.Labels) > 0 {
		labels := make(map[string]string, len(e.Labels))
		//purity:ordered clones of different keys are different keys
		for k, v := range e.Labels {
			labels[strings.Clone(k)] = strings.Clone(v)
		}
		own.Labels = labels
	}
	n := s.makeNeed(&own, s.namespaceLabels(own.Ref.Namespace))
	if s.knownCount == maxKnown {
		clear(s.known)
		s.knownCount = 0
	}
	of := s.known[own.Ref.Namespace]
	if of == nil {
		of = map[string]*need{}
		s.known[own.Ref.Namespace] = of
	}
	of[string(workload)] = n
	s.knownCount++
	return n
}

// know replaces what is remembered of a namespace.
func (s *State) know(namespace string, needs map[string]*need) {
	s.knownCount -= len(s.known[namespace])
	delete(s.known, namespace)
	if n := s.knownCount + len(needs); len(needs) > 0 && n <= maxKnown {
		s.known[namespace], s.knownCount = needs, n
	}
}

// makeNeed is needOf of an endpoint whose strings are for keeps, under the labels of a
// namespace.
func (s *State) makeNeed(e *Endpoint, nsLabels map[string]string) *need {
	labels := s.securityLabels(e, nsLabels)
	s.scratch = labelKey(s.scratch[:0], labels)
	return &need{labels: labels, key: string(s.scratch), workload: e.Labels, account: e.ServiceAccount}
}

// workloadKey is what, with its namespace's labels, decides an endpoint's
// security labels.
func workloadKey(b []byte, e *Endpoint) []byte {
	b = appendString(b, e.ServiceAccount)
	return appendMap(b, e.Labels)
}

// securityLabels is the labels that an endpoint's identity has.
func (t *tables) securityLabels(e *Endpoint, nsLabels map[string]string) policy.Labels {
	return policy.EndpointLabels(t.cluster, e.Ref.Namespace, nsLabels, e.Labels, e.ServiceAccount)
}

// namespaceLabels is the labels that endpoints inherit: of a namespace that was
// never set only its name.
func (t *tables) namespaceLabels(name string) map[string]string {
	if ns, ok := lookup(t.namespaces, name); ok {
		return ns.Labels
	}
	return map[string]string{labelNamespaceName: name}
}

// canAcquire tells whether there are numbers for all needs, and changes nothing.
func (s *State) canAcquire(needs []*need, rev log.Revision, now int64) error {
	if s.tables.identities.Len()+len(needs) <= identityCount {
		return nil
	}
	fresh := map[string]bool{}
	kept := map[uint32]bool{}
	for _, n := range needs {
		if id, ok := s.identityOf(n); ok {
			kept[id] = true
		} else {
			fresh[n.key] = true
		}
	}
	over := s.tables.identities.Len() + len(fresh) - identityCount
	if len(fresh) == 0 || over <= 0 {
		return nil
	}
	for el := s.released.Front(); el != nil && over > 0; el = el.Next() {
		i := s.releasedIdentity(el)
		if !i.collectable(rev, now) {
			break
		}
		if !kept[i.ID] {
			over--
		}
	}
	if over > 0 {
		return errIdentitiesExhausted
	}
	return nil
}

// acquire takes one reference for each need and returns the numbers, in order.
// canAcquire has said that there are enough.
func (s *State) acquire(needs []*need, rev log.Revision, now int64) []uint32 {
	ids := make([]uint32, len(needs))
	for i, n := range needs { // first what exists, so that collect leaves it alone
		if id, ok := s.identityOf(n); ok {
			s.retain(id)
			ids[i] = id
		}
	}
	for i, n := range needs {
		if ids[i] != 0 {
			continue
		}
		if id, ok := s.identityOf(n); ok { // an earlier need of this event
			s.retain(id)
			ids[i] = id
			continue
		}
		if s.tables.identities.Len() == identityCount {
			s.collect(rev, now)
		}
		ids[i] = s.allocate(n, rev)
	}
	return ids
}

func (s *State) allocate(n *need, rev log.Revision) uint32 {
	id := s.nextIdentity
	for {
		if _, taken := s.tables.identities.Get(id); !taken {
			break
		}
		id = following(id)
	}
	s.nextIdentity = following(id)
	s.putIdentity(Identity{ID: id, Labels: n.labels, Refs: 1, Revision: rev})
	s.byLabels[n.key] = id
	return id
}

func following(id uint32) uint32 {
	if id == maxIdentity {
		return minIdentity
	}
	return id + 1
}

// retain adds a reference to an identity that exists.
func (s *State) retain(id uint32) {
	i := s.refer(id, 1)
	if i.Refs > 1 {
		return
	}
	s.released.Remove(s.releasedAt[id])
	delete(s.releasedAt, id)
	row := *i
	row.ReleasedRevision, row.ReleasedTimeNS = 0, 0
	s.putIdentity(row)
}

// release takes a reference away.
func (s *State) release(id uint32, rev log.Revision, now int64) {
	i := s.refer(id, -1)
	if i.Refs > 0 {
		return
	}
	row := *i
	row.ReleasedRevision, row.ReleasedTimeNS = rev, now
	s.putIdentity(row)
	s.releasedAt[id] = s.released.PushBack(id)
}

// collect frees every number that was released long enough ago. Both clocks only
// go forward, so the first that was not ends the search.
func (s *State) collect(rev log.Revision, now int64) {
	for el := s.released.Front(); el != nil; el = s.released.Front() {
		i := s.releasedIdentity(el)
		if !i.collectable(rev, now) {
			return
		}
		s.released.Remove(el)
		delete(s.releasedAt, i.ID)
		s.scratch = labelKey(s.scratch[:0], i.Labels)
		delete(s.byLabels, string(s.scratch))
		s.note(Change{Kind: ChangeIdentity, identity: i.ID})
		remove(s, s.tables.identities, &s.write.identity, i.ID)
	}
}

func (s *State) releasedIdentity(el *list.Element) *Identity {
	id, _ := el.Value.(uint32)
	c, _ := s.write.identity.find(s.tables.identities, id)
	return &c.row
}

func (i *Identity) collectable(rev log.Revision, now int64) bool {
	return rev-i.ReleasedRevision >= graceRevisions && now-i.ReleasedTimeNS >= graceNS
}

// rebuildReleased orders the released identities as the events released them.
// Within one revision any order will do: they are freed together.
func (s *State) rebuildReleased() {
	var free []*Identity
	for i := range all(s.tables.identities) {
		if i.Refs == 0 {
			free = append(free, i)
		}
	}
	slices.SortFunc(free, func(a, b *Identity) int {
		return cmp.Or(cmp.Compare(a.ReleasedRevision, b.ReleasedRevision), cmp.Compare(a.ID, b.ID))
	})
	for _, i := range free {
		s.releasedAt[i.ID] = s.released.PushBack(i.ID)
	}
}
