package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/test/vm/wire"
)

var testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)

// A pattern that no test matches would leave out, or run, nothing: each part of each
// names a test of its package, and what is left says why.
func TestJobsNameTests(t *testing.T) {
	for _, j := range jobs {
		files, err := filepath.Glob(filepath.Join("..", "..", j.pkg, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var tests []string
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range testFunc.FindAllSubmatch(source, -1) {
				tests = append(tests, string(m[1]))
			}
		}
		patterns := []string{j.run, j.quick}
		for _, l := range j.left {
			patterns = append(patterns, l.tests)
			if l.why == "" {
				t.Errorf("%s: %s is left without a reason", j.pkg, l.tests)
			}
		}
		for _, p := range patterns {
			for part := range strings.SplitSeq(p, "|") {
				re := regexp.MustCompile(part)
				if part != "" && !slices.ContainsFunc(tests, re.MatchString) {
					t.Errorf("%s: no test matches %s", j.pkg, part)
				}
			}
		}
		for _, a := range j.args {
			name, _, _ := strings.Cut(strings.TrimPrefix(a, "-"), "=")
			if !slices.ContainsFunc(files, func(file string) bool {
				source, err := os.ReadFile(file)
				return err == nil && strings.Contains(string(source), `("`+name+`", `)
			}) {
				t.Errorf("%s: its tests have no flag %s", j.pkg, name)
			}
		}
	}
}

func TestPlan(t *testing.T) {
	all := []job{
		{pkg: "a", run: "TestA", left: []left{{"TestB|TestC", "why"}, {"TestD", "why"}}, args: []string{"-small=1"}},
		{pkg: "b"},
	}
	for _, tt := range []struct {
		run, skip string
		want      []wire.Job
	}{
		{"", "", []wire.Job{{Package: "a", Args: []string{"-small=1", "-test.run=TestA", "-test.skip=TestB|TestC|TestD"}}, {Package: "b"}}},
		{"TestX", "TestY|TestZ", []wire.Job{
			{Package: "a", Args: []string{"-small=1", "-test.run=TestX", "-test.skip=TestB|TestC|TestD|TestY|TestZ"}},
			{Package: "b", Args: []string{"-test.run=TestX", "-test.skip=TestY|TestZ"}},
		}},
	} {
		if diff := cmp.Diff(wire.Plan{Timeout: time.Minute, Jobs: tt.want}, plan(all, time.Minute, tt.run, tt.skip)); diff != "" {
			t.Errorf("-run %q -skip %q, -want +got:\n%s", tt.run, tt.skip, diff)
		}
	}
}

func TestChoose(t *testing.T) {
	all, err := choose(nil, false)
	if err != nil || len(all) != len(jobs) {
		t.Fatalf("%d of %d jobs: %v", len(all), len(jobs), err)
	}
	quick, err := choose(nil, true)
	if err != nil || len(quick) == 0 {
		t.Fatalf("%d jobs: %v", len(quick), err)
	}
	for _, j := range quick {
		if j.run == "" {
			t.Errorf("%s: a quick run has all of its tests", j.pkg)
		}
	}
	if _, err := choose([]string{"bpf", "nowhere"}, false); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("an unknown package: %v", err)
	}
}
