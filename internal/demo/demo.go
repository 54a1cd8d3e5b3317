// Package demo shows varve's main job on real packets, and checks every claim it
// makes while doing so. It runs the real binary as an agent in a network namespace
// of its own, speaks to it through the public API only, and leaves nothing behind.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

// Options of a run.
type Options struct {
	// Out is where the story is told; nil: standard output. Colours are used if it
	// is a terminal.
	Out     io.Writer
	NoColor bool
	// Self is the varve binary that becomes the agent; empty: this executable.
	Self string
	// Keep leaves the agent, its namespaces and its files for a look around.
	Keep bool
}

// errStopped is why a story that someone, or its time limit, stopped has no end.
var errStopped = errors.New("stopped early")

// Exit codes of Run.
const (
	exitHeld   = 0 // everything that was claimed held
	exitFailed = 1 // something did not
	exitSetup  = 3 // the demo could not be carried out
)

// runLimit bounds a run, so that a hang ends in a report and a clean machine.
const runLimit = 10 * time.Minute

// Run tells the story and returns the process's exit code: 0 only if every claim
// held and nothing was left behind. It must run as root, in no particular network
// namespace. SIGINT, SIGTERM and SIGHUP, like the end of ctx, stop it early; it
// cleans up all the same.
func Run(ctx context.Context, o Options) (code int) {
	if o.Out == nil {
		o.Out = os.Stdout
	}
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	// Registered until the end, so that a second Ctrl-C does not stop the cleaning.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	s, err := newStage(o)
	if err != nil {
		fmt.Fprintln(o.Out, "varve demo:", err)
		return exitSetup
	}
	err = s.tell(ctx)
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", errStopped, context.Cause(ctx))
	}
	return s.close(err)
}

// tell plays the acts in order. An error ends the story; a claim that does not
// hold is noted and the story goes on.
func (s *stage) tell(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	s.out.printf("%s  %s\n", s.out.paint(bold, "varve demo"), s.out.paint(faint, "real packets, real policy, one SIGKILL"))
	for _, act := range []func(context.Context) error{
		s.actConnect, s.actOpen, s.actPolicies, s.actEnforced, s.actLiveChange, s.actKill, s.actRestart, s.actAfterwards, s.actNames,
	} {
		if err := act(ctx); err != nil {
			return err
		}
		if err := s.background(); err != nil {
			return err
		}
	}
	return nil
}

// close cleans up, gives the verdict and returns the exit code.
func (s *stage) close(err error) int {
	if s.opts.Keep {
		s.describeKept()
	} else {
		s.actCleanUp(err)
	}
	s.out.printf("\n")
	failures := s.failed()
	switch {
	case err == nil && len(failures) == 0:
		s.out.printf("%s %s\n", s.out.mark(true), s.out.paint(bold, fmt.Sprintf("all %d claims held, in %.1f s", s.claims(), time.Since(s.out.began).Seconds())))
		return exitHeld
	case err != nil:
		s.out.printf("%s %s\n", s.out.mark(false), s.out.paint(red, err.Error()))
	}
	if len(failures) > 0 {
		s.out.printf("%s %s\n", s.out.mark(false), s.out.paint(bold, fmt.Sprintf("%d of %d claims did not hold:", len(failures), s.claims())))
	}
	for _, f := range failures {
		s.out.printf("   %s\n", s.out.paint(red, f))
	}
	if s.savedLog != "" {
		s.out.printf("   the agent's log: %s\n", s.savedLog)
	}
	if err != nil {
		return exitSetup
	}
	return exitFailed
}
