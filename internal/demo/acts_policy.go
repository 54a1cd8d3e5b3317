package demo

import (
	"context"
	"embed"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

//go:embed policies/*.yaml
var policies embed.FS

// questions are asked before and after the policies. Before, every answer is yes.
var questions = []question{
	{"frontend", "backend", "TCP", 8080, true, "cnp/shop/backend ingress[0]"},
	{"frontend", "backend", "UDP", 9090, true, "cnp/shop/backend ingress[0]"},
	{"frontend", "backend", "ICMP", 0, false, "policy default deny at shop/backend ingress"},
	{"frontend", "db", "TCP", 5432, false, "policy default deny at shop/db ingress"},
	{"frontend", "supplier", "TCP", 443, true, "no policy selects it"},
	{"batch", "backend", "TCP", 8080, true, "cnp/shop/backend ingress[0]"},
	{"batch", "frontend", "ICMP", 0, true, "cnp/shop/frontend ingress[1]"},
	{"backend", "db", "TCP", 5432, true, "np/shop/db ingress[0]"},
	{"backend", "frontend", "ICMP", 0, true, "cnp/shop/frontend ingress[1]"},
	{"backend", "supplier", "TCP", 443, true, "cnp/shop/backend egress[2]"},
	{"backend", "stranger", "TCP", 443, false, "policy default deny at shop/backend egress"},
	{"backend", "host", "TCP", 9100, false, "policy default deny at shop/backend egress"},
	{"intruder", "frontend", "TCP", 80, false, "policy denied by ccnp/no-guests ingressDeny[0]"},
	{"intruder", "db", "TCP", 5432, false, "policy denied by ccnp/no-guests ingressDeny[0]"},
	{"visitor", "frontend", "TCP", 80, true, "cnp/shop/frontend ingress[0]"},
	{"visitor", "frontend", "ICMP", 0, false, "policy default deny at shop/frontend ingress"},
	{"visitor", "db", "TCP", 5432, false, "policy default deny at shop/db ingress"},
	{"host", "db", "TCP", 5432, true, "allow-localhost"},
}

func always(question) bool         { return true }
func asPolicySays(q question) bool { return q.allowed }

func (s *stage) actConnect(ctx context.Context) error {
	s.out.section("A node, an agent, five workloads")
	if err := s.setNode(); err != nil {
		return err
	}
	began := time.Now()
	status, err := s.startAgent(ctx)
	if err != nil {
		return err
	}
	s.claim(true, "agent up in %s: pid %d, its own state, socket and bpffs", ms(time.Since(began)), status.Pid)
	began = time.Now()
	if err := s.addWorkloads(ctx); err != nil {
		return err
	}
	s.claim(true, "%d endpoints in force after %s", len(workloads), ms(time.Since(began)))
	s.out.printf("\n")
	var rows [][]string
	for _, w := range workloads {
		a := s.actors[w.name]
		rows = append(rows, []string{a.ref, a.addr[v4].String(), a.addr[v6].String(), w.servers()})
	}
	for _, name := range []string{"host", "visitor", "supplier", "stranger"} {
		a := s.actors[name]
		what := "tcp 443, outside, across the uplink"
		if name == "host" {
			what = "tcp 9100, the node itself"
		}
		rows = append(rows, []string{name, a.addr[v4].String(), a.addr[v6].String(), what})
	}
	s.out.table([]string{"who", "IPv4", "IPv6", "serves"}, rows)
	return s.startWatch(ctx)
}

func (s *stage) actOpen(ctx context.Context) error {
	s.out.section("Without a policy everything connects")
	answers := s.ask(ctx, questions, always, false)
	s.matrix(questions, answers, always, false)
	return nil
}

func (s *stage) actPolicies(ctx context.Context) error {
	s.out.section("Four policies")
	for _, name := range []string{"frontend", "backend", "db", "no-guests"} {
		if err := s.apply(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// apply applies an embedded policy and prints what it says of itself.
func (s *stage) apply(ctx context.Context, name string) error {
	manifest, err := policies.ReadFile("policies/" + name + ".yaml")
	if err != nil {
		return err
	}
	began := time.Now()
	resp, err := s.client.Policies.Apply(ctx, connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: string(manifest), Source: name + ".yaml"}))
	if err != nil {
		return fmt.Errorf("policy %s: %w", name, err)
	}
	took := time.Since(began)
	for _, p := range resp.Msg.Policies {
		s.claim(p.Action == varvev1.AppliedPolicy_CREATED || p.Action == varvev1.AppliedPolicy_CONFIGURED,
			"%-26s %s as revision %d, in %s", name+".yaml", strings.ToLower(p.Action.String()), p.Revision, ms(took))
	}
	for line := range strings.Lines(string(manifest)) {
		comment, ok := strings.CutPrefix(line, "# ")
		if !ok {
			break
		}
		s.out.note("%s", strings.TrimSpace(comment))
	}
	return nil
}

func (s *stage) actEnforced(ctx context.Context) error {
	s.out.section("The same connections under these policies")
	answers := s.ask(ctx, questions, asPolicySays, true)
	s.matrix(questions, answers, asPolicySays, true)
	s.out.note("Every reason is the datapath's own (varve monitor), not what we expected.")
	return nil
}

// enoughSent messages without an answer say that a connection is cut.
const enoughSent = 10

// actLiveChange takes the right to reach the backend from batch while it, and
// others, have connections open.
func (s *stage) actLiveChange(ctx context.Context) error {
	s.out.section("A policy changes under live connections")
	var revoked, kept []*flow
	for _, f := range families {
		for _, from := range []string{"batch", "frontend"} {
			fl, err := s.startFlow(ctx, question{from: from, to: "backend", protocol: "TCP", port: 8080}, f)
			if err != nil {
				return err
			}
			if from == "batch" {
				revoked = append(revoked, fl)
			} else {
				kept = append(kept, fl)
			}
		}
	}
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	after := s.watch.now()
	if err := s.apply(ctx, "backend-without-batch"); err != nil {
		return err
	}
	var marks []int
	for _, fl := range revoked {
		marks = append(marks, fl.mark())
	}
	if err := pause(ctx, 700*time.Millisecond); err != nil {
		return err
	}
	for i, fl := range revoked {
		if err := fl.goesOn(ctx, marks[i]+enoughSent); err != nil {
			return err
		}
		now := fl.mark()
		through := now - marks[i] - fl.lost(marks[i], now)
		// A message counted just before Apply returned may be sent just after.
		s.claim(through == 0,
			"%s: cut; %d answered before, of %d sent after the change %d came through", fl, marks[i]-fl.lost(0, marks[i]), now-marks[i], through)
		e := s.watch.find(ctx, after, "drop", s.tupleOf(fl.question, fl.family), eventLimit)
		if e == nil { // the echo may have been on its way when the policy changed
			e = s.watch.find(ctx, after, "drop", s.reverseOf(fl), eventLimit)
		}
		s.claim(strings.Contains(why(e), "policy revoked"), "   the datapath says: %s", why(e))
	}
	for _, fl := range kept {
		fl.drain(drainLimit)
		s.claim(fl.failure() == nil && fl.lost(0, fl.mark()) == 0,
			"%s: undisturbed; %d sent, %d lost, longest wait %s%s", fl, fl.mark(), fl.lost(0, fl.mark()), ms(fl.gap), becauseOf(fl.failure()))
	}
	for _, fl := range append(revoked, kept...) {
		if err := fl.close(); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) reverseOf(fl *flow) tuple {
	t := s.tupleOf(fl.question, fl.family)
	return tuple{protocol: t.protocol, from: t.to, to: t.from, fromPort: t.toPort}
}

func becauseOf(err error) string {
	if err == nil {
		return ""
	}
	return "; " + err.Error()
}

// pause lets traffic run for a while.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
