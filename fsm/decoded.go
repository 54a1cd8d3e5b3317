package fsm

import (
	"fmt"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// Decoded is an event that is ready for ApplyDecoded. It may be used for one event
// after the other, and is not to be copied.
type Decoded struct {
	decoder     log.Decoder
	bytes       []byte
	event       *eventpb.Event
	leaf        log.Hash
	request     requestID
	fingerprint log.Hash // only if the request id is remembered
	err         error

	// What of the checks depends on the event alone, in the order in which an event
	// is rejected: by its envelope, then by its payload.
	kind       log.Kind
	role       error // what it is and who may append it
	stream     error // its stream and journal sequence number
	policy     *policy.Policy
	policies   []*policy.Policy
	endpoint   Endpoint // what the event says of it; none of its strings are for keeps
	workload   []byte   // workloadKey of endpoint
	payloadErr error
}

// Decode does what of Apply does not depend on the state, which is half of its
// work: a replay decodes ahead, in other goroutines, and applies in one. The bytes
// must stay as they are until the event was applied.
func (d *Decoded) Decode(event []byte) {
	d.bytes, d.kind, d.role, d.stream = event, 0, nil, nil
	d.policy, d.policies, d.payloadErr = nil, nil, nil
	if d.event, d.err = d.decoder.Unmarshal(event); d.err != nil {
		return
	}
	d.leaf = log.Leaf(event)
	if remembered(d.event) {
		d.request, d.fingerprint = newRequestID(d.event.RequestId), log.Fingerprint(event, d.event)
	}
	d.check()
}

// check does the checks that need no state.
func (d *Decoded) check() {
	e := d.event
	if d.kind, d.role = checkRole(e); d.role != nil {
		return
	}
	if d.stream = checkStream(e, d.kind); d.stream != nil {
		return
	}
	switch p := e.Payload.(type) {
	case *eventpb.Event_PolicySet:
		d.policy, d.payloadErr = policy.CompileStored(p.PolicySet)
	case *eventpb.Event_EndpointCreated:
		d.endpoint, d.payloadErr = endpointFacts(p.EndpointCreated)
		d.workload = workloadKey(d.workload[:0], &d.endpoint)
	case *eventpb.Event_EndpointUpdated:
		d.endpoint, d.payloadErr = endpointChanges(p.EndpointUpdated)
		d.workload = workloadKey(d.workload[:0], &d.endpoint)
	case *eventpb.Event_SnapshotStaged:
		d.policies, d.payloadErr = compileAll(p.SnapshotStaged.Policies)
	}
}

// remembered tells whether an event's request id is kept to find its repeats.
func remembered(e *eventpb.Event) bool { return e.RequestId != "" && len(e.RequestId) <= maxRequestID }

// checkRole tells what an event is, and whether its actor may append that.
func checkRole(e *eventpb.Event) (log.Kind, error) {
	if len(e.RequestId) > maxRequestID {
		return 0, fmt.Errorf("request_id: %d bytes, the most is %d", len(e.RequestId), maxRequestID)
	}
	kind, err := log.KindOf(e)
	if err != nil {
		return 0, err
	}
	return kind, log.Authorize(e)
}

func checkStream(e *eventpb.Event, kind log.Kind) error {
	if err := log.CheckStream(e); err != nil {
		return err
	}
	if e.JournalSeq != 0 && !kind.IsNodeFact() {
		return fmt.Errorf("journal_seq: %d, but only facts of a node are numbered, and %s is none", e.JournalSeq, kind)
	}
	return nil
}
