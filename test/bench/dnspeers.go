package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// dnsSubjects in the order of the report. The first is what others are compared with.
func (p *plan) dnsSubjects() []*dnsSubject {
	unique := func(name string) []dnsKind { return []dnsKind{{label: name}} }
	direct := &dnsSubject{
		path:  &path{name: "dnsdirect", label: "the upstream alone", to: addrB},
		kinds: unique("the upstream alone"),
	}
	direct.setup = func(ctx context.Context, pt *path) (func() error, error) { return startUpstream(ctx, pt, routed) }
	varve := &dnsSubject{
		path: &path{name: "dnsvarve", label: "varve", to: addrB},
		kinds: []dnsKind{
			{label: "varve, known names", prefix: "known", known: true},
			{label: "varve, new names"},
		},
	}
	varve.setup = func(ctx context.Context, _ *path) (func() error, error) { return p.startDNSAgent(ctx, varve) }
	subjects := []*dnsSubject{direct, varve}
	for _, f := range dnsForwarders {
		s := &dnsSubject{path: &path{name: "dns" + f.name, label: f.label, to: addrNode}, kinds: unique(f.label)}
		s.setup = func(ctx context.Context, pt *path) (func() error, error) {
			stopUpstream, err := startUpstream(ctx, pt, routed)
			if err != nil {
				return nil, err
			}
			cmd, err := p.startForwarder(ctx, f, pt)
			if err != nil {
				return nil, errors.Join(err, stopUpstream())
			}
			s.processes = []int{cmd.Process.Pid}
			return func() error {
				_ = cmd.Process.Signal(syscall.SIGTERM)
				_ = cmd.Wait() // what a forwarder has to say at its end is of no interest
				return stopUpstream()
			}, nil
		}
		subjects = append(subjects, s)
	}
	return subjects
}

// startUpstream wires the namespaces with a script, puts addrNode on the node and
// starts the upstream.
func startUpstream(ctx context.Context, pt *path, wire string) (stop func() error, err error) {
	if err := pt.shell(ctx, wire+forward+"ip -n $N addr add "+addrNode+"/32 dev lo"); err != nil {
		return nil, err
	}
	s, err := startSelfUnder(ctx, []string{"nsenter", "--net=/run/netns/" + pt.b()}, "dns-server")
	if err != nil {
		return nil, err
	}
	return func() error { s.kill(); return nil }, nil
}

// dnsForwarder is a peer of the DNS proxy: it forwards all names to one server, keeps
// none, and listens at addrNode.
type dnsForwarder struct {
	name, label string
	config      string // of it
	command     func(config string) []string
}

var dnsForwarders = []dnsForwarder{
	{
		name: "coredns", label: "CoreDNS",
		config: ".:53 {\n  bind " + addrNode + "\n  forward . " + addrB + "\n}\n",
		command: func(config string) []string {
			self, err := os.Executable()
			if err != nil {
				self = os.Args[0]
			}
			return []string{self, "coredns", "-quiet", "-conf", config}
		},
	},
	{
		name: "unbound", label: "unbound",
		config: `server:
  interface: ` + addrNode + `
  access-control: 0.0.0.0/0 allow
  do-daemonize: no
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  module-config: "iterator"
  do-not-query-localhost: no
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: ` + addrB + "\n",
		command: func(config string) []string { return []string{"unbound", "-d", "-c", config} },
	},
	{
		name: "dnsmasq", label: "dnsmasq",
		config: "no-resolv\nno-hosts\ncache-size=0\nlisten-address=" + addrNode + "\nbind-interfaces\nserver=" + addrB + "\nuser=root\npid-file=\n",
		command: func(config string) []string {
			return []string{"dnsmasq", "--keep-in-foreground", "--conf-file=" + config}
		},
	},
}

func (p *plan) startForwarder(ctx context.Context, f dnsForwarder, pt *path) (*exec.Cmd, error) {
	config := filepath.Join(p.dir, f.name+".conf")
	if err := os.WriteFile(config, []byte(f.config), 0o600); err != nil {
		return nil, err
	}
	args := append([]string{"--net=/run/netns/" + pt.node()}, f.command(config)...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &log, &log, stopGrace
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err := p.awaitForwarder(ctx, pt)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("%s: %w\n%s", f.label, err, &log)
	}
	return cmd, nil
}

// awaitForwarder returns once a forwarder answers.
func (p *plan) awaitForwarder(ctx context.Context, pt *path) (err error) {
	for end := time.Now().Add(startLimit); time.Now().Before(end); {
		var l DNSLoad
		under := []string{"nsenter", "--net=/run/netns/" + pt.a()}
		err = runSelfUnder(ctx, under, &l, "dns-load", "-to", pt.to, "-prefix", "ready", "-names", "1", "-once")
		if err == nil && l.Lost == 0 {
			return nil
		}
		if serr := sleep(ctx, 50*time.Millisecond); serr != nil {
			return serr
		}
	}
	return fmt.Errorf("does not answer: %w", err)
}
