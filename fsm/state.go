package fsm

import (
	"errors"
	"fmt"
	"net/netip"
	"unicode/utf8"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// maxReason bounds the reason of a rejection, in bytes: it may quote an event.
const maxReason = 1024

// State is the fold of a log. It has one writer: its methods are never called at
// the same time. Readers take Views.
type State struct {
	tables
	identityIndex

	// They follow from the tables and are rebuilt from a snapshot.
	requestIndex   requestIndex
	requestsHashed uint64 // the position up to which requests are in tables.rows
	owners         map[netip.Addr]owner
	learned        map[string]int // addresses under all names of an endpoint, by its key
	staged         staging        // of all parts

	write   writers
	epoch   *epoch // since the last View
	scratch []byte
	decoded Decoded // of Apply and Fold
}

// owner is who has an address: an endpoint, or else a node.
type owner struct {
	endpoint EndpointRef
	node     string
}

func (o owner) String() string {
	if o.node != "" {
		return "node " + o.node
	}
	return "endpoint " + o.endpoint.String()
}

// String is "namespace/name".
func (r EndpointRef) String() string { return r.Namespace + "/" + r.Name }

// New returns the state of the empty log of a cluster. Events whose origin is
// another cluster are rejected.
func New(cluster string) *State {
	return &State{
		tables:        newTables(cluster),
		identityIndex: newIdentityIndex(),
		owners:        map[netip.Addr]owner{},
		write:         newWriters(),
		epoch:         new(epoch),
		learned:       map[string]int{},
	}
}

// View returns the state as it is now, in the time that it takes to hash the rows
// changed since the last one. The writer calls it; the View may then go to any
// goroutine.
func (s *State) View() View {
	s.settle()
	s.look()
	s.epoch = new(epoch)
	return View{s.freeze()}
}

// change is an event on its way through Apply.
type change struct {
	event *eventpb.Event
	kind  log.Kind
	rev   log.Revision // that it gets
	now   int64        // its effective time, nanoseconds since the Unix epoch
	// authorized: the origin may speak for its node, so its sequence number counts.
	authorized bool
	// tookEndpointID: the event used the NextEndpointID of its node.
	tookEndpointID bool
	// ahead is what was found out when the event was decoded.
	ahead *Decoded
}

// Apply folds one event, as its bytes stand in the log, into the state. What it
// does depends on the state and the bytes alone. The outcomes:
//
//   - OutcomeApplied: the event took a revision and the state holds it.
//   - OutcomeRejected: the event took a revision, the reason is in Record and
//     Result, and nothing else changed but what prevents a retry from being
//     recorded again: the request id and the node's journal sequence number.
//   - OutcomeConflict: no revision. The stream is not at the expected revision;
//     or the request id was used by another request, which Result.Reason says.
//     Result.Revision is the stream's.
//   - OutcomeRepeat: no revision. The request was seen before: Result.Revision is
//     the first one's, and Result.Reason is empty if that one was applied. Or the
//     node's journal sequence number was, and then Result.Revision is 0, since
//     the state keeps only the highest number.
//
// For the last two the Record is zero. The request id is looked at before
// anything else and the journal sequence number before the expected revision, so
// that a retry of what succeeded is a repeat and not a conflict.
//
// The error says that the node must stop: ErrUpgradeNeeded, or ErrCorrupt for
// bytes that are no event at all, which no appender writes (log.Marshal). The
// state is then unchanged. The Record's Event aliases event.
func (s *State) Apply(event []byte) (log.Record, log.Result, error) {
	s.decoded.Decode(event)
	return s.ApplyDecoded(&s.decoded)
}

// ApplyDecoded is Apply of an event that was decoded before, and is applied once only.
// d may be used for the next one then.
func (s *State) ApplyDecoded(d *Decoded) (log.Record, log.Result, error) {
	if err := d.err; err != nil {
		if corrupt, ok := errors.AsType[*log.CorruptError](err); ok {
			corrupt.Revision = s.revision + 1
			return log.Record{}, log.Result{}, err
		}
		return log.Record{}, log.Result{}, fmt.Errorf("revision %d: %w", s.revision+1, err)
	}
	e := d.event
	c := change{event: e, rev: s.revision + 1, now: max(s.timeNS, e.TimeUnixNs), ahead: d}
	s.begin(c.rev)

	remember := remembered(e)
	if remember {
		if first, ok := s.requestOf(&d.request); ok {
			return log.Record{}, s.seen(e, first, d.fingerprint), nil
		}
	}
	rejection := s.admit(&c)
	if rejection == nil {
		if r, ok := s.ordered(&c); !ok {
			return log.Record{}, r, nil
		}
		rejection = s.apply(&c)
	}

	record := log.Record{
		Revision: c.rev,
		TimeNS:   c.now,
		Outcome:  log.OutcomeApplied,
		Event:    d.bytes,
		Chain:    log.Next(s.chain, d.leaf),
	}
	if rejection != nil {
		record.Outcome, record.Reason = log.OutcomeRejected, clip(rejection.Error())
	}
	s.revision, s.timeNS, s.chain = record.Revision, record.TimeNS, record.Chain
	s.countNodeFact(&c)
	if remember {
		s.remember(&request{d.request, c.rev, record.Outcome, record.Reason, d.fingerprint})
	}
	if rejection == nil {
		s.collect(c.rev, c.now)
		s.collectStaged(c.now)
	}
	return record, log.Result{Outcome: record.Outcome, Revision: c.rev, Head: c.rev, Reason: record.Reason}, nil
}

// seen answers an event whose request id is in the window.
func (s *State) seen(e *eventpb.Event, first *request, fingerprint log.Hash) log.Result {
	if fingerprint == first.fingerprint {
		return log.Result{Outcome: log.OutcomeRepeat, Revision: first.revision, Head: s.revision, Reason: first.reason}
	}
	return log.Result{
		Outcome:  log.OutcomeConflict,
		Revision: s.streamRevision(e.Stream),
		Head:     s.revision,
		Reason:   fmt.Sprintf("request_id %q: used by another request at revision %d; give each request its own", e.RequestId, first.revision),
	}
}

// admit checks the envelope: an error rejects the event.
func (s *State) admit(c *change) error {
	d := c.ahead
	if c.kind = d.kind; d.role != nil {
		return d.role
	}
	if of := c.event.GetOrigin().GetCluster(); of != s.cluster {
		return fmt.Errorf("%w: origin.cluster: %.80q, this log is of cluster %q", log.ErrForbidden, of, s.cluster)
	}
	c.authorized = true
	return d.stream
}

// ordered checks where the event stands among others. If it is false, the event
// takes no revision and the Result is its answer.
func (s *State) ordered(c *change) (log.Result, bool) {
	e := c.event
	if e.JournalSeq != 0 {
		n, ok := s.node(e.Origin.Node)
		if ok && e.JournalSeq <= *n.seqOf(c.kind) {
			return log.Result{
				Outcome: log.OutcomeRepeat,
				Head:    s.revision,
				Reason:  fmt.Sprintf("journal_seq %d of node %s: seen before, it is at %d", e.JournalSeq, n.Name, *n.seqOf(c.kind)),
			}, false
		}
	}
	if e.ExpectedRevision != nil {
		if at := s.streamRevision(e.Stream); at != log.Revision(*e.ExpectedRevision) {
			return log.Result{
				Outcome:  log.OutcomeConflict,
				Revision: at,
				Head:     s.revision,
				Reason:   fmt.Sprintf("stream %s: at revision %d, expected %d", e.Stream, at, *e.ExpectedRevision),
			}, false
		}
	}
	return log.Result{}, true
}

// apply checks the payload and changes the state by it. An error rejects the
// event, and then nothing was changed.
func (s *State) apply(c *change) error {
	switch p := c.event.Payload.(type) {
	case *eventpb.Event_PolicySet:
		return s.policySet(c, p.PolicySet)
	case *eventpb.Event_PolicyDeleted:
		return s.policyDeleted(p.PolicyDeleted)
	case *eventpb.Event_NamespaceSet:
		return s.namespaceSet(c, p.NamespaceSet)
	case *eventpb.Event_NamespaceDeleted:
		return s.namespaceDeleted(p.NamespaceDeleted)
	case *eventpb.Event_EndpointCreated:
		return s.endpointCreated(c)
	case *eventpb.Event_EndpointUpdated:
		return s.endpointUpdated(c, p.EndpointUpdated)
	case *eventpb.Event_EndpointDeleted:
		return s.endpointDeleted(c, p.EndpointDeleted)
	case *eventpb.Event_NodeJoined:
		return s.nodeJoined(c, p.NodeJoined)
	case *eventpb.Event_NodeUpdated:
		return s.nodeUpdated(c, p.NodeUpdated)
	case *eventpb.Event_NodeLeft:
		return s.nodeLeft(c, p.NodeLeft)
	case *eventpb.Event_DnsObserved:
		return s.dnsObserved(c, p.DnsObserved)
	case *eventpb.Event_DnsCollected:
		return s.dnsCollected(c, p.DnsCollected)
	case *eventpb.Event_SnapshotStaged:
		return s.snapshotStaged(c, p.SnapshotStaged)
	case *eventpb.Event_SnapshotRestored:
		return s.snapshotRestored(c, p.SnapshotRestored)
	case *eventpb.Event_SnapshotAbandoned:
		return s.snapshotAbandoned(c, p.SnapshotAbandoned)
	default:
		return fmt.Errorf("%w: payload: none is set", log.ErrInvalid)
	}
}

// countNodeFact moves the counters of the node whose fact it was.
func (s *State) countNodeFact(c *change) {
	seq := c.event.JournalSeq
	if !c.authorized || !c.kind.IsNodeFact() || seq == 0 && !c.tookEndpointID {
		return
	}
	cell, ok := s.write.node.find(s.nodes, c.event.Origin.Node)
	if !ok {
		return
	}
	n := s.editNode(cell)
	at := n.seqOf(c.kind)
	*at = max(*at, seq)
	if c.tookEndpointID {
		n.NextEndpointID++
	}
}

// seqOf is the counter that facts of a kind move.
func (n *Node) seqOf(k log.Kind) *uint64 {
	if k.IsDNSFact() {
		return &n.DNSSeq
	}
	return &n.JournalSeq
}

// clip cuts a reason to maxReason bytes, at the boundary of a character.
func clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	end := maxReason - len("...")
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "..."
}
