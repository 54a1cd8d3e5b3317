package policy

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

// policyCase is one line of testdata/cases.jsonl: the policies of a known-answer
// case, and Cilium's error if it refuses them.
type policyCase struct {
	ID       string
	Policies []json.RawMessage
	Error    *string
}

func readCases(t *testing.T) []policyCase {
	t.Helper()
	f, err := os.Open("testdata/cases.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []policyCase
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c policyCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// Those that Cilium refuses are invalid here too; the others are accepted, but for
// fields that are not supported.
func TestCases(t *testing.T) {
	accepted, invalid, unsupported := 0, 0, 0
	for _, c := range readCases(t) {
		var errs []error
		for _, p := range c.Policies {
			sets, _, err := Parse(c.ID, p, Options{Cluster: "default"})
			errs = append(errs, err)
			for _, set := range sets {
				again, _, err := Parse(c.ID, []byte(set.Manifest), Options{Cluster: "default"})
				if err != nil || len(again) != 1 || !proto.Equal(set, again[0]) {
					t.Errorf("%s: the manifest reads differently: %v", c.ID, err)
				}
			}
		}
		err := errors.Join(errs...)
		switch got := class(err); {
		case got == "invalid":
			invalid++
			if c.Error == nil {
				t.Errorf("%s: refused: %v", c.ID, err)
			}
		case c.Error != nil:
			t.Errorf("%s: %s, want invalid: %s", c.ID, got, *c.Error)
		case got == "unsupported":
			unsupported++
			if s := err.Error(); !strings.Contains(s, "field http is not supported") {
				t.Errorf("%s: refused: %v", c.ID, err)
			}
		default:
			accepted++
		}
	}
	t.Logf("%d accepted, %d invalid, %d unsupported", accepted, invalid, unsupported)
	if accepted < 142 || invalid != 10 {
		t.Errorf("%d accepted, %d invalid, %d unsupported", accepted, invalid, unsupported)
	}
}
