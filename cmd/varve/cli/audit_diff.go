package cli

import (
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// diffLimit is how many rows of a kind people are shown unless they ask for more.
const diffLimit = 50

// diffMaps are the maps of which rows can be compared and traced.
var diffMaps = []string{"endpoint", "ipcache", "class", "policy", "fqdn"}

func (a *app) auditDiff() *cobra.Command {
	var req varvev1.AuditDiffRequest
	cmd := &cobra.Command{
		Use:   "diff FROM TO",
		Short: "Show what happened between two moments",
		Long: strings.TrimSpace(`
Show what happened between two moments: the events, the rows of the state that they
changed, and the rows of a node's BPF maps that changed, with the rules and revisions
behind each. Of many rows of a kind only some are shown, and all are counted; with
-o json one change is one line, and none is left out unless --limit says so. The exit
code is 1 if anything changed. Moments are
` + momentHelp),
		Example: strings.Trim(`
  varve audit diff 4711 4712
  varve audit diff -1h now --kind policy-set --kind policy-deleted
  varve audit diff 2026-03-01T02:00Z 2026-03-01T03:00Z --map policy --node node-1 -o json`, "\n"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("give two moments, FROM and TO, not %d", len(args))
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			for i, to := range []*string{&req.From, &req.To} {
				var err error
				if *to, err = a.moment(args[i]); err != nil {
					return &exitError{code: exitUsage, err: err}
				}
			}
			if a.output == formatTable && !cmd.Flags().Changed("limit") {
				req.Limit = diffLimit
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			stream, err := c.Audit.Diff(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }()
			out := diffPrinter{app: a, limit: req.Limit}
			for stream.Receive() {
				if err := out.part(stream.Msg()); err != nil {
					return err
				}
			}
			if err := stream.Err(); err != nil {
				return err
			}
			out.flush()
			if out.differs {
				return errNo
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&req.Parts, "part", nil, "only these parts: events, state, tables")
	flags.StringSliceVar(&req.Kinds, "kind", nil, "only these kinds of events, such as policy-set, and of rows of the state, such as policy")
	flags.StringSliceVar(&req.Maps, "map", nil, "only these maps: "+strings.Join(diffMaps, ", "))
	flags.StringVar(&req.Node, "node", "", "the tables of this node (default the one that answers)")
	flags.Uint64Var(&req.Limit, "limit", 0, fmt.Sprintf("no more than so many of each kind (default all, %d in a table)", diffLimit))
	fixed := func(flag string, values []string) {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	fixed("part", []string{"events", "state", "tables"})
	fixed("kind", append(kindNames(), "namespace", "node", "identity", "endpoint", "policy", "name"))
	fixed("map", diffMaps)
	return a.withOutput(cmd)
}

// diffPrinter shows the parts of a diff as they come: in a table, each kind of thing
// under a heading.
type diffPrinter struct {
	*app
	limit   uint64
	differs bool
	heading string
	grid    *grid
	counts  []*varvev1.AuditDiffCount
}

func (p *diffPrinter) part(r *varvev1.AuditDiffResponse) error {
	if c := r.GetCount(); c != nil {
		p.differs = true
		p.counts = append(p.counts, c)
	}
	if p.output != formatTable {
		return p.printItem(r)
	}
	switch part := r.Part.(type) {
	case *varvev1.AuditDiffResponse_Span:
		fmt.Fprintf(p.stdout, "From %s to %s\n", p.revisionAt(part.Span.From.GetRevision(), part.Span.From.GetTimeUnixNs()), p.revisionAt(part.Span.To.GetRevision(), part.Span.To.GetTimeUnixNs()))
	case *varvev1.AuditDiffResponse_Event:
		p.under("Events", "REVISION", "TIME", "ACTOR", "EVENT").add(p.eventCells(part.Event)...)
	case *varvev1.AuditDiffResponse_State:
		s := part.State
		sign, text := p.sign(s.Was, s.Is)
		p.under("State", "", "KIND", "NAME", "ROW", "REVISION").add(sign, s.Kind, s.Name, derived.Replace(text), number(s.Revision))
	case *varvev1.AuditDiffResponse_Row:
		row := part.Row
		sign, text := p.sign(row.Was, row.Is)
		p.under("Map "+row.Map, "", "KEY", "ROW", "BEHIND IT").add(sign, derived.Replace(row.Key), derived.Replace(text), behind(row))
	}
	return nil
}

// behind is the rules and revisions that a row follows from.
func behind(row *varvev1.AuditRowChange) string {
	if len(row.Rules) > 0 || len(row.Revisions) == 0 {
		return dash(ruleList(row.Rules, row.Revisions))
	}
	var out []string
	for _, r := range row.Revisions {
		out = append(out, number(r))
	}
	return "revision " + strings.Join(out, ", ")
}

// sign is how a row changed, and what it was and is.
func (p *diffPrinter) sign(was, is string) (sign, text string) {
	switch {
	case was == "":
		return p.ink.good.Sprint("+"), is
	case is == "":
		return p.ink.bad.Sprint("-"), was
	}
	return p.ink.warn.Sprint("~"), was + "\n-> " + is
}

// under is the table of a heading.
func (p *diffPrinter) under(heading string, header ...string) *grid {
	if p.heading != heading {
		p.table()
		p.heading, p.grid = heading, newGrid(header...)
	}
	return p.grid
}

func (p *diffPrinter) table() {
	if p.grid != nil {
		fmt.Fprintf(p.stdout, "\n%s\n", p.ink.strong.Sprint(p.heading))
		p.show(p.grid, "")
		p.grid = nil
	}
}

// flush shows the last table and what was counted.
func (p *diffPrinter) flush() {
	if p.output != formatTable {
		return
	}
	p.table()
	if len(p.counts) == 0 {
		fmt.Fprintln(p.stdout, "\nNothing changed.")
		return
	}
	g := newGrid("PART", "KIND", "ADDED", "CHANGED", "REMOVED", "")
	for _, c := range p.counts {
		note := ""
		if total := c.Added + c.Changed + c.Removed; p.limit > 0 && total > p.limit {
			note = p.ink.warn.Sprintf("%d not shown", total-p.limit)
		}
		changed, removed := number(c.Changed), number(c.Removed)
		if c.Part == "events" {
			changed, removed = "-", "-"
		}
		g.add(c.Part, c.Kind, number(c.Added), changed, removed, note)
	}
	fmt.Fprintln(p.stdout)
	p.show(g, "")
}

func (a *app) auditProvenance() *cobra.Command {
	var req varvev1.ProvenanceRequest
	cmd := &cobra.Command{
		Use:   "provenance MAP KEY...",
		Short: "Show the rule and the events behind one row of a BPF map",
		Long: strings.TrimSpace(`
Show the rule and the events behind one row of a node's BPF map, now or at any
revision. Maps and keys are as "varve bpf MAP list" prints them:
  endpoint  [NAMESPACE/]NAME, or the endpoint's id
  ipcache   a prefix; or an address, for which the longest prefix is taken
  class     SCOPE PEER
  policy    the row's number, as "varve monitor -o json" and "audit why" show it;
            or TABLE CLASS PROTOCOL PORTS`),
		Example: strings.Trim(`
  varve audit provenance ipcache 10.244.0.5
  varve audit provenance endpoint default/web --at -2h
  varve audit provenance policy 4f1d7b0c9a2e8d35`, "\n"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("give a map and a key of it")
			}
			return nil
		},
		ValidArgsFunction: a.completeRow,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Map, req.Key = args[0], args[1:]
			if !slices.Contains(diffMaps, req.Map) {
				return usagef("map %q: is none of %s", req.Map, strings.Join(diffMaps, ", "))
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Audit.Provenance(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.print(resp.Msg, func() { a.showProvenance(resp.Msg) })
		},
	}
	cmd.Flags().StringVar(&req.Node, "node", "", "the map of this node (default the one that answers)")
	return a.withAt(a.withOutput(cmd), &req.At)
}

func (a *app) showProvenance(r *varvev1.ProvenanceResponse) {
	g := newGrid()
	g.add("Row", fmt.Sprintf("%s of map %s, node %s, at %s", derived.Replace(r.Key), r.Map, r.Node, a.revisionAt(r.At.GetRevision(), r.At.GetTimeUnixNs())))
	g.add("Value", derived.Replace(r.Value))
	g.add("Rules", dash(strings.Join(r.Rules, ", ")))
	a.show(g, "")
	fmt.Fprintln(a.stdout)
	g = newGrid("REVISION", "TIME", "ACTOR", "EVENT")
	for _, e := range r.Events {
		g.add(a.eventCells(e)...)
	}
	a.show(g, "no event is behind it: every table has it")
}
