package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/dataplane"
)

// DriftReport is what the agent found changed by others since its start.
type DriftReport struct {
	Found, Repaired uint64
	Kinds           map[dataplane.DriftKind]uint64 // those found
	Last            *SeenDrift
	// Open are those of the last check that could not be repaired, and Err is why
	// the last check could not be made.
	Open    []SeenDrift
	Err     error
	Checked time.Time // end of the last check
}

// SeenDrift is a Drift and when it was found.
type SeenDrift struct {
	dataplane.Drift
	At time.Time
}

func driftProto(d *SeenDrift) *varvev1.Drift {
	if d == nil {
		return nil
	}
	out := &varvev1.Drift{TimeUnixNs: d.At.UnixNano(), Kind: string(d.Kind), Object: d.Object, What: d.What}
	if d.Err != nil {
		out.Error = d.Err.Error()
	}
	return out
}

func driftStatus(r DriftReport) *varvev1.DriftStatus {
	out := &varvev1.DriftStatus{Found: r.Found, Repaired: r.Repaired, Last: driftProto(r.Last)}
	if !r.Checked.IsZero() {
		out.CheckedUnixNs = r.Checked.UnixNano()
	}
	for _, k := range dataplane.DriftKinds {
		if n := r.Kinds[k]; n > 0 {
			out.Kinds = append(out.Kinds, &varvev1.DriftCount{Kind: string(k), Found: n})
		}
	}
	for _, d := range r.Open {
		out.Open = append(out.Open, driftProto(&d))
	}
	return out
}

// checkDrift is the check of status: all that was found is repaired.
func checkDrift(r DriftReport) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		switch {
		case r.Err != nil:
			return "", fmt.Errorf("not checked: %w", r.Err)
		case len(r.Open) > 0:
			return "", fmt.Errorf("%d not repaired; %w", len(r.Open), errors.New(r.Open[0].String()))
		case r.Found == 0:
			return "none since the start", nil
		}
		return fmt.Sprintf("%d found, %d repaired", r.Found, r.Repaired), nil
	}
}

// driftEvent is a Drift as Monitor sends it.
func driftEvent(n *names, e dataplane.Event) *varvev1.DatapathEvent {
	at := unixTime(e)
	out := &varvev1.DatapathEvent{
		TimeUnixNs: at, Type: typeDrift, Reason: string(e.Drift.Kind), Drift: driftProto(&SeenDrift{*e.Drift, time.Unix(0, at)}),
	}
	if e.Endpoint != 0 {
		out.Endpoint = n.endpointName(e.Endpoint)
	}
	if n.tables != nil {
		out.Revision = uint64(n.tables.Revision)
	}
	return out
}
