package log

import (
	"bytes"

	"github.com/varve-net/varve/log/eventpb"
)

// Decoder decodes one event after the other, into an envelope that is used again. For
// events about endpoints, of which most of a log consists, it makes neither copies nor
// new messages at all. The zero value is ready; it is for one goroutine at a time, and
// not to be copied.
type Decoder struct {
	event   eventpb.Event
	actor   eventpb.Actor
	origin  eventpb.Origin
	ref     eventpb.EndpointRef
	created eventpb.EndpointCreated
	updated eventpb.EndpointUpdated
	deleted eventpb.EndpointDeleted

	// The same as payloads.
	asCreated eventpb.Event_EndpointCreated
	asUpdated eventpb.Event_EndpointUpdated
	asDeleted eventpb.Event_EndpointDeleted
}

// Unmarshal is as the function of that name, but the event, its actor and its origin
// are valid until the next call; strings and the payload are for keeps. Of an event that
// says that an endpoint was created, updated or deleted all is valid until the next call
// only, and as long as b is not written to: who keeps any of it keeps a copy.
func (d *Decoder) Unmarshal(b []byte) (*eventpb.Event, error) {
	if err := checkEvent(b); err != nil {
		return nil, err
	}
	kind := peekKind(b)
	switch kind {
	case KindEndpointCreated, KindEndpointUpdated, KindEndpointDeleted:
	default:
		b = bytes.Clone(b) // one copy that all strings point into
	}
	d.prepare(kind)
	if err := d.event.UnmarshalVTUnsafe(b); err != nil {
		return nil, corruptf("event: %v", err)
	}
	return &d.event, nil
}

// prepare empties the messages that an event of a kind decodes into, and hangs them
// where the decoder looks for them before it makes new ones.
func (d *Decoder) prepare(kind Kind) {
	d.event.Reset()
	d.actor.Reset()
	d.origin.Reset()
	d.event.Actor, d.event.Origin = &d.actor, &d.origin
	switch kind {
	case KindEndpointCreated:
		m := &d.created
		d.ref.Reset()
		labels, addresses := m.Labels, m.Addresses[:0]
		m.Reset()
		clear(labels)
		m.Ref, m.Labels, m.Addresses = &d.ref, labels, addresses
		d.asCreated.EndpointCreated = m
		d.event.Payload = &d.asCreated
	case KindEndpointUpdated:
		m := &d.updated
		d.ref.Reset()
		labels := m.Labels
		m.Reset()
		clear(labels)
		m.Ref, m.Labels = &d.ref, labels
		d.asUpdated.EndpointUpdated = m
		d.event.Payload = &d.asUpdated
	case KindEndpointDeleted:
		d.deleted.Reset()
		d.ref.Reset()
		d.deleted.Ref = &d.ref
		d.asDeleted.EndpointDeleted = &d.deleted
		d.event.Payload = &d.asDeleted
	}
}
