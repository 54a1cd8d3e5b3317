package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tuples of live traffic: so many source ports, times so many destination ports.
const (
	sourcePorts      = 320
	destinationPorts = 320
	firstSourcePort  = 20000
	firstDestination = 30000
)

const statsSwitch = "/proc/sys/kernel/bpf_stats_enabled"

// measureLive has the kernel count what the programs of an agent cost a packet, by its
// own run_time_ns and run_cnt, while datagrams of 100k tuples pass: each tuple's first,
// and then those of flows that are known, one of each tuple after the other.
func (p *plan) measureLive(ctx context.Context, pt *path, out sink) (err error) {
	was, err := os.ReadFile(statsSwitch)
	if err != nil {
		return err
	}
	if err := os.WriteFile(statsSwitch, []byte("1"), 0o644); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.WriteFile(statsSwitch, was, 0o644)) }()
	on := func(namespace string) []string {
		return []string{"nsenter", "--net=/run/netns/" + namespace, "taskset", "-c", "0"}
	}
	s, err := startSelfUnder(ctx, on(pt.b()), "traffic", "-serve", "-mode", "tuples")
	if err != nil {
		return err
	}
	defer s.kill()
	const tuples = sourcePorts * destinationPorts
	for _, pass := range []struct {
		name   string
		passes int
	}{{"new flow", 1}, {"established", 10}} {
		before, err := programStats(pt.agent)
		if err != nil {
			return err
		}
		var t Traffic
		if err := runSelfUnder(ctx, on(pt.a()), &t, "traffic", "-mode", "tuples", "-to", pt.to, "-passes", fmt.Sprint(pass.passes)); err != nil {
			return err
		}
		after, err := programStats(pt.agent)
		if err != nil {
			return err
		}
		runs := after.runs - before.runs
		if runs < uint64(tuples*pass.passes) {
			return fmt.Errorf("%s: the programs ran %d times, want %d at least", pass.name, runs, tuples*pass.passes)
		}
		out.add(liveMetric, pass.name, pt.label, float64(after.ns-before.ns)/float64(runs))
	}
	return nil
}

const liveMetric = "ns a packet, live"

// runStats are the sums over the programs that a process holds.
type runStats struct{ ns, runs uint64 }

func programStats(pid int) (runStats, error) {
	var sum runStats
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return sum, err
	}
	seen := make(map[string]bool) // one program may be open twice
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // closed meanwhile
		}
		fields := make(map[string]string)
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.TrimSpace(value)
		}
		id := fields["prog_id"]
		if id == "" || seen[id] {
			continue
		}
		seen[id] = true
		ns, err := strconv.ParseUint(fields["run_time_ns"], 10, 64)
		if err != nil {
			return sum, fmt.Errorf("%s: run_time_ns: %w", file, err)
		}
		runs, err := strconv.ParseUint(fields["run_cnt"], 10, 64)
		if err != nil {
			return sum, fmt.Errorf("%s: run_cnt: %w", file, err)
		}
		sum.ns, sum.runs = sum.ns+ns, sum.runs+runs
	}
	if len(seen) == 0 {
		return sum, fmt.Errorf("process %d holds no BPF program", pid)
	}
	return sum, nil
}

// bindTuples takes every destination port and reads none: what finds no room is dropped
// after it has come in.
func bindTuples() error {
	for i := range destinationPorts {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: firstDestination + i})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sendTuples sends one datagram of each tuple, so many times over.
func sendTuples(to unix.SockaddrInet4, passes int) (Traffic, error) {
	var fds [sourcePorts]int
	for i := range fds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: firstSourcePort + i})
		}
		if err != nil {
			return Traffic{}, err
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	raw := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr}
	one := []byte{1}
	began := time.Now()
	for range passes {
		for d := range destinationPorts {
			port := (*[2]byte)(unsafe.Pointer(&raw.Port))
			port[0], port[1] = byte((firstDestination+d)>>8), byte(firstDestination+d)
			for _, fd := range fds {
				if _, err := call(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&one[0])), 1, 0, uintptr(unsafe.Pointer(&raw)), unix.SizeofSockaddrInet4); err != nil {
					return Traffic{}, err
				}
			}
		}
	}
	runtime.KeepAlive(one)
	return Traffic{PerSecond: float64(passes*sourcePorts*destinationPorts) / time.Since(began).Seconds()}, nil
}

// runMetric is of the kernel's own harness (BPF_PROG_RUN), which costs some 38 ns.
const runMetric = "ns a packet, BPF_PROG_RUN"

var benchLine = regexp.MustCompile(`^BenchmarkPacket/(\S+?)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op`)

// measureRuns takes the benchmark of package bpf: one packet a million times, with 100k
// endpoints and 100k flows known.
func (p *plan) measureRuns(ctx context.Context, out sink) error {
	text, err := outputOf(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkPacket$", "-benchtime", "300000x", "./bpf")
	if err != nil {
		return err
	}
	found := 0
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		m := benchLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		ns, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		out.add(runMetric, "100k endpoints", strings.ReplaceAll(m[1], "/", ", "), ns)
		found++
	}
	if found == 0 {
		return fmt.Errorf("go test ./bpf: no figures in:\n%s", text)
	}
	return nil
}
