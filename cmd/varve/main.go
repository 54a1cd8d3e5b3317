// Command varve is the agent and its command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/varve-net/varve/cmd/varve/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends what does not heed the first.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
