package main

import (
	"bufio"
	"strings"
	"testing"

	"github.com/varve-net/varve/test/vm/wire"
)

func TestCrashTellsWhatIsLost(t *testing.T) {
	have := func(id string, revision uint64) string {
		return wire.Crash{Have: &wire.Append{ID: id, Revision: revision}}.Line()
	}
	open := func(revision uint64) string { return wire.Crash{Open: &wire.Head{Revision: revision}}.Line() }
	acked := func(id string, revision uint64) string {
		return wire.Crash{Acked: &wire.Append{ID: id, Revision: revision}}.Line()
	}
	for _, tt := range []struct {
		name, said string
		want       string // in the error; empty: none
	}{
		{"all there, and one that was not acknowledged", have("a", 1) + have("b", 2) + have("c", 3) + open(3), ""},
		{"a line that the kill has cut", have("a", 1) + have("b", 2) + open(2) + "boot\n" + strings.TrimSuffix(acked("c", 3), "\n"), ""},
		{"gone", have("a", 1) + have("c", 2) + open(2), "request b was acknowledged at revision 2"},
		{"elsewhere", have("b", 1) + have("a", 2) + open(2), "was acknowledged at revision"},
		{"a record is missing", have("a", 1) + have("b", 2) + open(3), "ends at revision 3 and has 2 records"},
		{"never opened", have("a", 1) + have("b", 2), "before it had opened the log"},
		{"broke", wire.Crash{Broke: "log: damaged"}.Line(), "log: damaged"},
	} {
		m := &crash{acked: map[string]uint64{"a": 1, "b": 2}}
		err := m.read(bufio.NewReader(strings.NewReader(tt.said)), 1, func() {})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if len(m.acked) != 2 {
			t.Errorf("%s: %v were acknowledged", tt.name, m.acked)
		}
	}
	m := &crash{acked: map[string]uint64{}}
	kills := 0
	if err := m.read(bufio.NewReader(strings.NewReader(open(0)+acked("a", 1)+acked("b", 2)+acked("c", 3))), 2, func() { kills++ }); err != nil || kills != 1 || len(m.acked) != 3 {
		t.Errorf("%v, %d kills, %v acknowledged: what was said before the kill counts, also if it is read after", err, kills, m.acked)
	}
}
