// Command testreport reads `go test -json` on standard input and prints what a
// person needs of it: one line a package, the whole output of what failed, and a
// closing line of counts. It exits 1 if a test failed, a package did not build,
// or a test was skipped: a kernel test that skips proves nothing.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() { os.Exit(run(os.Stdin, os.Stdout)) }

// event is one line of test2json (`go doc test2json`).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output, in place of Package
	Test       string
	Output     string
}

type testKey struct{ pkg, test string }

type report struct {
	out                     io.Writer
	output                  map[testKey]*bytes.Buffer // of tests that still run
	passed, failed, skipped int
	skips, badPackages      []string
}

func run(in io.Reader, out io.Writer) int {
	r := &report{out: out, output: map[testKey]*bytes.Buffer{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			fmt.Fprintln(out, "testreport: standard input:", err)
			return 1
		}
	}
	return r.close()
}

func (r *report) line(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		fmt.Fprintf(r.out, "%s", line) // the go command's own words
		return
	}
	key := testKey{e.Package, e.Test}
	switch e.Action {
	case "output":
		if e.Test == "" {
			r.packageOutput(e.Output)
			return
		}
		if r.output[key] == nil {
			r.output[key] = new(bytes.Buffer)
		}
		r.output[key].WriteString(e.Output)
	case "build-output":
		io.WriteString(r.out, e.Output)
	case "build-fail":
		r.badPackages = append(r.badPackages, e.ImportPath)
	case "pass":
		if e.Test != "" {
			r.passed++
		}
		delete(r.output, key)
	case "skip":
		if e.Test != "" {
			r.skipped++
			r.skips = append(r.skips, e.Package+"."+e.Test+reason(r.output[key]))
		}
		delete(r.output, key)
	case "fail":
		if e.Test == "" {
			r.badPackages = append(r.badPackages, e.Package)
			r.orphans(e.Package)
			return
		}
		r.failed++
		r.flush(key)
	}
}

// packageOutput passes on what is said of a package as a whole, bar the noise.
func (r *report) packageOutput(s string) {
	if s == "PASS\n" || strings.Contains(s, "[no test files]") {
		return
	}
	io.WriteString(r.out, s)
}

func (r *report) flush(key testKey) {
	if b := r.output[key]; b != nil {
		fmt.Fprintf(r.out, "%s", b.Bytes())
		delete(r.output, key)
	}
}

// orphans prints the output of tests that never ended: their package panicked,
// ran into its timeout or exited.
func (r *report) orphans(pkg string) {
	var keys []testKey
	for k := range r.output {
		if k.pkg == pkg {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b testKey) int { return strings.Compare(a.test, b.test) })
	for _, k := range keys {
		r.flush(k)
	}
}

// reason is what a skipped test said last.
func reason(b *bytes.Buffer) string {
	if b == nil {
		return ""
	}
	for _, l := range slices.Backward(strings.Split(b.String(), "\n")) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "===") {
			return " (" + l + ")"
		}
	}
	return ""
}

func (r *report) close() int {
	code := 0
	if len(r.badPackages) > 0 {
		slices.Sort(r.badPackages)
		fmt.Fprintf(r.out, "\nFAIL in:\n  %s\n", strings.Join(slices.Compact(r.badPackages), "\n  "))
		code = 1
	}
	if len(r.skips) > 0 {
		fmt.Fprintf(r.out, "\nskipped, which counts as a failure here:\n  %s\n", strings.Join(r.skips, "\n  "))
		code = 1
	}
	if r.failed > 0 || r.passed+r.failed == 0 {
		code = 1
	}
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return code
}
