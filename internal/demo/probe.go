package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

const (
	// allowLimit is how long an answer may take before its absence counts.
	allowLimit = 30 * time.Second
	// denyLimit is how long we wait for an answer that must not come.
	denyLimit = 700 * time.Millisecond
	// eventLimit is how long the datapath's word for it may take.
	eventLimit = 20 * time.Second
)

// question asks whether one actor reaches another.
type question struct {
	from, to string
	protocol string // TCP, UDP, ICMP
	port     uint16
	// Once policy is in force: whether it is allowed, and what the datapath must
	// name as the reason.
	allowed bool
	because string
}

func (q question) service() string {
	if q.protocol == "ICMP" {
		return q.to + " ping"
	}
	return fmt.Sprintf("%s %s %d", q.to, strings.ToLower(q.protocol), q.port)
}

// answer is what came of a question, in one family.
type answer struct {
	reached bool
	err     error // why not
	event   *varvev1.DatapathEvent
}

func (s *stage) tupleOf(q question, f family) tuple {
	t := tuple{protocol: q.protocol, from: s.actors[q.from].from(f), to: s.actors[q.to].addr[f], toPort: q.port}
	if q.protocol == "ICMP" && f == v6 {
		t.protocol = "ICMPv6"
	}
	return t
}

// ask puts all questions in both families at once.
func (s *stage) ask(ctx context.Context, questions []question, expect func(question) bool, watch bool) [][2]answer {
	answers := make([][2]answer, len(questions))
	after := 0
	if watch {
		after = s.watch.now()
	}
	var wg sync.WaitGroup
	for i, q := range questions {
		for _, f := range families {
			wg.Add(1)
			s.spawn(func() {
				defer wg.Done()
				a := &answers[i][f]
				limit := denyLimit
				if expect(q) {
					limit = allowLimit
				}
				a.err = s.try(q, f, limit)
				a.reached = a.err == nil
				if !watch {
					return
				}
				kind := "new-flow"
				if !a.reached {
					kind = "drop"
				}
				a.event = s.watch.find(ctx, after, kind, s.tupleOf(q, f), eventLimit)
			})
		}
	}
	wg.Wait()
	return answers
}

// try sends one request and waits for its answer.
func (s *stage) try(q question, f family, limit time.Duration) error {
	from, to := s.actors[q.from].space, s.actors[q.to].addr[f]
	switch q.protocol {
	case "TCP":
		return from.ExchangeTCP(netip.AddrPortFrom(to, q.port), limit)
	case "UDP":
		return from.ExchangeUDP(netip.AddrPortFrom(to, q.port), limit)
	default:
		return from.Ping(to, limit)
	}
}

// timedOut tells silence, which is what a drop looks like, from any other failure.
func timedOut(err error) bool {
	var ne net.Error
	return os.IsTimeout(err) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// judge tells whether an answer is the expected one, for the expected reason.
func (a answer) judge(q question, allowed, reasoned bool) error {
	switch {
	case allowed && !a.reached:
		return fmt.Errorf("should be allowed: %w; %s", a.err, why(a.event))
	case !allowed && a.reached:
		return fmt.Errorf("should be dropped, but was answered; %s", why(a.event))
	case !allowed && !timedOut(a.err):
		return fmt.Errorf("should be dropped in silence: %w", a.err)
	case reasoned && !strings.Contains(why(a.event), q.because):
		return fmt.Errorf("the reason should be %q, the datapath says: %s", q.because, why(a.event))
	}
	return nil
}

// matrix shows the answers and records one claim a question.
func (s *stage) matrix(questions []question, answers [][2]answer, expect func(question) bool, reasoned bool) {
	header := []string{"from", "to", "v4", "v6"}
	if reasoned {
		header = append(header, "why")
	}
	var rows [][]string
	var wrong []string
	for i, q := range questions {
		row := []string{q.from, q.service()}
		for _, f := range families {
			a := answers[i][f]
			row = append(row, s.verdict(a.reached))
			err := a.judge(q, expect(q), reasoned)
			s.record(err == nil, fmt.Sprintf("%s -> %s, %s: %v", q.from, q.service(), f, err))
			if err != nil {
				wrong = append(wrong, fmt.Sprintf("%s -> %s, %s: %v", q.from, q.service(), f, err))
			}
		}
		if reasoned {
			row = append(row, why(cmp.Or(answers[i][v4].event, answers[i][v6].event)))
		}
		rows = append(rows, row)
	}
	s.out.table(header, rows)
	s.out.printf("\n")
	for _, w := range wrong {
		s.out.printf(" %s %s\n", s.out.mark(false), s.out.paint(red, w))
	}
	if len(wrong) == 0 {
		s.out.printf(" %s as expected: %d of %d\n", s.out.mark(true), 2*len(questions), 2*len(questions))
	}
}

// verdict is whether something got through: neither is good or bad in itself.
func (s *stage) verdict(reached bool) string {
	if reached {
		return s.out.paint(green, "ok")
	}
	return s.out.paint(yellow, "--")
}
