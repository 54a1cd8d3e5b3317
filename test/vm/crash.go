package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/varve-net/varve/test/vm/wire"
)

// crashModules are what a machine with a disk needs.
var crashModules = []string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4"}

const (
	diskBytes = 512 << 20
	// mostAcks is how many appends are acknowledged at most before a kill.
	mostAcks = 200
)

// crash kills a whole machine by SIGKILL again and again while it appends, and checks
// at the next boot from the same disk that all it acknowledged is there. What the
// guest had not flushed is lost with its memory; what it flushed is in the image's
// file, since the disk's cache mode passes flushes on.
type crash struct {
	config
	kernel  kernel
	dir     string
	initrd  string
	disk    string
	console string

	acked map[string]uint64 // request id -> revision
}

func runCrash(ctx context.Context, c config, work string, stderr io.Writer) error {
	k, err := fetch(ctx, c.cache, c.suites[0])
	if err != nil {
		return err
	}
	m := &crash{
		config: c, kernel: k, dir: work, acked: make(map[string]uint64),
		initrd: filepath.Join(work, "initrd"), disk: filepath.Join(work, "disk"), console: filepath.Join(work, "console"),
	}
	if err := m.prepare(ctx); err != nil {
		return err
	}
	for round := range c.crash + 1 {
		// The last boot only checks.
		kill := 0
		if round < c.crash {
			kill = 1 + rand.IntN(mostAcks)
		}
		had := len(m.acked)
		if err := m.boot(ctx, kill); err != nil {
			return fmt.Errorf("boot %d: %w\nthe end of the console:\n%s", round+1, err, tail(m.console, 40))
		}
		fmt.Fprintf(stderr, "vm: boot %d of %d: %d acknowledged appends found, %d more before the kill\n", round+1, c.crash+1, had, len(m.acked)-had)
	}
	fmt.Fprintf(stderr, "vm: Linux %s killed %d times: %d acknowledged appends, none lost\n", k.version, c.crash, len(m.acked))
	return nil
}

func (m *crash) prepare(ctx context.Context) (err error) {
	if err := goBuild(ctx, "build", filepath.Join(m.dir, "init"), "./test/vm/crashinit"); err != nil {
		return err
	}
	if err := writeInitramfs(m.initrd, m.kernel, m.dir, contents{modules: crashModules}); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	f, err := os.Create(m.disk)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(diskBytes), f.Close()); err != nil {
		return err
	}
	_, err = output(ctx, "", nil, "mkfs.ext4", "-q", "-F", m.disk)
	return err
}

// boot starts the machine, checks what it finds, and kills it after so many
// acknowledgements, or once all is checked if that is 0.
func (m *crash) boot(ctx context.Context, kill int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", cpuModel, "-machine", "q35",
		"-smp", strconv.Itoa(m.cpus), "-m", "512",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
		"-drive", "file="+m.disk+",format=raw,if=virtio,cache=writeback",
		"-kernel", m.kernel.image, "-initrd", m.initrd, "-append", kernelParams,
		"-serial", "file:"+m.console, "-serial", "stdio")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	limit := time.AfterFunc(m.config.boot, func() { cancel(errBoot) })
	defer limit.Stop()
	readErr := m.read(bufio.NewReader(out), kill, func() { _ = cmd.Process.Kill() })
	if readErr != nil {
		cancel(readErr)
	}
	_ = cmd.Wait() // it was killed
	if readErr == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return readErr
}

// read follows the machine until it has gone. What had been said before the kill
// counts, also if it is read after.
func (m *crash) read(in *bufio.Reader, kill int, stop func()) error {
	found := make(map[string]uint64)
	opened, acks := false, 0
	for {
		text, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			if !opened {
				return errors.New("the machine ended before it had opened the log")
			}
			return nil
		}
		if err != nil {
			return err
		}
		said, ok := wire.ParseCrash(text)
		switch {
		case !ok:
		case said.Broke != "":
			return fmt.Errorf("the machine says: %s", said.Broke)
		case said.Have != nil:
			found[said.Have.ID] = said.Have.Revision
		case said.Open != nil:
			opened = true
			if err := m.check(found, *said.Open); err != nil {
				return err
			}
			if kill == 0 {
				stop()
			}
		case said.Acked != nil:
			m.acked[said.Acked.ID] = said.Acked.Revision
			if acks++; acks == kill {
				stop()
			}
		}
	}
}

// check compares what the machine found with what it had acknowledged.
func (m *crash) check(found map[string]uint64, head wire.Head) error {
	if uint64(len(found)) != head.Revision {
		return fmt.Errorf("the log ends at revision %d and has %d records", head.Revision, len(found))
	}
	for id, revision := range m.acked {
		if found[id] != revision {
			return fmt.Errorf("request %s was acknowledged at revision %d and is now at %d (0: gone)", id, revision, found[id])
		}
	}
	return nil
}
