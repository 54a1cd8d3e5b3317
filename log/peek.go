package log

import "google.golang.org/protobuf/encoding/protowire"

// PeekStream is the stream of an event as stored, found without decoding the rest;
// nil if there is none. It aliases the event.
func PeekStream(event []byte) []byte {
	for len(event) > 0 {
		num, typ, n := protowire.ConsumeTag(event)
		if n < 0 {
			return nil
		}
		event = event[n:]
		if num == fieldStream && typ == protowire.BytesType {
			stream, n := protowire.ConsumeBytes(event)
			if n < 0 {
				return nil
			}
			return stream
		}
		if n = protowire.ConsumeFieldValue(num, typ, event); n < 0 {
			return nil
		}
		event = event[n:]
	}
	return nil
}

// peekKind is the kind of an event as stored, found without decoding it; 0 if there is
// none, or if the bytes are no event.
func peekKind(event []byte) Kind {
	for len(event) > 0 {
		num, typ, n := protowire.ConsumeTag(event)
		if n < 0 {
			return 0
		}
		if num >= firstKind {
			return Kind(num)
		}
		event = event[n:]
		if n = protowire.ConsumeFieldValue(num, typ, event); n < 0 {
			return 0
		}
		event = event[n:]
	}
	return 0
}
