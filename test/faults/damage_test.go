package faults

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// damaged is a state directory with a Raft log and a history, and what was
// acknowledged in it. Its agent is stopped.
func damaged(t *testing.T) (n *node, pristine string, acked map[string]uint64) {
	t.Helper()
	n = newNode(t)
	a := n.start()
	acked = n.appendMany("e", 100)
	n.stop(a)
	pristine = filepath.Join(n.dir, "pristine")
	if err := os.CopyFS(pristine, os.DirFS(n.state)); err != nil {
		t.Fatal(err)
	}
	return n, pristine, acked
}

// restore gives the node the directory as it was before any damage.
func (n *node) restore(pristine string) {
	n.t.Helper()
	if err := os.RemoveAll(n.state); err != nil {
		n.t.Fatal(err)
	}
	if err := os.CopyFS(n.state, os.DirFS(pristine)); err != nil {
		n.t.Fatal(err)
	}
}

// files are those of the state directory that hold anything, relative to it.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "LOCK" {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > 0 {
			name, _ := filepath.Rel(dir, path)
			out = append(out, name)
		}
		return err
	})
	if err != nil || len(out) == 0 {
		t.Fatal(out, err)
	}
	return out
}

// survives starts an agent on a damaged directory: it must hold all that was
// acknowledged, or refuse with an error that names where the damage is.
func (n *node) survives(what string, acked map[string]uint64) {
	n.t.Helper()
	a := n.launch()
	defer a.kill()
	if n.up(a) {
		if err := n.holds(acked); err != nil {
			n.t.Errorf("%s: the agent runs, but %v\n%s", what, err, a.log())
		}
		return
	}
	if a.cmd.ProcessState.Success() || !strings.Contains(a.log(), n.state) && !strings.Contains(a.log(), "revision") {
		n.t.Errorf("%s: the error names neither a file nor a revision:\n%s", what, a.log())
	}
	n.t.Logf("%s: refused: %s", what, lastLine(a.log()))
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func TestFlippedBits(t *testing.T) {
	n, pristine, acked := damaged(t)
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	rnd := rand.New(rand.NewPCG(*seed, 2))
	for _, name := range files(t, pristine) {
		for range *flips {
			n.restore(pristine)
			path := filepath.Join(n.state, name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// Most of a sparse file is never read; flip where something is.
			at := rnd.IntN(len(b))
			for b[at] == 0 {
				at = rnd.IntN(len(b))
			}
			bit := rnd.IntN(8)
			b[at] ^= 1 << bit
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			n.survives(fmt.Sprintf("%s, byte %d, bit %d", name, at, bit), acked)
		}
	}
}

func TestTruncatedAndMissingFiles(t *testing.T) {
	n, pristine, acked := damaged(t)
	for _, name := range files(t, pristine) {
		n.restore(pristine)
		path := filepath.Join(n.state, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, info.Size()/2); err != nil {
			t.Fatal(err)
		}
		n.survives(name+", cut to half", acked)

		n.restore(pristine)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		n.survives(name+", missing", acked)
	}
}
