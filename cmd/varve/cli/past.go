package cli

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/offline"
	"github.com/varve-net/varve/internal/past"
)

// dialArchive answers from an archive in this process.
func (a *app) dialArchive() (*api.Client, error) {
	if a.socket != "" {
		return nil, usagef("--log, --socket: an archive or an agent answers, not both; give one")
	}
	// The states of a replay live as long as the answer takes: less often looking for
	// what is garbage is a fifth of the time.
	debug.SetGCPercent(200)
	server, err := offline.Serve(context.Background(), offline.Config{
		Path: a.archive, Node: a.node, Flows: a.flows, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, fmt.Errorf("--log: %w", err)
	}
	a.offline = server
	if err := server.Archive.History.Damage(); err != nil {
		fmt.Fprintf(a.stderr, "varve: %s: %v\n", a.ink.warn.Sprint("warning"), err)
	}
	if a.client, err = server.Client(); err != nil {
		return nil, err
	}
	return a.client, nil
}

// momentArgs lets "-2h" stand where a moment does: as it is it would be taken for
// flags, and no flag of ours is a digit. Whoever reads a moment trims it.
func momentArgs(args []string) []string {
	out := slices.Clone(args)
	for i, arg := range out {
		if len(arg) > 2 && arg[0] == '-' && arg[1] >= '0' && arg[1] <= '9' && strings.ContainsAny(arg[len(arg)-1:], "dhms") {
			out[i] = " " + arg
		}
	}
	return out
}

// momentValue is the flag --at, which takes what names a moment.
type momentValue struct {
	app *app
	to  *string
}

// moment is a moment as a user wrote it, whose times are of the zone that times are shown
// in unless they name one.
func (a *app) moment(text string) (string, error) {
	return past.Zoned(text, a.zone), past.Check(text)
}

func (v momentValue) String() string { return *v.to }
func (v momentValue) Type() string   { return "moment" }
func (v momentValue) Set(s string) (err error) {
	*v.to, err = v.app.moment(s)
	return err
}

// withAt gives a command that reads the flag --at.
func (a *app) withAt(cmd *cobra.Command, at *string) *cobra.Command {
	cmd.Flags().Var(momentValue{a, at}, "at", "as it was at a revision or time: "+momentHelp)
	_ = cmd.RegisterFlagCompletionFunc("at", cobra.NoFileCompletions)
	return cmd
}

// sayWhen tells, beside a table, of which moment of the past it is.
func (a *app) sayWhen(at *varvev1.Moment) {
	if at != nil {
		fmt.Fprintln(a.stderr, a.ink.dim.Sprint("at "+a.revisionAt(at.Revision, at.TimeUnixNs)))
	}
}
