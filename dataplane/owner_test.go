package dataplane

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestClaimPins(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		owner     string
		connected []string
		refused   bool
		holds     string
	}{
		{"a", nil, false, "owner_a"},
		{"a", []string{"vv1"}, false, "owner_a"},
		{"b", []string{"vv1", "vv2"}, true, "owner_a"},
		{"b", nil, false, "owner_b"},
		{"a", []string{"vv1"}, true, "owner_b"},
	} {
		err := claimPins(dir, tt.owner, tt.connected)
		if errors.Is(err, ErrPinsForeign) != tt.refused || (err != nil) != tt.refused {
			t.Fatalf("%+v: %v", tt, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "vv1") || !strings.Contains(err.Error(), "--state-dir")) {
			t.Errorf("the error names no interface or no remedy: %v", err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 || entries[0].Name() != tt.holds {
			t.Errorf("%+v: the directory holds %v, %v", tt, entries, err)
		}
	}
}
