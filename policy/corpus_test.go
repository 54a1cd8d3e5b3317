package policy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file of testdata, or writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -update rewrites it):\n%s", name, diff)
	}
}

func class(err error) string {
	switch {
	case err == nil:
		return "accepted"
	case errors.Is(err, ErrInvalid):
		return "invalid"
	case errors.Is(err, ErrUnsupported):
		return "unsupported"
	}
	return "unclassified"
}

// The corpus are policies that people published, INDEX.md among them says what
// Cilium makes of each. Each is accepted, or refused for a stated reason.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/corpus/*.yaml")
	if err != nil || len(files) < 100 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	var b strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sets, warnings, err := Parse("", data, Options{})
		fmt.Fprintf(&b, "%s: %s\n", filepath.Base(file), class(err))
		for _, set := range sets {
			ref, err := RefFromPB(set.Ref)
			if err != nil {
				t.Error(err)
			}
			fmt.Fprintf(&b, "\t%s\n", ref)
		}
		for _, e := range FieldErrors(err) {
			fmt.Fprintf(&b, "\t%s: %s\n", class(e), e)
		}
		for _, w := range warnings {
			fmt.Fprintf(&b, "\twarning: %s\n", w)
		}
	}
	golden(t, "corpus.golden", b.String())
}

var indexRow = regexp.MustCompile(`(?m)^\| (\d\d\d-\S+) \| \d+ \| \S+ \| (yes|NO) \| (yes|no) \|`)

// What Cilium refuses is refused here as invalid or, where the reason lies in a
// field that is not supported, as such; what it accepts is never called invalid.
func TestCorpusAgreesWithCilium(t *testing.T) {
	index, err := os.ReadFile("testdata/corpus/INDEX.md")
	if err != nil {
		t.Fatal(err)
	}
	valid := make(map[string]bool)
	for _, m := range indexRow.FindAllStringSubmatch(string(index), -1) {
		was, seen := valid[m[1]]
		valid[m[1]] = m[2] == "yes" && (was || !seen)
	}
	if len(valid) != 120 {
		t.Fatalf("index names %d files", len(valid))
	}
	// Cilium's decoder takes an object without apiVersion; the API server, where
	// its policies come from, does not.
	noAPIVersion := map[string]bool{
		"114-blog-2025-08-15-host-firewall-pri.yaml": true,
		"118-cfp-30572-3.yaml":                       true,
	}
	for file, ok := range valid {
		data, err := os.ReadFile(filepath.Join("testdata/corpus", file))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = Parse(file, data, Options{})
		got := class(err)
		if noAPIVersion[file] {
			ok = false
		}
		if ok && got == "invalid" || !ok && got == "accepted" {
			t.Errorf("%s: %s, but Cilium's verdict is valid=%t: %v", file, got, ok, err)
		}
	}
}
