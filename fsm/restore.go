package fsm

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// loader makes a State of a snapshot's records. It trusts none of them: a file
// that a State did not write is refused, not repaired.
type loader struct {
	s      *State
	digest log.Hash
	// section and key are of the record before: sections come in order and each
	// has its rows in the order of keys.
	section int
	key     string
	ids     map[nodeEndpoint]bool
}

type nodeEndpoint struct {
	node string
	id   uint32
}

func newLoader(h *eventpb.SnapshotHeader) (*loader, error) {
	s := New(h.Cluster)
	l := &loader{s: s, ids: map[nodeEndpoint]bool{}}
	var ok bool
	if l.digest, ok = hashOf(h.Digest); !ok {
		return nil, corruptf("digest: %d bytes, want 32", len(h.Digest))
	}
	if s.chain, ok = hashOf(h.Chain); !ok {
		return nil, corruptf("chain: %d bytes, want 32", len(h.Chain))
	}
	if h.Format != snapshotFormat {
		return nil, corruptf("format: %d was never written", h.Format)
	}
	if h.NextIdentity < minIdentity || h.NextIdentity > maxIdentity {
		return nil, corruptf("next_identity: %d", h.NextIdentity)
	}
	if h.TimeUnixNs < 0 || (h.Revision == 0) != s.chain.IsZero() {
		return nil, corruptf("revision %d at time %d has chain %s", h.Revision, h.TimeUnixNs, s.chain)
	}
	s.revision, s.timeNS, s.nextIdentity = log.Revision(h.Revision), h.TimeUnixNs, h.NextIdentity
	return l, nil
}

func hashOf(b []byte) (h log.Hash, ok bool) {
	copy(h[:], b)
	return h, len(b) == len(h)
}

func (l *loader) add(r *eventpb.SnapshotRecord) error {
	switch p := r.Record.(type) {
	case *eventpb.SnapshotRecord_Namespace:
		return named("namespace", p.Namespace.GetSet().GetName(), l.namespace(p.Namespace))
	case *eventpb.SnapshotRecord_Node:
		return named("node", p.Node.GetJoined().GetName(), l.node(p.Node))
	case *eventpb.SnapshotRecord_Identity:
		return named("identity", fmt.Sprint(p.Identity.GetId()), l.identity(p.Identity))
	case *eventpb.SnapshotRecord_Endpoint:
		ref := p.Endpoint.GetCreated().GetRef()
		return named("endpoint", ref.GetNamespace()+"/"+ref.GetName(), l.endpoint(p.Endpoint))
	case *eventpb.SnapshotRecord_Policy:
		return named("policy", p.Policy.GetSet().GetRef().GetName(), l.policy(p.Policy))
	case *eventpb.SnapshotRecord_Request:
		return named("request", p.Request.GetId(), l.request(p.Request))
	case *eventpb.SnapshotRecord_Name:
		return named("name", p.Name.GetName(), l.name(p.Name))
	case *eventpb.SnapshotRecord_Part:
		return named("part", fmt.Sprint(p.Part.GetStaged().GetPart()), l.part(p.Part))
	default:
		return corruptf("empty")
	}
}

func named(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return corruptf("%s %.300q: %v", what, name, err)
}

// Sections, in their order.
const (
	sectionNamespaces = iota
	sectionNodes
	sectionIdentities
	sectionEndpoints
	sectionPolicies
	sectionRequests
	sectionNames
	sectionParts
)

// next checks the order of records. key is never empty.
func (l *loader) next(section int, key string) error {
	if cmp.Or(cmp.Compare(l.section, section), cmp.Compare(l.key, key)) >= 0 {
		return errors.New("out of order")
	}
	l.section, l.key = section, key
	return nil
}

// revisions checks that each is a revision of this log, and none is before the
// one to its left.
func (l *loader) revisions(revs ...uint64) error {
	last := uint64(1)
	for _, r := range revs {
		if r < last || r > uint64(l.s.revision) {
			return fmt.Errorf("revision %d is not from %d to %d", r, last, l.s.revision)
		}
		last = r
	}
	return nil
}

func (l *loader) namespace(pb *eventpb.SnapshotNamespace) error {
	n := Namespace{Name: pb.GetSet().GetName(), Labels: pb.GetSet().GetLabels(), Revision: log.Revision(pb.Revision)}
	if err := checkNamespace(n.Name, n.Labels); err != nil {
		return err
	}
	if err := l.next(sectionNamespaces, n.Name); err != nil {
		return err
	}
	l.s.putNamespace(n)
	return l.revisions(pb.Revision)
}

func (l *loader) node(pb *eventpb.SnapshotNode) error {
	j := pb.GetJoined()
	n, err := nodeFacts(j.GetName(), j.GetAddresses(), j.GetEndpointCidrs(), j.GetKubeApiserver(), j.GetPolicyAuditMode())
	if err != nil {
		return err
	}
	if pb.NextEndpointId == 0 {
		return errors.New("next_endpoint_id is 0")
	}
	if err := l.next(sectionNodes, n.Name); err != nil {
		return err
	}
	n.Left, n.JournalSeq, n.DNSSeq, n.NextEndpointID = pb.Left, pb.JournalSeq, pb.DnsSeq, pb.NextEndpointId
	n.Revision = log.Revision(pb.Revision)
	if !n.Left {
		for _, a := range n.Addresses {
			if has, taken := l.s.owners[a]; taken {
				return fmt.Errorf("address %s: %s has it", a, has)
			}
			l.s.owners[a] = owner{node: n.Name}
		}
	}
	l.s.putNode(n)
	return l.revisions(pb.Revision)
}

func (l *loader) identity(pb *eventpb.SnapshotIdentity) error {
	i := Identity{
		ID:               pb.Id,
		Revision:         log.Revision(pb.Revision),
		ReleasedRevision: log.Revision(pb.ReleasedRevision),
		ReleasedTimeNS:   pb.ReleasedTimeUnixNs,
	}
	if i.ID < minIdentity || i.ID > maxIdentity {
		return fmt.Errorf("number is not from %d to %d", minIdentity, maxIdentity)
	}
	for _, text := range pb.Labels {
		label, err := policy.ParseLabel(text)
		if err != nil {
			return err
		}
		if label.String() != text {
			return fmt.Errorf("label %q is not canonical", text)
		}
		i.Labels = append(i.Labels, label)
	}
	if !policy.NewLabels(i.Labels...).Equal(i.Labels) {
		return errors.New("labels are not sorted")
	}
	key := string(labelKey(nil, i.Labels))
	if other, ok := l.s.byLabels[key]; ok {
		return fmt.Errorf("identity %d has the same labels", other)
	}
	if err := l.next(sectionIdentities, fmt.Sprintf("%05d", i.ID)); err != nil {
		return err
	}
	released := pb.Revision
	if i.ReleasedRevision == 0 {
		if i.ReleasedTimeNS != 0 {
			return fmt.Errorf("released at time %d but at no revision", i.ReleasedTimeNS)
		}
	} else if released = pb.ReleasedRevision; i.ReleasedTimeNS < 0 || i.ReleasedTimeNS > l.s.timeNS {
		return fmt.Errorf("released at time %d, the log is at %d", i.ReleasedTimeNS, l.s.timeNS)
	}
	l.s.byLabels[key] = i.ID
	l.s.putIdentity(i)
	return l.revisions(pb.Revision, released)
}

func (l *loader) endpoint(pb *eventpb.SnapshotEndpoint) error {
	e, err := endpointFacts(pb.GetCreated())
	if err != nil {
		return err
	}
	key := e.Ref.key()
	if err := l.next(sectionEndpoints, key); err != nil {
		return err
	}
	e.ID, e.Identity = pb.Id, pb.Identity
	e.Created, e.Revision = log.Revision(pb.CreatedRevision), log.Revision(pb.Revision)
	e.IdentityRevision = log.Revision(pb.IdentityRevision)

	node, ok := lookup(l.s.nodes, e.Node)
	if !ok || node.Left {
		return fmt.Errorf("node %s has not joined", e.Node)
	}
	at := nodeEndpoint{e.Node, e.ID}
	if e.ID == 0 || e.ID >= node.NextEndpointID || l.ids[at] {
		return fmt.Errorf("id %d of node %s, whose next is %d", e.ID, e.Node, node.NextEndpointID)
	}
	l.ids[at] = true
	identity, ok := l.s.tables.identities.Get(e.Identity)
	if !ok || identity.row.ReleasedRevision != 0 {
		return fmt.Errorf("identity %d is not in use", e.Identity)
	}
	want := l.s.securityLabels(&e, l.s.namespaceLabels(e.Ref.Namespace))
	if !identity.row.Labels.Equal(want) {
		return fmt.Errorf("identity %d is of %s, want %s", e.Identity, identity.row.Labels, want)
	}
	l.s.refer(e.Identity, 1)
	if err := l.ownOnce(&e); err != nil {
		return err
	}
	l.s.putEndpoint(key, e)
	return l.revisions(pb.CreatedRevision, pb.IdentityRevision, pb.Revision)
}

func (l *loader) ownOnce(e *Endpoint) error {
	for _, a := range e.addresses() {
		if has, taken := l.s.owners[a]; taken {
			return fmt.Errorf("address %s: %s has it", a, has)
		}
	}
	l.s.own(e)
	return nil
}

func (l *loader) policy(pb *eventpb.SnapshotPolicy) error {
	compiled, err := policy.Compile(pb.Set)
	if err != nil {
		return err
	}
	if err := l.next(sectionPolicies, policyKey(compiled.Ref)); err != nil {
		return err
	}
	l.s.putPolicy(Policy{
		Policy:   compiled,
		Set:      pb.Set,
		Created:  log.Revision(pb.CreatedRevision),
		Revision: log.Revision(pb.Revision),
	})
	return l.revisions(pb.CreatedRevision, pb.Revision)
}

func (l *loader) request(pb *eventpb.SnapshotRequest) error {
	r := request{
		revision: log.Revision(pb.Revision),
		outcome:  log.Outcome(pb.Outcome),
		reason:   pb.Reason,
	}
	var ok bool
	if r.fingerprint, ok = hashOf(pb.Fingerprint); !ok {
		return fmt.Errorf("fingerprint: %d bytes, want 32", len(pb.Fingerprint))
	}
	rejected := uint32(log.OutcomeRejected)
	if pb.Outcome != uint32(log.OutcomeApplied) && pb.Outcome != rejected || (pb.Outcome == rejected) != (r.reason != "") {
		return fmt.Errorf("outcome %d with reason %.80q", pb.Outcome, r.reason)
	}
	if len(pb.Id) == 0 || len(pb.Id) > maxRequestID || len(r.reason) > maxReason {
		return fmt.Errorf("id of %d bytes, reason of %d", len(pb.Id), len(r.reason))
	}
	r.id = newRequestID(pb.Id)
	if _, ok := l.s.requestOf(&r.id); ok {
		return errors.New("given twice")
	}
	if l.s.requests.len() == requestWindow {
		return fmt.Errorf("more than %d", requestWindow)
	}
	if err := l.next(sectionRequests, fmt.Sprintf("%020d", pb.Revision)); err != nil {
		return err
	}
	l.s.remember(&r)
	return l.revisions(pb.Revision)
}

func (l *loader) name(pb *eventpb.SnapshotName) error {
	n := Name{Endpoint: EndpointRef{pb.GetRef().GetNamespace(), pb.GetRef().GetName()}, Name: pb.Name, Chain: pb.Chain, Revision: log.Revision(pb.Revision)}
	if err := checkNames(n.Name, n.Chain); err != nil {
		return err
	}
	if len(pb.Addresses) == 0 {
		return errors.New("without an address")
	}
	key := n.Endpoint.key()
	e, ok := lookup(l.s.endpoints, key)
	if !ok {
		return fmt.Errorf("endpoint %s does not exist", n.Endpoint)
	}
	revisions := []uint64{pb.Revision}
	for i, x := range pb.Addresses {
		a, err := address(x.Address)
		if err != nil {
			return fmt.Errorf("addresses[%d]: %w", i, err)
		}
		if i > 0 && n.Addresses[i-1].Addr.Compare(a) >= 0 {
			return fmt.Errorf("addresses[%d]: out of order", i)
		}
		if x.ExpiresUnixNs <= 0 || x.Revision > pb.Revision || log.Revision(x.Revision) < e.Created {
			return fmt.Errorf("addresses[%d]: expires at %d, of revision %d", i, x.ExpiresUnixNs, x.Revision)
		}
		n.Addresses = append(n.Addresses, NameAddress{a, x.ExpiresUnixNs, log.Revision(x.Revision)})
	}
	if l.s.learned[key] += len(n.Addresses); l.s.learned[key] > maxLearned {
		return fmt.Errorf("more than %d addresses", maxLearned)
	}
	if err := l.next(sectionNames, nameKey(key, n.Name)); err != nil {
		return err
	}
	l.s.putName(nameKey(key, n.Name), n)
	return l.revisions(revisions...)
}

func (l *loader) part(pb *eventpb.SnapshotPart) error {
	p := part{restore: pb.GetStaged().GetRestore(), set: pb.GetStaged(), node: pb.Node, revision: log.Revision(pb.Revision), timeNS: pb.TimeUnixNs}
	if err := checkRestore(p.restore); err != nil {
		return err
	}
	if of := l.s.staged.Restore; of != "" && of != p.restore {
		return fmt.Errorf("is of restore %s, the one before of %s", p.restore, of)
	}
	if p.timeNS < l.s.staged.TimeNS || p.timeNS > l.s.timeNS {
		return fmt.Errorf("staged at time %d, the one before at %d, the log is at %d", p.timeNS, l.s.staged.TimeNS, l.s.timeNS)
	}
	var err error
	if p.policies, err = compileAll(p.set.Policies); err != nil {
		return err
	}
	if err := l.next(sectionParts, fmt.Sprintf("%010d", p.set.Part)); err != nil {
		return err
	}
	if err := l.s.staged.add(&p); err != nil {
		return err
	}
	l.s.putPart(p)
	return l.revisions(pb.Revision)
}

// finish checks what only the whole can tell.
func (l *loader) finish() (*State, error) {
	for i := range all(l.s.tables.identities) {
		if (i.Refs == 0) != (i.ReleasedRevision != 0) {
			return nil, corruptf("identity %d: %d endpoints have it, released at revision %d", i.ID, i.Refs, i.ReleasedRevision)
		}
	}
	l.s.rebuildReleased()
	if got := l.s.sum(); got != l.digest {
		return nil, corruptf("digest: the header has %s, the rows have %s", l.digest, got)
	}
	return l.s, nil
}
