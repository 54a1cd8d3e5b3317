package faults

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a file with an ext4 in it, mounted at the node's state directory.
type disk struct {
	n     *node
	image string
}

func (n *node) disk(size int64) *disk {
	n.t.Helper()
	d := &disk{n, filepath.Join(n.dir, "disk")}
	f, err := os.Create(d.image)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		n.t.Fatal(err)
	}
	f.Close()
	d.run("mkfs.ext4", "-q", "-F", d.image)
	if err := os.MkdirAll(n.state, 0o750); err != nil {
		n.t.Fatal(err)
	}
	d.mount()
	// Lazily, because an agent may not have ended yet where a test failed.
	n.t.Cleanup(func() { _ = unix.Unmount(n.state, unix.MNT_DETACH) })
	return d
}

func (d *disk) run(command string, args ...string) {
	d.n.t.Helper()
	cmd := exec.Command(command, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Err != nil { // where it is, the environment above says
		cmd.Path, cmd.Err = "/usr/sbin/"+command, nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		d.n.t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

func (d *disk) mount() { d.n.t.Helper(); d.run("mount", "-o", "loop", d.image, d.n.state) }

// fail makes ext4 go read only under open files, as it does by itself when it meets
// an error of the device (errors=remount-ro).
func (d *disk) fail() { d.n.t.Helper(); d.run("mount", "-o", "remount,abort", d.n.state) }

// repair mounts it again.
func (d *disk) repair() {
	d.n.t.Helper()
	d.run("umount", d.n.state)
	d.mount()
}

// A disk that goes read only under a running agent: the append is refused, the agent
// ends with the file and the reason, enforcement goes on without it, and with the
// disk repaired everything acknowledged is there.
func TestDiskGoesReadOnly(t *testing.T) {
	n := newNode(t)
	d := n.disk(256 * mib)
	a := n.start()
	tr := n.traffic()
	acked := n.appendMany("before", 20)
	d.fail()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if rev, err := n.append(ctx, "during"); err == nil {
		t.Errorf("acknowledged at revision %d on a disk that takes nothing", rev)
	} else if ctx.Err() != nil {
		t.Errorf("no answer: %v\n%s", err, a.log())
	}
	n.refused(a, "read-only file system", filepath.Join(n.state, "log"))
	tr.goesOn("disk read only, agent gone")
	n.refused(n.launch(), "read-only file system", n.state)
	tr.goesOn("a second start refused")

	d.repair()
	n.start()
	if err := n.holds(acked); err != nil {
		t.Errorf("on the repaired disk: %v", err)
	}
	maps.Copy(acked, n.appendMany("after", 5))
	if err := n.holds(acked); err != nil {
		t.Error(err)
	}
	tr.goesOn("disk repaired")
	if c := n.check("log"); !c.Ok || strings.Contains(c.Message, "read-only") {
		t.Errorf("check log: ok=%v, %s", c.Ok, c.Message)
	}
}
