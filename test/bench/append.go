package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// appendClients are the numbers of clients at once.
var appendClients = []int{1, 16, 64, 256}

// clientsPerConnection: clients of one program share a connection, of several
// they do not. etcd's own benchmark recommends ten.
const clientsPerConnection = 16

// streamDepth is how many appends a client of varve-stream has under way.
const streamDepth = 16

// runAppend lets clients in a process of their own append durably: one event of
// 256 bytes a request to varve, one value of 256 bytes a request to etcd, on the
// same disk and both over a unix socket, in turn.
func runAppend(ctx context.Context, p *plan, out sink) error {
	for round := range p.rounds {
		for _, clients := range appendClients {
			if err := p.appendRound(ctx, out, round, clients); err != nil {
				return err
			}
		}
		p.say("append: round %d of %d", round+1, p.rounds)
	}
	return nil
}

func (p *plan) appendRound(ctx context.Context, out sink, round, clients int) error {
	dir := filepath.Join(p.dir, fmt.Sprintf("append-%d-%d", round, clients))
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	of := fmt.Sprintf("%d clients", clients)
	steps := []func() error{
		func() error { return p.appendVarve(ctx, out, dir, of, clients) },
		func() error { return p.appendEtcd(ctx, out, dir, of, clients) },
		func() error {
			return p.load(ctx, out, "varve, in process", of, "-target", "varve-inproc", "-addr", subdir(dir, "vi"), "-clients", strconv.Itoa(clients))
		},
		func() error {
			return p.load(ctx, out, "etcd, in process", of, "-target", "etcd-inproc", "-addr", subdir(dir, "ei"), "-clients", strconv.Itoa(clients))
		},
	}
	for i := range steps {
		// Whoever comes first in one round comes last in the next.
		if err := steps[(i+round)%len(steps)](); err != nil {
			return err
		}
	}
	return nil
}

func subdir(dir, name string) string {
	path := filepath.Join(dir, name)
	_ = os.MkdirAll(path, 0o700) // what cannot be made is reported by who opens it
	return path
}

func (p *plan) appendVarve(ctx context.Context, out sink, dir, of string, clients int) error {
	a, err := p.startAgent(ctx, filepath.Join(dir, "v"), "")
	if err != nil {
		return err
	}
	defer a.stop()
	conns := strconv.Itoa((clients + clientsPerConnection - 1) / clientsPerConnection)
	for _, step := range []struct{ subject, target, depth string }{
		{"varve", "varve", "1"},
		{"varve, a request each", "varve-unary", "1"},
		{fmt.Sprintf("varve, stream, %d under way", streamDepth), "varve-stream", strconv.Itoa(streamDepth)},
	} {
		err := p.load(ctx, out, step.subject, of, "-target", step.target, "-addr", a.socket,
			"-clients", strconv.Itoa(clients), "-conns", conns, "-depth", step.depth)
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) appendEtcd(ctx context.Context, out sink, dir, of string, clients int) error {
	socket := filepath.Join(dir, "e.sock")
	s, err := startSelf(ctx, "etcd-server", "-dir", subdir(dir, "e"), "-socket", socket)
	if err != nil {
		return err
	}
	defer s.stop()
	conns := strconv.Itoa((clients + clientsPerConnection - 1) / clientsPerConnection)
	return p.load(ctx, out, "etcd", of, "-target", "etcd", "-addr", socket, "-clients", strconv.Itoa(clients), "-conns", conns)
}

// load runs a process of clients and notes what it measured.
func (p *plan) load(ctx context.Context, out sink, subject, of string, args ...string) error {
	var l Load
	args = append([]string{"load", "-seconds", fmt.Sprint(p.length.Seconds())}, args...)
	if err := runSelf(ctx, &l, args...); err != nil {
		return err
	}
	out.add("events/s", of, subject, float64(l.Events)/l.Seconds)
	out.add("p50, ms", of, subject, quantile(l.Micros, 0.50)/1e3)
	out.add("p99, ms", of, subject, quantile(l.Micros, 0.99)/1e3)
	return nil
}
