package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strconv"
	"time"

	"github.com/varve-net/varve/test/vm/wire"
)

// machine is a virtual machine. The kernel's console goes to a file, what the
// init says to standard output, by another serial port: so neither can tear the
// other's lines apart.
type machine struct {
	config
	kernel  kernel
	initrd  string
	console string
}

// kernelParams are those of every machine. The timer is not checked: an emulated one
// that the host does not let run in time fails the check, and the kernel panics.
const kernelParams = "console=ttyS0 panic=-1 mitigations=off nokaslr no_timer_check rdinit=/init"

// cpuModel is every machine's processor. Emulation does string instructions a byte at a
// time, so a machine must not take them for the fast ones that they are elsewhere: it
// would clear all its memory by them.
const cpuModel = "max,la57=off,erms=off,fsrm=off"

// command runs a machine. With icount its time is what it computes: an instruction takes
// a nanosecond of all its clocks, and while it waits it goes on to its next timer at
// once. So however little the host lets it run, its tests have the same time to do
// something. Its processors take turns on one of the host's then.
func (m machine) command(ctx context.Context) *exec.Cmd {
	accel := []string{"-accel", "tcg,thread=multi"}
	if m.icount {
		accel = []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-rtc", "clock=vm"}
	}
	return exec.CommandContext(ctx, "qemu-system-x86_64", append(accel, "-cpu", cpuModel,
		"-machine", "q35", "-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memoryMB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
		"-kernel", m.kernel.image, "-initrd", m.initrd, "-append", kernelParams,
		"-serial", "file:"+m.console, "-serial", "stdio")...)
}

var errDied = errors.New("the machine stopped before all tests had ended")

// run boots the machine and turns what its init says into test events. Failed
// tests are no error. It returns the processor time that the machine took.
func (m machine) run(ctx context.Context, stdout io.Writer) (time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := m.command(ctx)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	l := limits{boot: m.boot, tests: m.timeout}
	go l.watch(ctx, m.spent(cmd.Process.Pid), cancel)
	r := reader{machine: m, stdout: stdout, begun: func() { l.begun.Store(true) }}
	readErr := r.read(out)
	if readErr != nil {
		cancel(readErr)
	}
	waitErr := cmd.Wait()
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	switch {
	case ctx.Err() != nil:
		return used, context.Cause(ctx)
	case waitErr != nil:
		return used, fmt.Errorf("%s: %w: %s", cmd.Path, waitErr, bytes.TrimSpace(stderr.Bytes()))
	case !r.done:
		return used, errDied
	}
	return used, nil
}

// reader reads what package init writes.
type reader struct {
	machine
	stdout io.Writer
	begun  func() // when the first package starts
	done   bool
	any    bool

	pkg     string // whose output it is
	convert *exec.Cmd
	in      io.WriteCloser
}

func (r *reader) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			if err := r.line(line); err != nil {
				return errors.Join(err, r.abandon())
			}
		}
		if err == io.EOF {
			return r.abandon()
		}
		if err != nil {
			return errors.Join(err, r.abandon())
		}
	}
}

func (r *reader) line(line string) error {
	m, ok := wire.Parse(line)
	switch {
	case !ok && r.in != nil:
		_, err := io.WriteString(r.in, line)
		return err
	case !ok:
		return nil
	case m.Kind == wire.Start:
		if !r.any {
			r.any = true
			r.begun()
		}
		return r.start(m.Package)
	case m.Kind == wire.End:
		return r.end(m)
	case m.Kind == wire.Done:
		r.done = true
		return nil
	}
	return fmt.Errorf("init: %s", m.Text)
}

func (r *reader) start(pkg string) (err error) {
	r.pkg = path.Join("linux-"+r.kernel.version, pkg)
	// Not by the context: it ends with its input.
	r.convert = exec.Command("go", "tool", "test2json", "-p", r.pkg)
	r.convert.Stdout = r.stdout
	if r.in, err = r.convert.StdinPipe(); err != nil {
		return err
	}
	return r.convert.Start()
}

func (r *reader) finish() error {
	if r.in == nil {
		return nil
	}
	err := errors.Join(r.in.Close(), r.convert.Wait())
	r.in = nil
	return err
}

func (r *reader) end(m wire.Message) error {
	if err := r.finish(); err != nil {
		return err
	}
	if m.Code == 0 {
		return emit(r.stdout, event{Action: "output", Package: r.pkg, Output: fmt.Sprintf("ok  \t%s\t%s\n", r.pkg, m.Took)})
	}
	return errors.Join(
		emit(r.stdout, event{Action: "output", Package: r.pkg, Output: fmt.Sprintf("FAIL\t%s\t%s\texit status %d\n", r.pkg, m.Took, m.Code)}),
		emit(r.stdout, event{Action: "fail", Package: r.pkg}))
}

// abandon ends the package that the machine was at when it stopped.
func (r *reader) abandon() error {
	if r.in == nil {
		return nil
	}
	return errors.Join(r.finish(), emit(r.stdout, event{Action: "fail", Package: r.pkg}))
}
