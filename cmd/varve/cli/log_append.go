package cli

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/pbjson"
	"github.com/varve-net/varve/log/eventpb"
)

func (a *app) logAppend() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "append [FILE|-]",
		Short: "Append events, as JSON",
		Long: strings.TrimSpace(`
Append events, as JSON of varve.event.v1.Event. Only the payload, request_id and
expected_revision are taken; time, actor, origin and stream are set by the agent.
Several events, one after the other or in an array, are one atomic group. Without a
file, standard input is read.

The exit code is 1 if an event was rejected or in conflict.`),
		Example: strings.Trim(`
  echo '{"namespace_set": {"name": "shop", "labels": {"team": "sales"}},
         "request_id": "shop-1", "expected_revision": 0}' | varve log append
  varve log append events.json`, "\n"),
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{stdinName}
			}
			files, err := a.readManifests(args)
			if err != nil {
				return err
			}
			req := &varvev1.AppendRequest{}
			for _, f := range files {
				events, err := parseEvents(f)
				if err != nil {
					return err
				}
				req.Events = append(req.Events, events...)
			}
			if len(req.Events) == 0 {
				return usagef("%s: holds no event", files[0].source)
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			resp, err := c.Log.Append(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if err := a.print(resp.Msg, func() { a.showResults(resp.Msg) }); err != nil {
				return err
			}
			for _, r := range resp.Msg.Results {
				if r.Outcome != varvev1.Outcome_OUTCOME_APPLIED && r.Outcome != varvev1.Outcome_OUTCOME_REPEAT {
					return errNo
				}
			}
			return nil
		},
	}
	return a.withOutput(cmd)
}

// parseEvents reads events that follow each other or stand in arrays.
func parseEvents(m manifest) ([]*eventpb.Event, error) {
	var out []*eventpb.Event
	dec := json.NewDecoder(bytes.NewReader(m.text))
	for {
		var doc json.RawMessage
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, usagef("%s: event %d: %w", m.source, len(out)+1, err)
		}
		docs := []json.RawMessage{doc}
		if bytes.HasPrefix(doc, []byte("[")) {
			if err := json.Unmarshal(doc, &docs); err != nil {
				return nil, usagef("%s: %w", m.source, err)
			}
		}
		for _, d := range docs {
			e := &eventpb.Event{}
			if err := pbjson.Unmarshal(d, e); err != nil {
				return nil, usagef("%s: event %d: %w", m.source, len(out)+1, err)
			}
			out = append(out, e)
		}
	}
}

func (a *app) showResults(resp *varvev1.AppendResponse) {
	for i, r := range resp.Results {
		what := "event"
		if len(resp.Results) > 1 {
			what = fmt.Sprintf("event %d", i+1)
		}
		switch r.Outcome {
		case varvev1.Outcome_OUTCOME_APPLIED:
			fmt.Fprintf(a.stdout, "%s %s at revision %d\n", what, a.ink.good.Sprint("applied"), r.Revision)
		case varvev1.Outcome_OUTCOME_REPEAT:
			fmt.Fprintf(a.stdout, "%s %s: its request id was seen before, at revision %d\n", what, a.ink.warn.Sprint("not repeated"), r.Revision)
		case varvev1.Outcome_OUTCOME_CONFLICT:
			fmt.Fprintf(a.stdout, "%s %s: %s\n", what, a.ink.bad.Sprint("in conflict"), r.Reason)
		case varvev1.Outcome_OUTCOME_REJECTED:
			fmt.Fprintf(a.stdout, "%s %s, recorded at revision %d: %s\n", what, a.ink.bad.Sprint("rejected"), r.Revision, r.Reason)
		default:
			fmt.Fprintf(a.stdout, "%s: outcome %s\n", what, r.Outcome)
		}
	}
}

func (a *app) showVerify(v *varvev1.VerifyResponse) {
	g := newGrid()
	g.add("Records", fmt.Sprintf("%d to %d", v.First, v.Last))
	g.add("Chain", dash(hex.EncodeToString(v.Chain)))
	g.add("State digest", dash(hex.EncodeToString(v.StateDigest)))
	switch {
	case replayed(v):
		g.add("Replay digest", hex.EncodeToString(v.ReplayDigest)+" "+a.same(v.StateDigest, v.ReplayDigest))
	case v.Last > 0 && v.First > 1:
		g.add("Replay digest", "- the records before "+number(v.First)+" are gone")
	}
	g.add("Took", duration(time.Duration(v.ReplayNanoseconds)))
	switch {
	case verified(v):
		g.add("Verdict", a.ink.good.Sprint("intact"))
	case v.Problem != "":
		g.add("Verdict", a.ink.bad.Sprintf("BROKEN at revision %d", v.BadRevision)+": "+v.Problem)
	default:
		g.add("Verdict", a.ink.bad.Sprint("BROKEN: the replay leads to another state"))
	}
	a.show(g, "")
}
