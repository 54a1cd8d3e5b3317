package faults

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// varve runs a command of the binary. An error has what it said.
func varve(args ...string) error {
	_, err := output(args...)
	return err
}

// output is what a command of the binary prints. An error has what it said besides.
func output(args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s%s", err, out.String(), said.String())
	}
	return out.String(), nil
}

// eventually waits until a condition holds.
func (a *agent) eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s\n%s", what, patience, a.log())
		}
	}
}

// historyFiles are those of the node's history with an ending.
func (n *node) historyFiles(ending string) []string {
	n.t.Helper()
	found, err := filepath.Glob(filepath.Join(n.state, "log", "history", "*"+ending))
	if err != nil {
		n.t.Fatal(err)
	}
	return found
}

// On a full disk no checkpoint, no packed segment and no saved file is begun and left
// half: what failed is said, what was there stays, and it is made up for once there is space.
func TestFullDiskBesideAppends(t *testing.T) {
	n := newNode(t)
	n.tmpfs(128 * mib)
	a := n.start()
	acked := n.appendMany("e", 100)
	n.stop(a)
	digests := n.divided(false)
	plain := map[string]int64{} // sizes of the sealed segments
	segments := n.historyFiles(".history")
	for _, s := range segments[:len(segments)-1] {
		info, err := os.Stat(s)
		if err != nil {
			t.Fatal(err)
		}
		plain[s] = info.Size()
	}
	if len(plain) < 3 {
		t.Fatalf("%v: the test wants more segments", segments)
	}
	saved := map[string][]string{"export.varve": {"log", "export"}, "state.varve": {"snapshot", "save"}}
	before := []byte("what was saved before")
	for name := range saved {
		if err := os.WriteFile(filepath.Join(n.state, name), before, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	n.fill("ballast", 60*mib) // less than appends need for themselves
	a = n.launch("--checkpoint-events", "16")
	if !n.up(a) {
		t.Fatalf("the agent ended:\n%s", a.log())
	}
	a.eventually(t, "a checkpoint is refused", func() bool {
		return strings.Contains(a.log(), "checkpoint of revision") && strings.Contains(a.log(), "free some space")
	})
	a.kill()
	a = n.launch() // whose checkpoints are far apart: it comes to packing
	if !n.up(a) {
		t.Fatalf("the agent ended:\n%s", a.log())
	}
	a.eventually(t, "packing is refused", func() bool {
		return strings.Contains(a.log(), "pack the history segment of revision") && strings.Contains(a.log(), "free some space")
	})
	n.fill("rest", 0)
	save := func(name string) error {
		return varve(append(saved[name], "-f", filepath.Join(n.state, name), "--socket", filepath.Join(n.dir, "varve.sock"))...)
	}
	for name := range saved {
		err := save(name)
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("%s on a full disk: %v", name, err)
		}
		if got, err := os.ReadFile(filepath.Join(n.state, name)); err != nil || !bytes.Equal(got, before) {
			t.Errorf("%s is now %q, %v", name, got, err)
		}
		if left, _ := filepath.Glob(filepath.Join(n.state, "."+name+".*")); len(left) > 0 {
			t.Errorf("%v is left over", left)
		}
	}
	if left := append(n.historyFiles(".checkpoint"), n.historyFiles(".new")...); len(left) > 0 {
		t.Errorf("%v is there, on a full disk", left)
	}
	for s, was := range plain {
		if info, err := os.Stat(s); err != nil || info.Size() != was {
			t.Errorf("%s was touched on a full disk: %v, %v", s, info, err)
		}
	}
	if err := n.holds(acked); err != nil {
		t.Errorf("on a full disk: %v", err)
	}

	for _, name := range []string{"ballast", "rest"} {
		if err := os.Remove(filepath.Join(n.state, name)); err != nil {
			t.Fatal(err)
		}
	}
	a.eventually(t, "packing with space again", func() bool {
		for s, was := range plain {
			if info, err := os.Stat(s); err != nil || info.Size() >= was {
				return false
			}
		}
		return true
	})
	for at, want := range digests {
		got, err := n.client.Audit.At(t.Context(), connect.NewRequest(&varvev1.AuditAtRequest{At: fmt.Sprint(at), Summary: true}))
		if err != nil || !bytes.Equal(got.Msg.StateDigest, want[:]) {
			t.Fatalf("revision %d, once packed: %v", at, err)
		}
	}
	if err := n.holds(acked); err != nil {
		t.Errorf("once packed: %v", err)
	}
	a.kill()
	n.fill("ballast", 60*mib)
	a = n.launch("--checkpoint-events", "16")
	if !n.up(a) {
		t.Fatalf("the agent ended:\n%s", a.log())
	}
	a.eventually(t, "a checkpoint is refused once more", func() bool { return strings.Contains(a.log(), "checkpoint of revision") })
	if err := os.Remove(filepath.Join(n.state, "ballast")); err != nil {
		t.Fatal(err)
	}
	a.eventually(t, "a checkpoint with space again", func() bool { return len(n.historyFiles(".checkpoint")) > 0 })
	for name := range saved {
		if err := save(name); err != nil {
			t.Errorf("with space again: %v", err)
		}
		if err := varve("snapshot", "inspect", filepath.Join(n.state, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := n.holds(acked); err != nil {
		t.Errorf("with space again: %v", err)
	}
}
