package cli

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/internal/pbjson"
)

// Output formats.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatJUnit = "junit" // of test reports
)

var formats = []string{formatTable, formatJSON, formatYAML}

// formatValue is the flag -o, which takes one of a command's formats.
type formatValue struct {
	to      *string
	formats []string
}

func (v formatValue) String() string { return *v.to }
func (v formatValue) Type() string   { return "format" }
func (v formatValue) Set(s string) error {
	if !slices.Contains(v.formats, s) {
		return fmt.Errorf("is none of %s", strings.Join(v.formats, ", "))
	}
	*v.to = s
	return nil
}

// withOutput gives a command the flag -o, which may take more than the formats of
// all commands.
func (a *app) withOutput(cmd *cobra.Command, more ...string) *cobra.Command {
	formats := slices.Concat(formats, more)
	cmd.Flags().VarP(formatValue{&a.output, formats}, "output", "o", "output: "+strings.Join(formats, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// print writes a message in the chosen format, as one document; human writes it
// for people.
func (a *app) print(m proto.Message, human func()) error {
	if a.output == formatTable {
		human()
		return nil
	}
	doc, err := pbjson.MarshalWhole(m)
	if err != nil {
		return err
	}
	return a.printJSON(doc)
}

// printJSON writes a JSON document, indented or as YAML.
func (a *app) printJSON(doc []byte) error {
	var out bytes.Buffer
	if a.output == formatYAML {
		y, err := jsonToYAML(doc)
		if err != nil {
			return err
		}
		out.Write(y)
	} else {
		if err := json.Indent(&out, doc, "", "  "); err != nil {
			return err
		}
		out.WriteByte('\n')
	}
	_, err := a.stdout.Write(out.Bytes())
	return err
}

// printItem writes one item of a stream: a line of JSON, or a YAML document.
func (a *app) printItem(m proto.Message) error {
	doc, err := pbjson.MarshalWhole(m)
	if err != nil {
		return err
	}
	if a.output == formatYAML {
		fmt.Fprintln(a.stdout, "---")
		return a.printJSON(doc)
	}
	_, err = a.stdout.Write(append(doc, '\n'))
	return err
}

// jsonToYAML keeps the order of keys and the digits of numbers.
func jsonToYAML(doc []byte) ([]byte, error) {
	var node yaml.Node
	if err := yaml.Unmarshal(doc, &node); err != nil {
		return nil, err
	}
	blockStyle(&node)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return nil, err
	}
	return out.Bytes(), enc.Close()
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && strings.Contains(n.Value, "\n") {
		n.Style = yaml.LiteralStyle
	}
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// grid is a table for people: no borders, upper-case header.
type grid struct {
	w    table.Writer
	rows int
}

func newGrid(header ...string) *grid {
	w := table.NewWriter()
	style := table.StyleDefault
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "   "
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatDefault
	w.SetStyle(style)
	w.SuppressTrailingSpaces()
	if len(header) > 0 {
		w.AppendHeader(row(header))
	}
	return &grid{w: w}
}

func row(cells []string) table.Row {
	r := make(table.Row, len(cells))
	for i, c := range cells {
		r[i] = c
	}
	return r
}

func (g *grid) add(cells ...string) {
	g.w.AppendRow(row(cells))
	g.rows++
}

// addIf adds a row unless its last cell is empty.
func (g *grid) addIf(cells ...string) {
	if cells[len(cells)-1] != "" {
		g.add(cells...)
	}
}

// show writes the table; of an empty one it says so, where it does not disturb
// what reads standard output.
func (a *app) show(g *grid, nothing string) {
	if g.rows == 0 {
		fmt.Fprintln(a.stderr, nothing)
		return
	}
	fmt.Fprintln(a.stdout, g.w.Render())
}

// Cells.

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func number[T ~uint32 | ~uint64 | ~int](n T) string { return fmt.Sprint(n) }

// short is the first 6 bytes of a hash, enough to compare by eye.
func short(h []byte) string {
	return dash(hex.EncodeToString(h[:min(len(h), 6)]))
}

func (a *app) stamp(ns int64) string {
	return time.Unix(0, ns).In(a.zone).Format("2006-01-02T15:04:05.000Z07:00")
}

// duration is d with three digits or so.
func duration(d time.Duration) string {
	for _, unit := range []time.Duration{time.Hour, time.Minute, time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

func labelList(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for k, v := range labels {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}
