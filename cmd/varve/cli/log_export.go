package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/durable"
	"github.com/varve-net/varve/internal/pbjson"
)

// Formats of an export.
const (
	exportProto = "proto"
	exportJSON  = "json"
)

func (a *app) logExport() *cobra.Command {
	req := &varvev1.ReadRequest{Filter: &varvev1.Filter{}}
	var file, format string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write records to a file that is verified and audited anywhere",
		Long: strings.TrimSpace(`
Write records to a file. In the format proto it holds the events as they are stored,
compressed, and the state before the first one: with --log FILE, varve verifies,
reads and audits it without an agent, and reaches the same digests. Of records that
a filter leaves out it holds their hashes, so that the chain can be verified; no
state follows from such a file. In the format json it holds a line of JSON a record.`),
		Example: strings.Trim(`
  varve log export -f all.varve
  varve log export -f march.varve --since 2026-03-01 --until 2026-04-01
  varve log verify --log march.varve
  varve log export --format json --kind policy-set | jq .event.actor.name`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Last != 0 && req.First > req.Last {
				return usagef("--from %d: is after --to %d", req.First, req.Last)
			}
			if err := checkFilter(req.Filter); err != nil {
				return err
			}
			switch {
			case format != exportProto && format != exportJSON:
				return usagef("--format: %q is none of %s, %s", format, exportProto, exportJSON)
			case file == "" && format == exportProto && isTerminal(a.stdout):
				return usagef("-f: a file of the format proto is nothing for a terminal; name a file")
			}
			return a.writeFile(file, func(w io.Writer) error { return a.export(cmd, req, format, w) })
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to write (default standard output)")
	cmd.Flags().StringVar(&format, "format", exportProto, "format: proto, json")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{exportProto, exportJSON}, cobra.ShellCompDirectiveNoFileComp))
	a.withSpan(cmd, req)
	withFilter(cmd, req.Filter)
	return cmd
}

func (a *app) export(cmd *cobra.Command, req *varvev1.ReadRequest, format string, w io.Writer) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	if format == exportJSON {
		return readLog(cmd.Context(), c, req, func(r *varvev1.Record) error {
			doc, err := pbjson.MarshalWhole(r)
			if err != nil {
				return err
			}
			_, err = w.Write(append(doc, '\n'))
			return err
		})
	}
	stream, err := c.Log.Export(cmd.Context(), connect.NewRequest(req))
	if err != nil {
		return err
	}
	return writeStream(w, stream)
}

// writeStream writes the pieces of a file as they come, and closes the stream.
func writeStream[T any, M interface {
	*T
	GetData() []byte
}](w io.Writer, stream *connect.ServerStreamForClient[T]) error {
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if _, err := w.Write(M(stream.Msg()).GetData()); err != nil {
			return err
		}
	}
	return stream.Err()
}

// writeFile writes standard output, or a file at once: after an error there is none,
// or the one of before.
func (a *app) writeFile(path string, write func(io.Writer) error) error {
	if path == "" || path == stdinName {
		w := bufio.NewWriter(a.stdout)
		if err := write(w); err != nil {
			return err
		}
		return w.Flush()
	}
	if err := durable.ReplaceShared(path, write); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
