package api

import (
	"errors"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// PolicyErrors is what is wrong with the policies that Apply or Append refused,
// in the order of the manifest. It is empty for every other error.
func PolicyErrors(err error) []*varvev1.PolicyError {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return nil
	}
	var out []*varvev1.PolicyError
	for _, d := range ce.Details() {
		// A detail of a type that this version does not know is not a policy error.
		if m, err := d.Value(); err == nil {
			if pe, ok := m.(*varvev1.PolicyError); ok {
				out = append(out, pe)
			}
		}
	}
	return out
}
