package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
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
// acknowledged, or refuse with an error that names where the damage is. Where only its
// history is damaged it runs, with the state of before, and tells what it has lost.
func (n *node) survives(what string, acked map[string]uint64) {
	n.t.Helper()
	a := n.launch()
	defer a.kill()
	if n.up(a) {
		if err := n.holds(acked); err == nil {
			return
		} else if lost, tells := n.tellsLoss(a, acked); tells != nil {
			n.t.Errorf("%s: the agent runs, but %v, and %v\n%s", what, err, tells, a.log())
		} else {
			n.t.Logf("%s: %d of %d revisions are lost", what, lost, len(acked))
		}
		return
	}
	if strings.HasPrefix(what, filepath.Join("log", "history")) {
		n.t.Errorf("%s: the agent does not run over a damaged history:\n%s", what, a.log())
	}
	if a.cmd.ProcessState.Success() || !strings.Contains(a.log(), n.state) && !strings.Contains(a.log(), "revision") {
		n.t.Errorf("%s: the error names neither a file nor a revision:\n%s", what, a.log())
	}
	n.t.Logf("%s: refused: %s", what, lastLine(a.log()))
}

// tellsLoss reports what is wrong with how an agent does without a part of its history:
// each acknowledged event is at its revision, or a read of it is refused with the file
// and what to do; status, the metric of the log and `log verify` name the damage; the
// state is that of all events, and more of them are taken.
func (n *node) tellsLoss(a *agent, acked map[string]uint64) (lost int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	for id, rev := range acked {
		stream, err := n.client.Log.Read(ctx, connect.NewRequest(&varvev1.ReadRequest{First: rev, Last: rev}))
		if err != nil {
			return 0, err
		}
		found := false
		for stream.Receive() {
			if r := stream.Msg(); r.Revision != rev || r.Event.GetRequestId() != id {
				errs = append(errs, fmt.Errorf("revision %d is %v, was %s", rev, r, id))
			}
			found = true
		}
		switch err := stream.Err(); {
		case err == nil && found:
		case err == nil, connect.CodeOf(err) == connect.CodeOutOfRange || connect.CodeOf(err) == connect.CodeDataLoss && strings.Contains(err.Error(), n.state) && strings.Contains(err.Error(), "restore"):
			lost++
		default:
			errs = append(errs, fmt.Errorf("revision %d: %w", rev, err))
		}
		_ = stream.Close()
	}
	status, err := n.client.Agent.Status(ctx, connect.NewRequest(&varvev1.StatusRequest{}))
	if err != nil {
		return lost, err
	}
	said := false
	for _, c := range status.Msg.Checks {
		said = said || c.Name == "history" && !c.Ok && strings.Contains(c.Message, "are lost")
	}
	// A folder of which no file is left says by itself from where records are kept.
	if !said || !strings.Contains(a.log(), "is lost") {
		errs = append(errs, fmt.Errorf("%d revisions are lost, and status says %v", lost, status.Msg.Checks))
	}
	if rev, err := n.append(ctx, "after the damage"); err != nil || rev != status.Msg.Revision+1 {
		errs = append(errs, fmt.Errorf("the next event is at revision %d after %d, %v", rev, status.Msg.Revision, err))
	}
	if lost == 0 {
		errs = append(errs, errors.New("nothing is lost"))
	}
	return lost, errors.Join(errs...)
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
