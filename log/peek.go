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
