package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log/raftlog"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := group("snapshot", "Save the state to a file, look into it, and restore it", `
A snapshot is a file of the whole state at one revision, with its checksums, its
digest and its chain value. Every reading command answers from it with --log FILE.`, `
  varve snapshot save -f today.varve
  varve snapshot inspect today.varve
  varve snapshot restore today.varve
  varve snapshot restore today.varve --state-dir /var/lib/varve`)
	cmd.AddCommand(a.snapshotSave(), a.snapshotInspect(), a.snapshotRestore())
	return cmd
}

func (a *app) snapshotSave() *cobra.Command {
	var req varvev1.SaveSnapshotRequest
	var file string
	cmd := &cobra.Command{
		Use:     "save -f FILE",
		Short:   "Save the state, as it is or as it was",
		Example: "  varve snapshot save -f today.varve\n  varve snapshot save -f before.varve --at 2026-03-01T03:00:00Z",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" && isTerminal(a.stdout) {
				return usagef("-f: a snapshot is nothing for a terminal; name a file")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.writeFile(file, func(w io.Writer) error {
				stream, err := c.Snapshots.Save(cmd.Context(), connect.NewRequest(&req))
				if err != nil {
					return err
				}
				return writeStream(w, stream)
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to write (default standard output)")
	return a.withAt(cmd, &req.At)
}

func (a *app) snapshotInspect() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Check a file and show what it is of",
		Long: strings.TrimSpace(`
Check every byte of a snapshot or an export, replay its records if it has any, and
show the state that it leads to. No agent is needed. The exit code is 1 if the file
is damaged, cut off or of a later format.`),
		Example: "  varve snapshot inspect today.varve",
		Args:    oneArg("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := past.ReadSource(cmd.Context(), args[0])
			if err != nil {
				return fileError(args[0], err)
			}
			v := s.State.View()
			chain, digest := v.Chain(), v.Digest()
			resp := &varvev1.AuditAtResponse{
				At:      &varvev1.Moment{Revision: uint64(v.Revision()), TimeUnixNs: v.TimeNS()},
				Cluster: v.Cluster(), Chain: chain[:], StateDigest: digest[:], Node: s.Header.Node,
			}
			count := func(what string, n int) {
				resp.Counts = append(resp.Counts, &varvev1.AuditCount{What: what, Count: uint64(n)})
			}
			count("namespaces", countAll(v.Namespaces()))
			count("nodes", countAll(v.Nodes()))
			count("identities", countAll(v.Identities()))
			count("endpoints", countAll(v.Endpoints()))
			count("policies", countAll(v.Policies()))
			return a.print(resp, func() {
				g := newGrid()
				g.add("File", fmt.Sprintf("%s, %d bytes, intact", args[0], s.Bytes))
				g.add("Saved", a.stamp(s.Header.CreatedUnixNs)+" by varve "+dash(s.Header.Version)+" on node "+dash(s.Header.Node))
				g.add("State", a.revisionAt(resp.At.Revision, resp.At.TimeUnixNs))
				g.add("Cluster", resp.Cluster)
				g.add("Chain", hex.EncodeToString(resp.Chain))
				g.add("State digest", hex.EncodeToString(resp.StateDigest))
				for _, c := range resp.Counts {
					g.add("  "+c.What, number(c.Count))
				}
				a.show(g, "")
			})
		},
	}
	return a.withOutput(cmd)
}

func countAll[T any](seq func(func(T) bool)) (n int) {
	for range seq {
		n++
	}
	return n
}

// fileError is the answer no for a file that is refused; that there is none is
// another thing.
func fileError(path string, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return err
	}
	return nof("%s: %v", path, err)
}

func (a *app) snapshotRestore() *cobra.Command {
	var dir, node string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Bring back policies and namespaces, or make a new node of a file",
		Long: strings.TrimSpace(`
Without --state-dir, bring the policies and namespaces of a running agent back to
what a snapshot of its own log says, all at once: parts of the file are staged in the
log, and one event, which subscribers see, puts them in force. What both have alike is
not touched. Endpoints, nodes and the names that they asked for stay as they are: they
are facts, which only their node states. Root may, and members of the agent's
--restore-group.

With --state-dir, make the state directory of a new node: its log goes on after the
snapshot's revision and continues its chain. The directory must be empty. Start the
agent with it, and the same --cluster-name and --node-name, afterwards.

The whole file is checked first; one that is damaged, of another cluster or of a
later format, or that the node's maps have no room for, is refused before anything is
touched. If the agent ends before the restore has, nothing of it is in force.`),
		Example: strings.Trim(`
  varve snapshot restore today.varve --dry-run
  varve snapshot restore today.varve
  varve snapshot restore today.varve --state-dir /var/lib/varve --node-name node-1`, "\n"),
		Args: oneArg("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir != "" {
				if dryRun {
					return usagef("--dry-run: goes with a running agent; `varve snapshot inspect` shows what is in a file")
				}
				return a.restoreNew(cmd, args[0], dir, node)
			}
			if node != "" {
				return usagef("--node-name: goes with --state-dir")
			}
			return a.restoreRunning(cmd, args[0], dryRun)
		},
	}
	cmd.Flags().StringVar(&dir, "state-dir", "", "make this directory instead, without an agent")
	cmd.Flags().StringVar(&node, "node-name", "", "with --state-dir: name of the new node (default the one that saved the file)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and change nothing")
	_ = cmd.MarkFlagDirname("state-dir")
	return a.withOutput(cmd)
}

// restoreNew makes a state directory.
func (a *app) restoreNew(cmd *cobra.Command, file, dir, node string) error {
	s, err := past.ReadSource(cmd.Context(), file)
	if err != nil {
		return fileError(file, err)
	}
	if node == "" {
		node = s.Header.Node
	}
	if node == "" {
		return usagef("--node-name: the file does not say by whom it was saved; name the node")
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nof("%s: is not empty; choose another directory, or move this one away", dir)
	}
	identity, err := cluster.LoadOrCreate(dir, s.Header.Cluster, node)
	if err != nil {
		return err
	}
	v := s.State.View()
	err = raftlog.Seed(cmd.Context(), raftlog.Config{
		Dir: filepath.Join(dir, "log"), Cluster: identity.Cluster, Raft: cluster.RaftConfig(identity), Logger: slog.New(slog.DiscardHandler),
	}, s.State)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "%s %s of cluster %s, node %s: its log goes on after revision %d\n", dir, a.ink.good.Sprint("made"), identity.Cluster, node, v.Revision())
	return nil
}

// restoreChunk is how much of the file one message carries.
const restoreChunk = 256 << 10

func (a *app) restoreRunning(cmd *cobra.Command, file string, dryRun bool) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := a.dial()
	if err != nil {
		return err
	}
	stream := c.Snapshots.Restore(cmd.Context())
	buf := make([]byte, restoreChunk)
	for first := true; ; first = false {
		n, readErr := f.Read(buf)
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			return readErr
		}
		if n > 0 || first {
			err := stream.Send(&varvev1.RestoreSnapshotRequest{Data: buf[:n], DryRun: dryRun})
			if errors.Is(err, io.EOF) {
				break // the answer says why
			}
			if err != nil {
				return err
			}
		}
		if errors.Is(readErr, io.EOF) {
			break
		}
	}
	resp, err := stream.CloseAndReceive()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return a.print(resp.Msg, func() {
		g := newGrid("ACTION", "STREAM", "REVISION")
		for _, s := range resp.Msg.Streams {
			revision := "-"
			if s.Revision > 0 {
				revision = number(s.Revision)
			}
			g.add(s.Action, s.Stream, revision)
		}
		a.show(g, "policies and namespaces are as the snapshot has them")
		what, by := "restored", fmt.Sprintf(", by the event of revision %d", resp.Msg.Revision)
		if dryRun {
			what = "would be restored"
		}
		if resp.Msg.Restore == "" {
			by = ""
		}
		fmt.Fprintf(a.stderr, "%s to what they were at revision %d%s: %s\n", what, resp.Msg.SnapshotRevision, by, plural(len(resp.Msg.Streams), "change"))
	})
}
