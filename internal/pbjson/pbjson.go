// Package pbjson is protojson with output and errors that are the same in every
// build. Protobuf varies both from binary to binary, with a space after some commas
// and a no-break space in its errors, lest anybody rely on them; the users of an API
// do: they compare, grep and sign what they read.
package pbjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Marshal is the compact JSON of a message, without fields that have no value.
func Marshal(m proto.Message) ([]byte, error) {
	return compact(protojson.Marshal(m))
}

// MarshalWhole is the compact JSON of a message with all its fields.
func MarshalWhole(m proto.Message) ([]byte, error) {
	return compact(protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m))
}

func compact(doc []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Compact(&out, doc)
	return out.Bytes(), err
}

// Unmarshal reads JSON into a message. A field that the message does not have is
// an error. Errors say what is wrong and where, without protobuf's prefix.
func Unmarshal(doc []byte, m proto.Message) error {
	err := protojson.Unmarshal(doc, m)
	if err == nil {
		return nil
	}
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return errors.New(strings.TrimPrefix(text, "proto: "))
}
