package policytest

import (
	"path/filepath"
	"testing"
)

func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.jsonl*")
	if err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), files, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Results {
		switch r.Outcome {
		case Fail:
			t.Errorf("%s:%d: %s: %s\n%s", r.File, r.Line, r.Case, r.Reason, r.Difference)
		case Refused:
			t.Logf("%s:%d: %s: refused: %v", r.File, r.Line, r.Case, r.Fields)
		}
	}
	t.Logf("%d cases: %d passed, %d failed, %d refused; %d connections, %d verdicts", report.Cases, report.Passed, report.Failed, report.Refused, report.Connections, report.Verdicts)
}
