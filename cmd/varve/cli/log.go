package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log"
)

func (a *app) logCommand() *cobra.Command {
	cmd := group("log", "Read, follow, verify and append to the log", `
The log holds every event, in order, from the first one on. All state follows from
it. With -o json a record is one line of JSON, with -o yaml one document.`, `
  varve log tail -f
  varve log read --from 1 --to 20 --kind policy-set
  varve log verify
  varve log export -f yesterday.varve --since -2d --until -1d
  varve log verify --log yesterday.varve
  varve log append event.json`)
	cmd.AddCommand(a.logTail(), a.logRead(), a.logExport(), a.logAppend(), a.logVerify())
	return cmd
}

// withFilter gives a command the flags that choose records.
func withFilter(cmd *cobra.Command, f *varvev1.Filter) {
	cmd.Flags().StringSliceVar(&f.Kinds, "kind", nil, "only these kinds, e.g. policy-set")
	cmd.Flags().StringSliceVar(&f.StreamPrefixes, "stream", nil, "only streams that begin so, e.g. policy/ or endpoint/shop/")
	cmd.Flags().StringSliceVar(&f.Actors, "actor", nil, "only of actors whose name holds this, e.g. uid=1000")
	_ = cmd.RegisterFlagCompletionFunc("actor", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kindNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("stream", cobra.FixedCompletions([]string{"policy/", "namespace/", "endpoint/", "node/"}, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace))
}

func kindNames() []string {
	var out []string
	for _, k := range log.Kinds() {
		out = append(out, k.String())
	}
	return out
}

func checkFilter(f *varvev1.Filter) error {
	for _, k := range f.Kinds {
		if _, err := log.ParseKind(k); err != nil {
			return usagef("--kind: %q is none of %s", k, strings.Join(kindNames(), ", "))
		}
	}
	return nil
}

func (a *app) logRead() *cobra.Command {
	req := &varvev1.ReadRequest{Filter: &varvev1.Filter{}}
	cmd := &cobra.Command{
		Use:     "read",
		Short:   "Read records by revision",
		Example: "  varve log read --from 17 --to 17 -o yaml\n  varve log read --stream policy/ -o json | jq .event.actor.name",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Last != 0 && req.First > req.Last {
				return usagef("--from %d: is after --to %d", req.First, req.Last)
			}
			if err := checkFilter(req.Filter); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			out := recordPrinter{app: a}
			return readLog(cmd.Context(), c, req, out.print)
		},
	}
	a.withSpan(cmd, req)
	withFilter(cmd, req.Filter)
	return a.withOutput(cmd)
}

// withSpan gives a command the flags that choose records by revision and time.
func (a *app) withSpan(cmd *cobra.Command, req *varvev1.ReadRequest) {
	cmd.Flags().Uint64Var(&req.First, "from", 0, "first revision (0: the oldest kept)")
	cmd.Flags().Uint64Var(&req.Last, "to", 0, "last revision (0: the newest)")
	cmd.Flags().Var(momentValue{a, &req.Since}, "since", "only records after this revision or time: "+momentHelp)
	cmd.Flags().Var(momentValue{a, &req.Until}, "until", "only records up to this revision or time")
	for _, flag := range []string{"since", "until"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
}

func readLog(ctx context.Context, c *api.Client, req *varvev1.ReadRequest, fn func(*varvev1.Record) error) error {
	stream, err := c.Log.Read(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if err := fn(stream.Msg()); err != nil {
			return err
		}
	}
	return stream.Err()
}

func (a *app) logTail() *cobra.Command {
	filter := &varvev1.Filter{}
	var follow bool
	var lines uint64
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show the newest records, and with -f those to come",
		Example: strings.Trim(`
  varve log tail
  varve log tail -f -n 0 --stream policy/`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFilter(filter); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			out := recordPrinter{app: a}
			head, err := lastRecords(ctx, c, filter, lines, out.print)
			if err != nil || !follow {
				return err
			}
			stream, err := c.Log.Subscribe(ctx, connect.NewRequest(&varvev1.SubscribeRequest{After: head, Filter: filter}))
			if err != nil {
				return streamEnd(ctx, err)
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				if err := out.print(stream.Msg()); err != nil {
					return err
				}
			}
			return streamEnd(ctx, stream.Err())
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with each record as it is committed, until interrupted")
	cmd.Flags().Uint64VarP(&lines, "lines", "n", 10, "how many of the newest records")
	withFilter(cmd, filter)
	return a.withOutput(cmd)
}

// lastRecords calls fn for the last n records that the filter takes, and returns
// the revision up to which it looked.
func lastRecords(ctx context.Context, c *api.Client, filter *varvev1.Filter, n uint64, fn func(*varvev1.Record) error) (uint64, error) {
	status, err := c.Agent.Status(ctx, connect.NewRequest(&varvev1.StatusRequest{}))
	if err != nil {
		return 0, err
	}
	head := status.Msg.Revision
	if head == 0 || n == 0 {
		return head, nil
	}
	req := &varvev1.ReadRequest{Last: head, Filter: filter}
	if len(filter.Kinds)+len(filter.StreamPrefixes)+len(filter.Actors) == 0 {
		req.Tail = n
	}
	var last []*varvev1.Record
	err = readLog(ctx, c, req, func(r *varvev1.Record) error {
		if uint64(len(last)) == n {
			last = last[1:]
		}
		last = append(last, r)
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, r := range last {
		if err := fn(r); err != nil {
			return 0, err
		}
	}
	return head, nil
}

// recordPrinter prints records as they come.
type recordPrinter struct {
	*app
	header bool
}

func (p *recordPrinter) print(r *varvev1.Record) error {
	if p.output != formatTable {
		return p.printItem(r)
	}
	if !p.header {
		p.header = true
		if _, err := fmt.Fprintf(p.stdout, "%-9s %-29s %-18s %-36s %s\n", "REVISION", "TIME", "KIND", "STREAM", "BY"); err != nil {
			return err
		}
	}
	line := fmt.Sprintf("%-9d %-29s %-18s %-36s %s", r.Revision, p.stamp(r.TimeUnixNs), r.Kind, r.Event.GetStream(), dash(r.Event.GetActor().GetName()))
	if r.Outcome == varvev1.Outcome_OUTCOME_REJECTED {
		line += p.ink.bad.Sprint("  rejected: ") + r.Reason
	}
	_, err := fmt.Fprintln(p.stdout, line)
	return err
}

func (a *app) logVerify() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "verify",
		Short: "Recompute the hash chain and replay the log",
		Long: strings.TrimSpace(`
Recompute the checksums and the hash chain of all kept records, replay them, and
compare the checkpoints and the live state with the replay. With --log it is done
without an agent, for a state directory or an exported file. The exit code is 1 if
something is wrong; the first bad revision and its file are named.`),
		Example: "  varve log verify\n  varve log verify --log /var/lib/varve\n  varve log verify --log yesterday.varve",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Log.Verify(cmd.Context(), connect.NewRequest(&varvev1.VerifyRequest{}))
			if err != nil {
				return err
			}
			v := resp.Msg
			if err := a.print(v, func() { a.showVerify(v) }); err != nil {
				return err
			}
			if !verified(v) {
				return errNo
			}
			return nil
		},
	})
}

// replayed says whether the records reach back to zero.
func replayed(v *varvev1.VerifyResponse) bool { return len(v.ReplayDigest) > 0 }

func verified(v *varvev1.VerifyResponse) bool {
	return v.Problem == "" && v.BadRevision == 0 &&
		(!replayed(v) || hex.EncodeToString(v.ReplayDigest) == hex.EncodeToString(v.StateDigest))
}
