package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/offline"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// Audit is the time of each question that a process asked of one history, in
// milliseconds.
type Audit map[string][]float64

// The questions, as the report names them.
const (
	askCold       = "the state, cold"
	askNext       = "the state 100 revisions on"
	askTables     = "a node's tables, cold"
	askTablesNext = "a node's tables 100 revisions on"
	askDiff       = "diff of 1,000 revisions: events, state, tables"
	askWhy        = "why"
	askBisect     = "bisect, the last change"
	askAll        = "bisect, every change"
	askProvenance = "provenance of an address"
	askReplay     = "replay of 20,000 flows under another policy"
)

// flowsAsked is how many recorded flows a replay looks through.
const flowsAsked = 20_000

// runAudit lets a process make a history and a flow record, and ask all that audit can
// of it, each question of an archive that was just opened unless it says otherwise.
func runAudit(ctx context.Context, p *plan, out sink) error {
	of := fmt.Sprintf("%d events", p.replay)
	dir := filepath.Join(p.dir, "audit")
	defer os.RemoveAll(dir)
	var all Audit
	if err := runSelf(ctx, &all, "audit", "-dir", dir, "-events", fmt.Sprint(p.replay), "-rounds", fmt.Sprint(p.rounds)); err != nil {
		return err
	}
	for _, what := range []string{askCold, askNext, askTables, askTablesNext, askDiff, askWhy, askBisect, askAll, askProvenance, askReplay} {
		for _, ms := range all[what] {
			out.add("ms", of, what, ms)
		}
	}
	return nil
}

func auditCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("audit", flag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("dir", "", "state directory to make")
	events := fs.Int("events", 0, "events in its history")
	rounds := fs.Int("rounds", 0, "how often each question is asked")
	if err := fs.Parse(args); err != nil {
		return err
	}
	m := mix.Whole(*events)
	err := inHistory(filepath.Join(*dir, "log", "history"), func(h *history.History) error {
		_, err := makeHistory(ctx, h, m, nil)
		return err
	})
	if err != nil {
		return err
	}
	a := &auditing{dir: *dir, m: m, random: rand.New(rand.NewPCG(1, 2)), out: Audit{}}
	if err := a.makeFlows(); err != nil {
		return err
	}
	for range *rounds {
		if err := a.round(ctx); err != nil {
			return err
		}
	}
	return json.NewEncoder(stdout).Encode(a.out)
}

// auditing asks questions and notes the times.
type auditing struct {
	dir    string
	m      mix.Mix
	random *rand.Rand
	out    Audit
	client *api.Client
}

// fresh answers from an archive that was just opened.
func (a *auditing) fresh(ctx context.Context, ask func() error) error {
	s, err := offline.Serve(ctx, offline.Config{Path: a.dir, Node: mix.Node(0), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if a.client, err = s.Client(); err == nil {
		err = ask()
		a.client.Close()
	}
	return errors.Join(err, s.Close())
}

// timed notes how long a question takes.
func (a *auditing) timed(what string, ask func() error) error {
	began := time.Now()
	err := ask()
	a.out[what] = append(a.out[what], time.Since(began).Seconds()*1e3)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// round asks each question once.
func (a *auditing) round(ctx context.Context) error {
	at := 1000 + a.random.IntN(a.m.Events-2000)
	pair := a.random.IntN(a.m.Endpoints)
	from, to := a.pod(pair), a.pod((pair+a.m.Namespaces)%a.m.Endpoints)
	state := func(at int, node string) func() error {
		return func() error {
			_, err := a.client.Audit.At(ctx, connect.NewRequest(&varvev1.AuditAtRequest{At: fmt.Sprint(at), Node: node, Summary: true}))
			return err
		}
	}
	for _, asked := range [][]struct {
		what string
		ask  func() error
	}{
		{{askCold, state(at, "")}, {askNext, state(at+100, "")}},
		{{askTables, state(at, mix.Node(0))}, {askTablesNext, state(at+100, mix.Node(0))}},
		{{askDiff, func() error { return a.diff(ctx, at, at+1000) }}},
		{{askWhy, func() error { return a.why(ctx, from, to, at) }}},
		{{askBisect, func() error { return a.bisect(ctx, from, to, false) }}},
		{{askAll, func() error { return a.bisect(ctx, from, to, true) }}},
		{{askProvenance, func() error { return a.provenance(ctx, at) }}},
		{{askReplay, func() error { return a.replay(ctx) }}},
	} {
		err := a.fresh(ctx, func() error {
			for _, q := range asked {
				if err := a.timed(q.what, q.ask); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pod is the name of an endpoint of the mix.
func (a *auditing) pod(i int) string { return fmt.Sprintf("team-%d/web-%d", i%a.m.Namespaces, i) }

func (a *auditing) diff(ctx context.Context, from, to int) error {
	stream, err := a.client.Audit.Diff(ctx, connect.NewRequest(&varvev1.AuditDiffRequest{From: fmt.Sprint(from), To: fmt.Sprint(to)}))
	if err != nil {
		return err
	}
	for stream.Receive() {
	}
	return errors.Join(stream.Err(), stream.Close())
}

// why asks; that a party was deleted just then is an answer, too.
func (a *auditing) why(ctx context.Context, from, to string, at int) error {
	_, err := a.client.Audit.Why(ctx, connect.NewRequest(&varvev1.WhyRequest{From: from, To: to, Port: "80", At: fmt.Sprint(at)}))
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	return err
}

func (a *auditing) bisect(ctx context.Context, from, to string, all bool) error {
	req := &varvev1.BisectRequest{From: from, To: to, Port: "80", All: all}
	if all {
		req.Since = "0"
	}
	_, err := a.client.Audit.Bisect(ctx, connect.NewRequest(req))
	return err
}

// provenance asks for the address of a node, which is always there.
func (a *auditing) provenance(ctx context.Context, at int) error {
	_, err := a.client.Audit.Provenance(ctx, connect.NewRequest(&varvev1.ProvenanceRequest{Map: "ipcache", Key: []string{"192.0.2.1"}, At: fmt.Sprint(at)}))
	return err
}

func (a *auditing) replay(ctx context.Context) error {
	const lockdown = `{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: lockdown}, spec: {endpointSelector: {}, ingressDeny: [{fromEntities: [world]}]}}`
	r, err := a.client.Audit.Replay(ctx, connect.NewRequest(&varvev1.AuditReplayRequest{Manifest: lockdown}))
	if err == nil && r.Msg.Flows != flowsAsked {
		err = fmt.Errorf("%d flows were looked through, %d are recorded", r.Msg.Flows, flowsAsked)
	}
	return err
}

// makeFlows records flows to the first node's endpoints over the newest tenth of the
// history.
func (a *auditing) makeFlows() error {
	s, err := flows.Open(flows.Config{Dir: filepath.Join(a.dir, "flows"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for i := range flowsAsked {
		local := i / 10 % (a.m.Endpoints / a.m.Nodes) * a.m.Nodes // an endpoint of the first node
		at := log.Revision(a.m.Events - a.m.Events/10 + i*(a.m.Events/10)/flowsAsked)
		now := time.Now().UnixNano()
		s.Observe(flows.Flow{
			Key: flows.Key{
				Src: netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + i%10)}), Dst: mix.Address(local, a.m.Nodes), DstName: a.pod(local), Protocol: 6,
				Port: uint16(i), Verdict: flows.Forwarded, Direction: abi.Ingress,
			},
			FirstNS: now, LastNS: now, Count: 1, FirstRevision: at, LastRevision: at,
		})
	}
	done, stop := context.WithCancel(context.Background())
	stop()
	s.Run(done) // writes what it has
	return s.Close()
}
