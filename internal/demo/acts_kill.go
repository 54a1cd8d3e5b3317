package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// photo is what the agent says of itself at one moment.
type photo struct {
	*varvev1.StatusResponse
}

// killTimes divide each flow's messages: sent with an agent, without, and after.
type killTimes struct {
	dead, ready []int // marks of the flows
	downFor     time.Duration
	start       time.Duration
}

const (
	// history is how many more events the log gets, so that there is something to
	// replay.
	history        = 1000
	historyClients = 16

	aliveFor = time.Second            // traffic before the kill
	deadFor  = 3 * time.Second        // and without an agent
	tailFor  = 500 * time.Millisecond // and with the next one
)

// throughKill are the flows that run while the agent dies and comes back.
var throughKill = []question{
	{from: "frontend", to: "backend", protocol: "TCP", port: 8080},
	{from: "backend", to: "db", protocol: "TCP", port: 5432},
	{from: "visitor", to: "frontend", protocol: "TCP", port: 80},
	{from: "backend", to: "supplier", protocol: "TCP", port: 443},
	{from: "host", to: "db", protocol: "TCP", port: 5432},
	{from: "frontend", to: "backend", protocol: "UDP", port: 9090},
	{from: "backend", to: "frontend", protocol: "ICMP"},
}

// whileDead are asked when no agent runs.
var whileDead = []question{
	{"frontend", "backend", "TCP", 8080, true, ""},
	{"visitor", "frontend", "TCP", 80, true, ""},
	{"backend", "supplier", "TCP", 443, true, ""},
	{"frontend", "backend", "UDP", 9090, true, ""},
	{"batch", "backend", "TCP", 8080, false, ""},
	{"frontend", "db", "TCP", 5432, false, ""},
	{"intruder", "frontend", "TCP", 80, false, ""},
	{"visitor", "db", "TCP", 5432, false, ""},
	{"backend", "stranger", "TCP", 443, false, ""},
}

// fillLog appends harmless events from many clients at once.
func (s *stage) fillLog(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for c := range historyClients {
		group.Go(func() error {
			for i := c; i < history; i += historyClients {
				_, err := s.client.Namespaces.Apply(ctx, connect.NewRequest(&varvev1.ApplyNamespaceRequest{
					Name: fmt.Sprintf("tenant-%d", i%100), Labels: map[string]string{"generation": fmt.Sprint(i)},
				}))
				if err != nil {
					return fmt.Errorf("namespace apply: %w", err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	took := time.Since(began)
	s.claim(true, "%d more events from %d clients, each on disk before its answer: %s (%.0f a second)",
		history, historyClients, ms(took), history/took.Seconds())
	return nil
}

func (s *stage) actKill(ctx context.Context) error {
	s.out.section("SIGKILL under traffic")
	if err := s.fillLog(ctx); err != nil {
		return err
	}
	for _, q := range throughKill {
		for _, f := range families {
			if q.protocol == "ICMP" {
				var id [2]byte
				rand.Read(id[:])
				q.port = binary.BigEndian.Uint16(id[:])
			}
			fl, err := s.startFlow(ctx, q, f)
			if err != nil {
				return err
			}
			s.flows = append(s.flows, fl)
		}
	}
	if err := pause(ctx, aliveFor); err != nil {
		return err
	}
	status, err := s.status(ctx, true)
	if err != nil {
		return err
	}
	s.before = &photo{status}
	s.claim(len(status.Differences) == 0 && bytes.Equal(status.KernelDigest, status.TablesDigest),
		"before: the kernel's maps are what the log says, digest %s%s", short(status.KernelDigest), differences(status))
	s.out.note("%d flows running, a message each %s", len(s.flows), flowPeriod)

	began := time.Now()
	if err := s.agent.kill(); err != nil {
		return err
	}
	s.killed.dead = marks(s.flows)
	_, err = s.status(ctx, false)
	s.claim(err != nil, "agent killed (pid %d); its socket is dead", status.Pid)
	deadline := time.Now().Add(deadFor)

	answers := s.ask(ctx, whileDead, asPolicySays, false)
	var open, shut, wrong int
	for i, q := range whileDead {
		for _, f := range families {
			err := answers[i][f].judge(q, q.allowed, false)
			switch {
			case err != nil:
				wrong++
				s.claim(false, "without an agent: %s -> %s, %s: %v", q.from, q.service(), f, err)
			case q.allowed:
				open++
			default:
				shut++
			}
		}
	}
	s.claim(wrong == 0, "without an agent: %d new connections allowed and made, %d denied and dropped", open, shut)
	if err := pause(ctx, time.Until(deadline)); err != nil {
		return err
	}
	s.killed.downFor = time.Since(began)
	return nil
}

func marks(flows []*flow) []int {
	at := make([]int, len(flows))
	for i, fl := range flows {
		at[i] = fl.mark()
	}
	return at
}

func (s *stage) actRestart(ctx context.Context) error {
	s.out.section("A restart is a replay")
	began := time.Now()
	status, err := s.startAgent(ctx)
	if err != nil {
		return err
	}
	s.killed.start = time.Since(began)
	s.killed.ready = marks(s.flows)
	if err := pause(ctx, tailFor); err != nil {
		return err
	}
	verified, err := s.status(ctx, true)
	if err != nil {
		return err
	}
	for _, fl := range s.flows {
		fl.drain(drainLimit)
	}
	s.claim(status.Pid != s.before.Pid, "agent back in %s (pid %d): %d events replayed in %s, enforcing after %s",
		ms(s.killed.start), status.Pid, status.ReplayedEvents, ms(time.Duration(status.ReplayNanoseconds)), ms(time.Duration(status.BootstrapNanoseconds)))
	s.claim(verified.BootstrapRowsWritten == 0, "rows it had to write into the kernel: %d", verified.BootstrapRowsWritten)
	s.out.printf("\n")
	s.compare(s.before.StatusResponse, verified)
	s.out.printf("\n")
	s.countPackets()
	for _, fl := range s.flows {
		if err := fl.close(); err != nil {
			return err
		}
	}
	return s.startWatch(ctx)
}

// compare prints both agents' accounts side by side; every line is a claim.
func (s *stage) compare(before, after *varvev1.StatusResponse) {
	var rows [][]string
	line := func(what, was, is string) {
		s.record(was == is, fmt.Sprintf("%s: %s before, %s after the restart", what, was, is))
		rows = append(rows, []string{what, was, is, s.out.mark(was == is)})
	}
	line("revision", fmt.Sprint(before.Revision), fmt.Sprint(after.Revision))
	line("chain", short(before.Chain), short(after.Chain))
	line("state", short(before.StateDigest), short(after.StateDigest))
	line("tables", short(before.TablesDigest), short(after.TablesDigest))
	line("kernel's maps", short(before.KernelDigest), short(after.KernelDigest))
	byName := map[string]*varvev1.TableStatus{}
	for _, t := range after.Tables {
		byName[t.Name] = t
	}
	digests := func(t *varvev1.TableStatus) string {
		if t == nil {
			return "none"
		}
		return fmt.Sprintf("%4d rows %s = kernel %s", t.Rows, short(t.Digest), short(t.KernelDigest))
	}
	for _, t := range before.Tables {
		line("  "+t.Name, digests(t), digests(byName[t.Name]))
	}
	s.out.table([]string{"digest of", "before the kill", "after the restart", ""}, rows)
	s.out.printf("\n")
	equal := bytes.Equal(after.KernelDigest, after.TablesDigest) && len(after.KernelDigest) > 0
	for _, t := range after.Tables {
		equal = equal && bytes.Equal(t.Digest, t.KernelDigest)
	}
	s.claim(equal && len(after.Differences) == 0, "the kernel's maps equal the tables, row by row%s", differences(after))
}

func differences(st *varvev1.StatusResponse) string {
	var b strings.Builder
	for _, d := range st.Differences {
		fmt.Fprintf(&b, "; %s %s %s: want %s, have %s", d.Table, d.Kind, d.Key, d.Want, d.Have)
	}
	return b.String()
}

// countPackets prints what became of each flow's messages.
func (s *stage) countPackets() {
	var rows [][]string
	var sent, dead, lost, broken int
	for i, fl := range s.flows {
		all := fl.mark()
		d, r := s.killed.dead[i], s.killed.ready[i]
		rows = append(rows, []string{
			fl.from, fl.service(), fl.family.String(), fmt.Sprint(all),
			fmt.Sprint(fl.lost(0, d)), fmt.Sprint(fl.lost(d, r)), fmt.Sprint(fl.lost(r, all)),
			ms(fl.gap), s.out.mark(fl.lost(0, all) == 0 && fl.failure() == nil),
		})
		sent, dead, lost = sent+all, dead+r-d, lost+fl.lost(0, all)
		if err := fl.failure(); err != nil {
			broken++
			s.claim(false, "%s: broken: %v", fl, err)
		}
	}
	s.out.table([]string{"from", "to", "", "sent", "lost before", "while dead", "after", "longest wait", ""}, rows)
	s.out.printf("\n")
	s.claim(lost == 0 && broken == 0, "%d messages over %d flows, %d of them with no agent (%.1f s): %d lost, %d connections broken",
		sent, len(s.flows), dead, (s.killed.downFor + s.killed.start).Seconds(), lost, broken)
	again := 0
	for _, fl := range s.flows {
		again += fl.retransmits()
	}
	s.out.note("TCP segments sent a second time: %d", again)
}

// actAfterwards shows that the new agent is in charge.
func (s *stage) actAfterwards(ctx context.Context) error {
	s.out.section("The new agent goes on")
	if err := s.apply(ctx, "backend"); err != nil {
		return err
	}
	again := []question{{"batch", "backend", "TCP", 8080, true, "cnp/shop/backend ingress[0]"}}
	answers := s.ask(ctx, again, asPolicySays, true)
	s.matrix(again, answers, asPolicySays, true)
	return nil
}
