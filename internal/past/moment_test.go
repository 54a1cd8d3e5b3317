package past

import (
	"testing"
	"time"
)

// A time without a zone is of the zone that whoever wrote it lives in; all else says
// what it is.
func TestZoned(t *testing.T) {
	zone := time.FixedZone("there", -5*3600)
	for text, want := range map[string]string{
		"2026-03-01": "2026-03-01T00:00:00-05:00", "2026-03-01T03:00": "2026-03-01T03:00:00-05:00", " 2026-03-01 03:00:00.5": "2026-03-01T03:00:00.5-05:00",
		"2026-03-01T03:00Z": "2026-03-01T03:00Z", "2026-03-01T03:00:00+01:00": "2026-03-01T03:00:00+01:00",
		"4711": "4711", "-2h": "-2h", "5m": "5m", "now": "now", "": "", "yesterday": "yesterday",
	} {
		if got := Zoned(text, zone); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
