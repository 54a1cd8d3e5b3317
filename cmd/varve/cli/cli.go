// Package cli is the varve command. All of it goes through the agent's API, bar
// what is offline by nature: policy validate, policy test, version, completion. With
// --log, the same API is answered from an archive.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/varve-net/varve/api"
	"github.com/varve-net/varve/internal/offline"
)

// Run executes one command line, without the program's name, and returns the exit
// code: 0 yes, 1 the question's answer is no, 2 usage, 3 the agent cannot be
// reached or something broke. It ends when ctx does.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return newApp(stdin, stdout, stderr).run(ctx, args)
}

// app is one execution of the command.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	now    func() time.Time
	zone   *time.Location // in which times are shown
	// agentConfig is the file of the agent's settings unless another is given.
	agentConfig string

	socket  string
	archive string // answers instead of an agent
	node    string // for which the archive answers
	flows   string // a flow record beside the archive
	output  string
	noColor bool
	ink     palette

	// running is set once a command's own code runs. What goes wrong before is
	// about the command line.
	running bool
	client  *api.Client
	offline *offline.Server // behind client, for an archive
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{
		stdin: stdin, stdout: stdout, stderr: stderr, now: time.Now, zone: time.Local,
		agentConfig: "/etc/varve/config.yaml", output: formatTable,
	}
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(momentArgs(args))
	cmd, err := root.ExecuteContextC(ctx)
	if a.client != nil {
		a.client.Close()
	}
	if a.offline != nil {
		err = errors.Join(err, a.offline.Close())
	}
	if err == nil {
		return exitYes
	}
	if !a.running {
		err = &exitError{code: exitUsage, err: fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())}
	}
	message, code := explain(ctx, err)
	for line := range strings.Lines(message) {
		fmt.Fprintf(a.stderr, "varve: %s\n", strings.TrimRight(line, "\n"))
	}
	return code
}

func (a *app) root() *cobra.Command {
	root := group("varve", "Networking and security for Linux containers, from one replicated log", `
varve connects containers and enforces who may talk to whom. All it knows is in
one log of events; the content of its BPF maps is computed from it.

Exit codes: 0 yes, 1 the question's answer is no, 2 usage, 3 unreachable or
internal.`, `
  varve agent
  varve endpoint add web --netns web --labels app=web
  varve policy apply -f web.yaml
  varve monitor --type drop
  varve status --verify`)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	// A group runs only to say that it does not.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	flags := root.PersistentFlags()
	flags.StringVar(&a.socket, "socket", "", "the agent's unix socket (default $"+api.SocketEnv+" or "+api.DefaultSocket+")")
	flags.StringVar(&a.archive, "log", "", "answer from an exported log or a state directory instead of asking an agent")
	flags.StringVar(&a.node, "log-node", "", "with --log: answer as the agent of this node (default the one whose it is, or the only one)")
	flags.StringVar(&a.flows, "log-flows", "", "with --log: a copy of the folder of a node's flow record (default the one in the state directory)")
	_ = root.MarkPersistentFlagFilename("log")
	_ = root.MarkPersistentFlagDirname("log-flows")
	flags.BoolVar(&a.noColor, "no-color", false, "print without colours, as if NO_COLOR were set")
	root.PersistentPreRun = func(*cobra.Command, []string) { a.ink = newPalette(a.coloured(a.stdout)) }

	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run:"},
		&cobra.Group{ID: groupChange, Title: "Connect and protect:"},
		&cobra.Group{ID: groupLook, Title: "Look inside:"},
		&cobra.Group{ID: groupOther, Title: "Other:"},
	)
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	add := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	add(groupRun, a.agentCommand(), a.dnsProxyCommand(), a.demoCommand(), a.statusCommand())
	add(groupChange, a.endpointCommand(), a.namespaceCommand(), a.policyCommand())
	add(groupLook, a.identityCommand(), a.nodeCommand(), a.bpfCommand(), a.monitorCommand(), a.observeCommand(), a.fqdnCommand(), a.logCommand(), a.snapshotCommand(), a.auditCommand())
	add(groupOther, a.versionCommand())
	a.watch(root)
	return root
}

// Groups of commands in the help text.
const (
	groupRun    = "run"
	groupChange = "change"
	groupLook   = "look"
	groupOther  = "other"
)

// watch makes every command say that it runs.
func (a *app) watch(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			a.running = true
			return run(c, args)
		}
	}
	for _, c := range cmd.Commands() {
		a.watch(c)
	}
}

// group is a command that only holds others.
func group(use, short, long, example string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: strings.TrimSpace(long), Example: strings.Trim(example, "\n"),
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				cmd.SetOut(cmd.ErrOrStderr())
				_ = cmd.Help()
				return &exitError{code: exitUsage}
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("; did you mean %q?", strings.Join(near, " or "))
			}
			return usagef("unknown command %q for %q%s; see `%s --help`", args[0], cmd.CommandPath(), hint, cmd.CommandPath())
		},
	}
}

// dial returns the client of the agent, or of what answers in its place.
func (a *app) dial() (*api.Client, error) {
	if a.client == nil && a.archive != "" {
		return a.dialArchive()
	}
	if a.client == nil {
		c, err := api.New(a.socket)
		if err != nil {
			return nil, &exitError{code: exitUsage, err: fmt.Errorf("--socket: %w", err)}
		}
		a.client = c
	}
	return a.client, nil
}
