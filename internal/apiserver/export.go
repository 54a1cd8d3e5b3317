package apiserver

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/history"
)

// chunkBytes is how much of a file one message carries.
const chunkBytes = 256 << 10

// Export implements LogService.
func (s logService) Export(ctx context.Context, req *connect.Request[varvev1.ReadRequest], stream *connect.ServerStream[varvev1.ExportChunk]) error {
	keep, err := newFilter(req.Msg.Filter)
	if err != nil {
		return err
	}
	first, last, err := s.span(ctx, req.Msg)
	if err != nil {
		return err
	}
	if first > last {
		return invalid("there are no records from revision %d to %d", first, last)
	}
	out := &chunks{send: func(b []byte) error { return stream.Send(&varvev1.ExportChunk{Data: b}) }}
	if err := s.export(ctx, out, first, last, keep); err != nil {
		if asConnect(err) != nil {
			return err
		}
		return pastError(ctx, fmt.Errorf("export: %w", err))
	}
	return out.flush()
}

// export writes records as a file, with the state before the first.
func (s logService) export(ctx context.Context, w io.Writer, first, last log.Revision, keep filter) error {
	before, err := s.Past.View(ctx, first-1)
	if err != nil {
		return err
	}
	end, err := s.Past.Record(ctx, last)
	if err != nil {
		return err
	}
	e, err := history.NewExporter(w, &eventpb.ArchiveHeader{
		Cluster: s.Cluster, Node: s.Node, First: uint64(first), Last: uint64(last), Chain: end.Chain[:],
		CreatedUnixNs: time.Now().UnixNano(), Version: s.Info().Version, Filter: keep.String(),
	}, before.Chain())
	if err != nil {
		return err
	}
	if first > 1 {
		if err := e.State(before.WriteSnapshot); err != nil {
			return err
		}
	}
	err = s.Log.Read(ctx, first, last, func(r log.Record) error {
		whole := keep.all()
		if !whole {
			rec, err := recordProto(r)
			if err != nil {
				return fmt.Errorf("revision %d: %w", r.Revision, err)
			}
			whole = keep.match(rec)
		}
		return e.Add(r, whole)
	})
	if err != nil {
		return err
	}
	return e.Close()
}

// writeState writes a state as a file: an export without records.
func writeState(w io.Writer, view fsm.View, version, node string) error {
	chain := view.Chain()
	e, err := history.NewExporter(w, &eventpb.ArchiveHeader{
		Cluster: view.Cluster(), Node: node, First: uint64(view.Revision()) + 1, Last: uint64(view.Revision()), Chain: chain[:],
		CreatedUnixNs: time.Now().UnixNano(), Version: version,
	}, chain)
	if err == nil {
		err = e.State(view.WriteSnapshot)
	}
	if err == nil {
		err = e.Close()
	}
	return err
}

// all tells whether the filter keeps every record.
func (f filter) all() bool { return len(f.kinds)+len(f.prefixes)+len(f.actors) == 0 }

// String says what the filter keeps; empty: all.
func (f filter) String() string {
	var parts []string
	for _, p := range []struct {
		what   string
		values []string
	}{{"kind", f.kinds}, {"stream", f.prefixes}, {"actor", f.actors}} {
		if len(p.values) > 0 {
			parts = append(parts, p.what+" "+strings.Join(p.values, ", "))
		}
	}
	return strings.Join(parts, "; ")
}

// chunks cuts a stream of bytes into messages.
type chunks struct {
	buf  []byte
	send func([]byte) error
}

func (c *chunks) Write(b []byte) (int, error) {
	c.buf = append(c.buf, b...)
	if len(c.buf) >= chunkBytes {
		return len(b), c.flush()
	}
	return len(b), nil
}

func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	err := c.send(c.buf)
	c.buf = c.buf[:0]
	return err
}
