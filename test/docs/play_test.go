package docs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what the commands print into the documents")

var (
	fence  = regexp.MustCompile("^```(\\w*)$")
	stepRE = regexp.MustCompile(`^<!-- step: (\w+) -->$`)
	// nameRE is the first line of a block that is a file.
	nameRE = regexp.MustCompile(`^(?:#|//) (\S+\.\w+)$`)
)

func path(name string) string { return filepath.Join("..", "..", "docs", name) }

// read returns a document.
func read(t *testing.T, name string) string {
	t.Helper()
	doc, err := os.ReadFile(path(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// hold compares a document with what its commands print now.
func hold(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path(name), []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(normal(read(t, name)), normal(got)); diff != "" {
		t.Errorf("run with -update and look at what changed (-document +now):\n%s", diff)
	}
}

// play goes through a document: it takes its steps, writes its files, runs its
// commands, and returns it with what they printed.
func (s *stage) play(doc string, steps map[string]func(*stage)) string {
	s.t.Helper()
	var out strings.Builder
	var inside string          // the language of the block
	var file, command []string // so far
	for line := range strings.Lines(doc) {
		text := strings.TrimSuffix(line, "\n")
		if m := stepRE.FindStringSubmatch(text); m != nil {
			step, ok := steps[m[1]]
			if !ok {
				s.t.Fatalf("unknown step %s", m[1])
			}
			step(s)
		}
		if m := fence.FindStringSubmatch(text); m != nil {
			if text == "```" && len(file) > 0 {
				s.write(file)
			}
			file = nil
			if inside != "" {
				inside = ""
			} else {
				inside = m[1]
			}
			out.WriteString(line)
			continue
		}
		switch inside {
		case "yaml", "go":
			file = append(file, text)
		case "console":
			first, begins := strings.CutPrefix(text, "$ ")
			if !begins && len(command) == 0 {
				continue // of a former run
			}
			out.WriteString(line)
			rest, more := strings.CutSuffix(first, `\`)
			if command = append(command, rest); more {
				continue
			}
			out.WriteString(s.run(strings.Join(command, "")))
			command = nil
			continue
		}
		out.WriteString(line)
	}
	return out.String()
}

// write makes the file of a block.
func (s *stage) write(lines []string) {
	s.t.Helper()
	m := nameRE.FindStringSubmatch(lines[0])
	if m == nil {
		s.t.Fatalf("a block begins with no name: %q", lines[0])
	}
	if err := os.WriteFile(filepath.Join(s.dir, m[1]), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// documentSocket is where documents look for the agent.
const documentSocket = "/run/varve/varve.sock"

// run is what a command of the document prints, as a shell would show it.
func (s *stage) run(line string) string {
	s.t.Helper()
	line, code := strings.CutSuffix(line, "; echo $?")
	words := strings.Fields(line)
	if len(words) == 3 && words[0] == "go" {
		line = s.compile(words[2])
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", strings.ReplaceAll(line, documentSocket, s.socket()))
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "NO_COLOR=1", "TZ=UTC", "PATH="+filepath.Dir(s.binary)+":"+os.Getenv("PATH"))
	if !strings.Contains(line, "--log ") {
		cmd.Env = append(cmd.Env, "VARVE_SOCKET="+s.socket())
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("%s: %v", line, err)
	}
	if code {
		out = fmt.Appendf(out, "%d\n", cmd.ProcessState.ExitCode())
	} else if cmd.ProcessState.ExitCode() > 1 && words[0] == "varve" {
		s.t.Errorf("%s: exit code %d\n%s", line, cmd.ProcessState.ExitCode(), out)
	}
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n') // as before the next prompt
	}
	return string(out)
}

// compile builds a program of the document in this module, so that it has its
// packages, and returns how it is started.
func (s *stage) compile(name string) string {
	s.t.Helper()
	program := filepath.Join(filepath.Dir(s.binary), strings.TrimSuffix(name, ".go"))
	s.build(filepath.Join("..", ".."), program, filepath.Join(s.dir, name))
	return program
}

// build builds a program in a module.
func (s *stage) build(module, program, what string) {
	s.t.Helper()
	cmd := exec.Command("go", "build", "-o", program, what)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("build %s: %v\n%s", what, err, out)
	}
}

// vary is what differs from run to run.
var vary = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "TIME"},
	{regexp.MustCompile(`\b1\d{18}\b`), "NANOSECONDS"},
	{regexp.MustCompile(`"[A-Za-z0-9+/]{43}="`), "HASH"},
	{regexp.MustCompile(`pid=\d+`), "pid=N"},
	{regexp.MustCompile(`event of \d+ bytes`), "event of N bytes"}, // the actor is in it, and so a pid
	{regexp.MustCompile(`\b(\d+h)?(\d+m)?\d+(\.\d+)?(ms|µs|s)\b`), "DURATION"},
	{regexp.MustCompile(`[0-9a-f]{2}(:[0-9a-f]{2}){5}`), "MAC"},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "ID"}, // stands for content, which a later version words otherwise
	{regexp.MustCompile(`x\d+(/DURATION)?`), "xN"},
	{regexp.MustCompile(`(seen|SEEN) (once|\d+ times)`), "seen N times"}, // TCP may try again
	{regexp.MustCompile(`( \d+) +\d+ +TIME`), "$1 N TIME"},               // the same, in columns
	{regexp.MustCompile(`[ \t]+`), " "},
}

func normal(s string) string {
	for _, v := range vary {
		s = v.re.ReplaceAllString(s, v.to)
	}
	return s
}
