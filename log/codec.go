package log

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/log/eventpb"
)

// Message is a message of package eventpb.
type Message interface {
	proto.Message
	MarshalVT() ([]byte, error)
	UnmarshalVT([]byte) error
}

// Marshal encodes an event as it will be stored. Equal events have equal bytes:
// map entries are in the order of their keys. The error is ErrTooLarge,
// ErrInvalid (a string that is not UTF-8), or ErrUpgradeNeeded (the event holds a
// field that this version does not know), so that whatever is stored can be
// decoded again.
func Marshal(e *eventpb.Event) ([]byte, error) { return AppendEvent(nil, e) }

// AppendEvent is Marshal behind what b holds. With an error that is left as it was.
func AppendEvent(b []byte, e *eventpb.Event) ([]byte, error) {
	if e == nil {
		return b, fmt.Errorf("%w: nil", ErrInvalid)
	}
	start, size := len(b), e.SizeVT()
	if size > MaxEventBytes {
		return b, fmt.Errorf("event of %d bytes, at most %d are allowed: %w", size, MaxEventBytes, ErrTooLarge)
	}
	out := slices.Grow(b, size)[:start+size]
	if _, err := e.MarshalToSizedBufferVT(out[start:]); err != nil {
		return b, fmt.Errorf("%w: %s: %w", ErrInvalid, eventSchema.name, err)
	}
	if err := eventSchema.finish(out[start:]); err != nil {
		return b, err
	}
	return out, nil
}

// Unmarshal decodes an event. It is strict where protobuf is lenient: a field
// that this version does not know, at any depth, is ErrUpgradeNeeded and never
// skipped; bytes that do not decode, numbers out of range, strings that are not
// UTF-8 and a field or a oneof given twice are ErrCorrupt. The event does not
// alias b; who keeps one of its strings for long keeps a copy of all of b.
func Unmarshal(b []byte) (*eventpb.Event, error) {
	if err := checkEvent(b); err != nil {
		return nil, err
	}
	// One copy that all strings point into, instead of one for each.
	e := new(eventpb.Event)
	if err := e.UnmarshalVTUnsafe(bytes.Clone(b)); err != nil {
		return nil, corruptf("event: %v", err)
	}
	return e, nil
}

// checkEvent checks an event's bytes.
func checkEvent(b []byte) error {
	if len(b) > MaxEventBytes {
		return corruptf("event of %d bytes: longer than %d", len(b), MaxEventBytes)
	}
	return eventSchema.check(b)
}

// MarshalMessage encodes any message of package eventpb as Marshal does an
// event, without a limit of size.
func MarshalMessage(m Message) ([]byte, error) {
	s, err := schemaOf(m)
	if err != nil {
		return nil, err
	}
	b, err := m.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, s.name, err)
	}
	if err := s.finish(b); err != nil {
		return nil, err
	}
	return b, nil
}

// finish makes of a message that was encoded just now what will be stored.
func (s *schema) finish(b []byte) error {
	if err := s.check(b); err != nil {
		if corrupt := (*CorruptError)(nil); errors.As(err, &corrupt) {
			return fmt.Errorf("%w: %s", ErrInvalid, corrupt.What)
		}
		return err
	}
	s.sortMaps(b)
	return nil
}

// UnmarshalMessage decodes b into m, which is empty, as strictly as Unmarshal.
func UnmarshalMessage(b []byte, m Message) error {
	s, err := schemaOf(m)
	if err != nil {
		return err
	}
	if err := s.check(b); err != nil {
		return err
	}
	if err := m.UnmarshalVT(b); err != nil {
		return corruptf("%s: %v", s.name, err)
	}
	return nil
}

// Fingerprint tells whether two events that carry the same request id are the
// same request. It covers the actor's role, the stream, the expected revision,
// the journal sequence number and the payload, but not what differs between a
// request and its retry: time, the actor's name (it holds a process id) and the
// node that took it. event is as stored and has been decoded without error.
func Fingerprint(event []byte, e *eventpb.Event) Hash {
	var stack [1024]byte
	b := protowire.AppendVarint(stack[:0], uint64(uint32(e.GetActor().GetRole())))
	fields := len(b)
	for rest := event; len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			break
		}
		if num >= fieldStream {
			b = append(b, rest[:n]...)
		}
		rest = rest[n:]
	}
	if eventSchema.mapsSorted(b[fields:]) {
		return sha256.Sum256(b)
	}
	other := bytes.Clone(b) // not as Marshal writes it; b stays on the stack
	eventSchema.sortMaps(other[fields:])
	return sha256.Sum256(other)
}

// fieldStream is the first field of the envelope that belongs to a request's
// fingerprint; time, actor, origin and request id come before it.
const fieldStream = 5
