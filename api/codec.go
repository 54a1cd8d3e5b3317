package api

import (
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// Codec is Connect's binary codec. It encodes the messages of the append path
// with generated code, and all others as Connect does. Agent and client use it;
// what goes over the wire is the same.
//
// The generated code does not check that strings are UTF-8: the log refuses an
// event with one that is not.
func Codec() connect.Codec { return codec{} }

type codec struct{}

type generated interface {
	MarshalVT() ([]byte, error)
	MarshalToVT([]byte) (int, error)
	SizeVT() int
	UnmarshalVT([]byte) error
}

// onAppendPath is m if generated code is to do it.
func onAppendPath(m any) (generated, bool) {
	switch m := m.(type) {
	case *varvev1.AppendRequest:
		return m, true
	case *varvev1.AppendResponse:
		return m, true
	case *varvev1.AppendStreamRequest:
		return m, true
	case *varvev1.AppendStreamResponse:
		return m, true
	default:
		return nil, false
	}
}

// Name is that of Connect's own codec, which this one replaces.
func (codec) Name() string { return "proto" }

func (codec) Marshal(m any) ([]byte, error) {
	if g, ok := onAppendPath(m); ok {
		return g.MarshalVT()
	}
	p, err := protoMessage(m)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(p)
}

// MarshalAppend saves Connect a buffer.
func (codec) MarshalAppend(dst []byte, m any) ([]byte, error) {
	if g, ok := onAppendPath(m); ok {
		n := len(dst)
		size := g.SizeVT()
		if cap(dst)-n < size {
			dst = append(make([]byte, 0, n+size), dst...)
		}
		written, err := g.MarshalToVT(dst[n : n+size])
		return dst[:n+written], err
	}
	p, err := protoMessage(m)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, p)
}

// MarshalStable and IsBinary are what Connect needs to send a call without side
// effects as a GET.
func (codec) MarshalStable(m any) ([]byte, error) {
	p, err := protoMessage(m)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(p)
}

func (codec) IsBinary() bool { return true }

func (codec) Unmarshal(b []byte, m any) error {
	if g, ok := onAppendPath(m); ok {
		return g.UnmarshalVT(b)
	}
	p, err := protoMessage(m)
	if err != nil {
		return err
	}
	return proto.Unmarshal(b, p)
}

func protoMessage(m any) (proto.Message, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", m)
	}
	return p, nil
}
