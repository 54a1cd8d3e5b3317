// Bench measures every hot path of varve beside its peer or the physical limit,
// in alternating rounds of one run, and writes the figures as JSON, as plots and
// into docs/benchmarks.md. It judges nothing: it prints ratios.
//
//	bench run    [-quick] [-only append,replay] -varve BINARY -out results.json
//	bench report -in results.json -docs DIR
//
// The other commands are what it starts of itself, as processes of their own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

type command func(ctx context.Context, args []string, stdout, stderr io.Writer) error

var commands = map[string]command{
	"run":         runCommand,
	"report":      reportCommand,
	"load":        loadCommand,
	"replay":      replayCommand,
	"history":     historyCommand,
	"audit":       auditCommand,
	"traffic":     trafficCommand,
	"etcd-server": etcdServerCommand,
	"dns-load":    dnsLoadCommand,
	"dns-server":  dnsServerCommand,
	"coredns":     coreDNSCommand,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprintln(stderr, "usage: bench run|report [flags]; bench run -h shows them")
		return 2
	}
	err := commands[args[0]](ctx, args[1:], stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "bench %s: %v\n", args[0], err)
		return 1
	default:
		return 0
	}
}
