package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/projections"
)

// drifting is a dataplane where something is changed at every check.
type drifting struct {
	shared []dataplane.Drift
	rows   []dataplane.Difference
}

func (d *drifting) CheckShared(context.Context, dataplane.NodeSpec) ([]dataplane.Drift, error) {
	return d.shared, nil
}

func (d *drifting) SuspectInterfaces(context.Context, []dataplane.Bound) ([]string, error) {
	return nil, nil
}

func (d *drifting) RepairInterface(context.Context, dataplane.Bound) ([]dataplane.Drift, error) {
	return nil, nil
}

func (d *drifting) CheckRows(context.Context, *projections.Tables) ([]dataplane.Difference, error) {
	return d.rows, nil
}

func (d *drifting) Watch(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }

func TestDriftIsRepairedEachTimeAndLoggedOnce(t *testing.T) {
	n := newNode(t)
	resyncs, failing := 0, error(nil)
	n.eps.resync = func(context.Context) error { resyncs++; return failing }
	var out bytes.Buffer
	events := 0
	rows := map[string]int{}
	d := &drift{
		dp: &drifting{
			shared: []dataplane.Drift{{Kind: dataplane.DriftSysctl, Object: "net.ipv4.ip_forward", What: "is 0, want 1"}},
			rows:   []dataplane.Difference{{Map: "policy", Kind: dataplane.Missing, Key: "a row", Want: "deny"}},
		},
		eps: n.eps, current: func() *projections.Tables { return nil },
		publish:  func(e dataplane.Event) error { events++; return nil },
		repaired: func(name string, n int) { rows[name] += n },
		logger:   slog.New(slog.NewTextHandler(&out, nil)),
	}
	for range 3 {
		d.pass(t.Context(), true)
	}
	r := d.Report()
	if r.Found != 6 || r.Repaired != 6 || r.Kinds[dataplane.DriftRow] != 3 || len(r.Open) != 0 || r.Last == nil || r.Checked.IsZero() {
		t.Errorf("report %+v", r)
	}
	if resyncs != 3 || rows["policy"] != 3 || events != 6 {
		t.Errorf("%d resyncs, rows %v, %d events", resyncs, rows, events)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 2 {
		t.Errorf("%d lines, want one for each of two:\n%s", lines, &out)
	}
	failing = errors.New("map is full")
	d.pass(t.Context(), true)
	if r := d.Report(); len(r.Open) != 1 || !errors.Is(r.Open[0].Err, failing) || r.Repaired != 7 {
		t.Errorf("report %+v", r)
	}
	if !strings.Contains(out.String(), "not repaired") {
		t.Errorf("the log does not say that a repair failed:\n%s", &out)
	}
}
