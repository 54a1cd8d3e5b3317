package cli

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

func (a *app) statusCommand() *cobra.Command {
	var req varvev1.StatusRequest
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how the agent does",
		Long: strings.TrimSpace(`
Say how the agent does. With --verify every BPF map is read back and compared with
what the log asks for. The exit code is 1 if a check fails or a map differs.`),
		Example: "  varve status\n  varve status --verify",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Agent.Status(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			if err := a.print(resp.Msg, func() { a.showStatus(resp.Msg, req.Verify) }); err != nil {
				return err
			}
			if !healthy(resp.Msg, req.Verify) {
				return errNo
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&req.Verify, "verify", false, "compare every BPF map with what the log asks for")
	return a.withOutput(cmd)
}

func healthy(s *varvev1.StatusResponse, verify bool) bool {
	for _, c := range s.Checks {
		if !c.Ok {
			return false
		}
	}
	return !verify || (len(s.Differences) == 0 && bytes.Equal(s.TablesDigest, s.KernelDigest))
}

func (a *app) showStatus(s *varvev1.StatusResponse, verify bool) {
	a.showStatusHead(s)
	g := newGrid("CHECK", "STATE", "TOOK", "MESSAGE")
	for _, c := range s.Checks {
		state := a.ink.good.Sprint("ok")
		if !c.Ok {
			state = a.ink.bad.Sprint("FAILED")
		}
		g.add(c.Name, state, duration(time.Duration(c.Nanoseconds)), dash(c.Message))
	}
	if g.rows > 0 {
		fmt.Fprintln(a.stdout)
		a.show(g, "")
	}
	a.showStatusTables(s, verify)
	a.showStatusDigests(s, verify)
	a.showDifferences(s.Differences)
}

func (a *app) showStatusHead(s *varvev1.StatusResponse) {
	up := a.now().Sub(time.Unix(0, s.StartedUnixNs)).Truncate(time.Second)
	enforced := a.ink.good.Sprint("enforces revision " + number(s.AppliedRevision))
	if s.AppliedRevision < s.Revision {
		enforced = a.ink.warn.Sprintf("enforces revision %d, %d behind the log", s.AppliedRevision, s.Revision-s.AppliedRevision)
	}
	g := newGrid()
	g.add("Agent", fmt.Sprintf("%s, pid %d, up %s", s.Version, s.Pid, up))
	g.add("Node", fmt.Sprintf("%s of cluster %s", s.Node, s.Cluster))
	g.add("Log", fmt.Sprintf("revision %d, chain %s", s.Revision, short(s.Chain)))
	g.add("Kernel", enforced)
	g.add("Holds", strings.Join([]string{plural(int(s.Endpoints), "endpoint"), plural(int(s.Identities), "identity"), plural(int(s.Policies), "policy")}, ", "))
	g.add("Start", fmt.Sprintf("replayed %s in %s, enforcing after %s, %s written",
		plural(int(s.ReplayedEvents), "event"), duration(time.Duration(s.ReplayNanoseconds)),
		duration(time.Duration(s.BootstrapNanoseconds)), plural(int(s.BootstrapRowsWritten), "row")))
	if s.Drift != nil {
		g.add("Drift", a.drift(s.Drift))
	}
	if s.Flows != nil {
		g.add("Flows", a.flowStore(s.Flows))
	}
	a.show(g, "")
}

// drift is what others changed in the kernel, in a line.
func (a *app) drift(d *varvev1.DriftStatus) string {
	if d.Last == nil {
		return "nothing changed by others since the start"
	}
	ago := a.now().Sub(time.Unix(0, d.Last.TimeUnixNs)).Truncate(time.Second)
	return a.ink.warn.Sprintf("%d found, %d repaired", d.Found, d.Repaired) +
		fmt.Sprintf("; last %s ago: %s %s: %s", ago, d.Last.Kind, strings.TrimPrefix(d.Last.Object, d.Last.Kind+" "), d.Last.What)
}

// flowStore is the span and size of the flow record, in a line.
func (a *app) flowStore(f *varvev1.FlowStoreStatus) string {
	size := fmt.Sprintf("%s of %s", byteSize(f.Bytes), byteSize(f.MaxBytes))
	text := "nothing recorded yet"
	if f.FromUnixNs != 0 {
		text = fmt.Sprintf("recorded for %s, %s", duration(time.Duration(f.ToUnixNs-f.FromUnixNs)), size)
	}
	if n := f.Lost + f.Overflowed; n > 0 {
		text += a.ink.warn.Sprintf(", %s missing", plural(int(n), "event"))
	}
	if f.Error != "" {
		text += "; " + a.ink.bad.Sprint("not recording: "+f.Error)
	}
	return text
}

// byteSize is n with a binary unit.
func byteSize(n uint64) string {
	for _, unit := range []struct {
		size uint64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.size), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func (a *app) showStatusTables(s *varvev1.StatusResponse, verify bool) {
	if len(s.Tables) == 0 {
		return
	}
	header := []string{"TABLE", "ROWS", "CAPACITY", "USED", "DIGEST"}
	if verify {
		header = append(header, "KERNEL")
	}
	g := newGrid(header...)
	for _, t := range s.Tables {
		capacity, used := "-", "-"
		if t.Capacity > 0 {
			capacity, used = number(t.Capacity), fmt.Sprintf("%d%%", t.Rows*100/t.Capacity)
		}
		cells := []string{t.Name, number(t.Rows), capacity, used, short(t.Digest)}
		if verify {
			cells = append(cells, a.sameAs(t.Digest, t.KernelDigest))
		}
		g.add(cells...)
	}
	fmt.Fprintln(a.stdout)
	a.show(g, "")
}

// sameAs compares a digest read back with the one that is wanted.
func (a *app) sameAs(want, have []byte) string {
	if bytes.Equal(want, have) {
		return a.same(want, have)
	}
	return short(have) + " " + a.same(want, have)
}

func (a *app) same(want, have []byte) string {
	if bytes.Equal(want, have) {
		return a.ink.good.Sprint("same")
	}
	return a.ink.bad.Sprint("DIFFERS")
}

func (a *app) showStatusDigests(s *varvev1.StatusResponse, verify bool) {
	g := newGrid()
	g.add("State digest", dash(hex.EncodeToString(s.StateDigest)))
	g.add("Tables digest", dash(hex.EncodeToString(s.TablesDigest)))
	if verify {
		g.add("Kernel digest", dash(hex.EncodeToString(s.KernelDigest))+" "+a.same(s.TablesDigest, s.KernelDigest))
	}
	fmt.Fprintln(a.stdout)
	a.show(g, "")
}

func (a *app) showDifferences(ds []*varvev1.Difference) {
	if len(ds) == 0 {
		return
	}
	g := newGrid("TABLE", "ROW", "KEY", "WANT", "HAVE")
	for _, d := range ds {
		g.add(d.Table, a.ink.bad.Sprint(d.Kind), d.Key, dash(d.Want), dash(d.Have))
	}
	fmt.Fprintf(a.stdout, "\n%s\n", a.ink.bad.Sprint(plural(len(ds), "difference")+" between the kernel and the log"))
	a.show(g, "")
}
