package apiserver

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/internal/pbjson"
)

// jsonCodec is Connect's JSON codec but for two things: a field that the message
// does not have is an error (Connect drops it, and with it what a mistyped "adresses"
// was to say), and texts are the same in every build.
type jsonCodec struct{}

// Name is that of Connect's own codec, which this one replaces.
func (jsonCodec) Name() string { return "json" }

func (jsonCodec) Marshal(m any) ([]byte, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", m)
	}
	return pbjson.Marshal(p)
}

func (jsonCodec) Unmarshal(b []byte, m any) error {
	p, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", m)
	}
	if len(b) == 0 {
		return fmt.Errorf("empty body; send at least {}")
	}
	return pbjson.Unmarshal(b, p)
}

// IsBinary implements Connect's stableCodec: JSON is text.
func (jsonCodec) IsBinary() bool { return false }

// MarshalStable implements Connect's stableCodec. GET requests put it in the URL.
func (c jsonCodec) MarshalStable(m any) ([]byte, error) { return c.Marshal(m) }
