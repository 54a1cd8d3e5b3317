package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testns"
)

// script writes an executable that stands in for varve.
func script(t *testing.T, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "varve")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

// Whatever goes wrong, the machine is as before and the exit code is not 0.
func TestRunCleansUp(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	soon, cancelSoon := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancelSoon()
	tests := []struct {
		name string
		ctx  context.Context
		self string
		want string
	}{
		{"agent fails at once", t.Context(), script(t, "echo no such kernel >&2; exit 3"), "no such kernel"},
		{"agent never answers", soon, script(t, "exec sleep 60"), "stopped early"},
		{"stopped before it began", cancelled, script(t, "exec sleep 60"), "stopped early"},
		{"no binary", t.Context(), filepath.Join(t.TempDir(), "none"), "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			var out strings.Builder
			if code := Run(tt.ctx, Options{Out: &out, Self: tt.self}); code != exitSetup {
				t.Errorf("exit code %d, want %d", code, exitSetup)
			}
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("output lacks %q:\n%s", tt.want, &out)
			}
			if mounts, err := mountsBelow(tmp); err != nil || len(mounts) > 0 {
				t.Errorf("mounts left: %q, %v", mounts, err)
			}
			left, err := filepath.Glob(filepath.Join(tmp, "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range left {
				if !strings.HasSuffix(l, "-agent.log") {
					t.Errorf("left behind: %s", l)
				}
			}
			if found := processesOf(tmp); len(found) > 0 {
				t.Errorf("left running: %q", found)
			}
		})
	}
}

func TestPanicEndsTheStoryAndIsCleanedUp(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var out strings.Builder
	s, err := newStage(Options{Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	<-s.spawn(func() { panic("boom") })
	if code := s.close(s.background()); code != exitSetup {
		t.Errorf("exit code %d, want %d", code, exitSetup)
	}
	if !strings.Contains(out.String(), "panic: boom") {
		t.Errorf("output lacks the panic:\n%s", &out)
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left", s.dir)
	}
}

func TestJudge(t *testing.T) {
	dropped := &varvev1.DatapathEvent{Type: "drop", Reason: "policy default deny", Endpoint: "shop/db", Direction: "ingress"}
	q := question{from: "a", to: "b", protocol: "TCP", port: 1, because: "default deny at shop/db"}
	timeout := fmt.Errorf("dial: %w", context.DeadlineExceeded)
	tests := []struct {
		name             string
		answer           answer
		allowed, reasons bool
		want             string // part of the error; empty: none
	}{
		{"reached as allowed", answer{reached: true}, true, false, ""},
		{"not reached though allowed", answer{err: timeout}, true, false, "should be allowed"},
		{"reached though denied", answer{reached: true}, false, false, "should be dropped"},
		{"refused is not dropped", answer{err: errors.New("connection refused")}, false, false, "in silence"},
		{"dropped for the reason", answer{err: timeout, event: dropped}, false, true, ""},
		{"dropped for no reason given", answer{err: timeout}, false, true, "reported nothing"},
		{"dropped for another reason", answer{err: timeout, event: &varvev1.DatapathEvent{Type: "drop", Reason: "spoofed address"}}, false, true, "spoofed address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.answer.judge(q, tt.allowed, tt.reasons)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("judge: %v, want %q", err, tt.want)
			}
		})
	}
}

// A flow that loses messages says so: the server is closed under it.
func TestFlowCountsLosses(t *testing.T) {
	for _, q := range []question{
		{from: "here", to: "here", protocol: "TCP", port: 7}, {from: "here", to: "here", protocol: "UDP", port: 7},
		{from: "here", to: "here", protocol: "ICMP", port: 7},
	} {
		for _, f := range families {
			t.Run(q.protocol+f.String(), func(t *testing.T) {
				ns, err := testns.New("flow")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { ns.Close() })
				if err := ns.Do(func() error { return inSpace(linkUp("lo")) }); err != nil {
					t.Fatal(err)
				}
				loopback := [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
				s := &stage{actors: map[string]*actor{"here": {name: "here", space: ns, addr: loopback}}}
				if q.protocol != "ICMP" {
					if err := s.serve(ns, strings.ToLower(q.protocol), q.port); err != nil {
						t.Fatal(err)
					}
				}
				fl, err := s.startFlow(t.Context(), q, f)
				if err != nil {
					t.Fatal(err)
				}
				if err := fl.goesOn(t.Context(), 5); err != nil {
					t.Fatal(err)
				}
				fl.drain(time.Minute)
				if lost := fl.lost(0, fl.mark()); lost != 0 || fl.failure() != nil {
					t.Errorf("lost %d of %d, error %v", lost, fl.mark(), fl.failure())
				}
				fl.answered = append(fl.answered, false)
				fl.sent++
				if lost := fl.lost(0, fl.mark()); lost != 1 {
					t.Errorf("lost %d, want the 1 that was never sent", lost)
				}
				if err := s.takeBack(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestWhyNamesRules(t *testing.T) {
	tests := []struct {
		event *varvev1.DatapathEvent
		want  string
	}{
		{nil, "the datapath reported nothing"},
		{&varvev1.DatapathEvent{Type: "new-flow"}, "no policy selects it"},
		{&varvev1.DatapathEvent{Type: "new-flow", Rules: []string{"np/shop/db ingress[0]"}}, "allowed by np/shop/db ingress[0]"},
		{&varvev1.DatapathEvent{Type: "drop", Reason: "policy denied", Rules: []string{"ccnp/x ingressDeny[0]"}}, "policy denied by ccnp/x ingressDeny[0]"},
		{&varvev1.DatapathEvent{Type: "drop", Reason: "policy default deny", Endpoint: "shop/db", Direction: "ingress"}, "policy default deny at shop/db ingress"},
	}
	for _, tt := range tests {
		if got := why(tt.event); got != tt.want {
			t.Errorf("why: %q, want %q", got, tt.want)
		}
	}
}

func TestTableAligns(t *testing.T) {
	var out strings.Builder
	p := &printer{w: &out, colour: true}
	p.table([]string{"a", "b"}, [][]string{{p.paint(green, "ok"), "x"}, {"long", "y"}})
	for line := range strings.Lines(out.String()) {
		if visible(strings.TrimRight(line, "\n")) != len("   long  y") {
			t.Errorf("line %q has %d columns", line, visible(line))
		}
	}
}
