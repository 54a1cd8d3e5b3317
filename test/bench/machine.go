package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/coredns/coredns/coremain"
	"golang.org/x/sys/unix"
)

// Machine is where the figures come from.
type Machine struct {
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	MemoryMB int               `json:"memory_mb"`
	Kernel   string            `json:"kernel"`
	Disk     string            `json:"disk"` // file system of the directory that was used
	Versions map[string]string `json:"versions"`
}

func thisMachine(dir, varve string) (Machine, error) {
	m := Machine{CPUs: runtime.NumCPU(), Versions: map[string]string{"etcd": etcdVersion, "CoreDNS": coremain.CoreVersion, "Go": strings.TrimPrefix(runtime.Version(), "go")}}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, fmt.Errorf("uname: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(u.Release[:])
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return m, fmt.Errorf("sysinfo: %w", err)
	}
	m.MemoryMB = int(si.Totalram * uint64(si.Unit) >> 20)
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for line := range bytes.Lines(info) {
		if name, value, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	if m.Disk, err = fileSystem(dir); err != nil {
		return m, err
	}
	for name, args := range map[string][]string{
		"varve": {varve, "version"}, "iptables": {"iptables", "--version"}, "nftables": {"nft", "--version"}, "iproute2": {"ip", "-V"},
		"unbound": {"unbound", "-V"}, "dnsmasq": {"dnsmasq", "--version"},
	} {
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			m.Versions[name] = strings.TrimSpace(line)
		}
	}
	return m, nil
}

// fileSystem is the type of the file system that holds a directory.
func fileSystem(dir string) (string, error) {
	var s unix.Stat_t
	if err := unix.Stat(dir, &s); err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	want := fmt.Sprintf("%d:%d", unix.Major(s.Dev), unix.Minor(s.Dev))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	lines := bufio.NewScanner(bytes.NewReader(mounts))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 3 || f[2] != want {
			continue
		}
		if _, after, ok := strings.Cut(lines.Text(), " - "); ok {
			kind, _, _ := strings.Cut(after, " ")
			return kind, nil
		}
	}
	return "unknown", nil
}
