package relay

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/varve-net/varve/dataplane/dns/wire"
)

// held is an answer that waits until the way to its addresses is open.
type held struct {
	r        *Relay
	deadline time.Time
	done     atomic.Bool // somebody answers
	send     func(msg []byte)

	e     Exchange
	reply []byte
	text  []byte // of the question
	query wire.Query
}

var _ Waiter = (*held)(nil)

// hold copies all that is needed of an answer. It goes out over UDP unless send
// is set.
func hold(r *Relay, e *Exchange, msg, text []byte, query *wire.Query) *held {
	size := len(msg) + len(text) + len(e.Name)
	for _, n := range e.Chain {
		size += len(n)
	}
	buf := make([]byte, 0, size)
	keep := func(b []byte) []byte {
		at := len(buf)
		buf = append(buf, b...)
		return buf[at:len(buf):len(buf)]
	}
	h := &held{r: r, deadline: time.Now().Add(r.cfg.MaxDelay), e: *e, reply: keep(msg), text: keep(text), query: *query}
	h.query.Name = nil
	h.e.Name = keep(e.Name)
	h.e.Addresses = slices.Clone(e.Addresses)
	h.e.Chain = make([][]byte, len(e.Chain))
	for i, n := range e.Chain {
		h.e.Chain[i] = keep(n)
	}
	return h
}

func (h *held) answered() bool { return h.done.Load() }

// Learned implements Waiter.
func (h *held) Learned(err error) {
	if err != nil {
		h.give(NotKept)
		return
	}
	h.give(NoProblem)
}

// give answers, unless somebody has.
func (h *held) give(p Problem) {
	if !h.done.CompareAndSwap(false, true) {
		return
	}
	msg := h.reply
	if p != NoProblem {
		h.e.Problem, h.e.RCode = p, wire.ServFail
		msg = servfail(nil, h.text, &h.query, p)
	}
	if h.send != nil {
		h.send(msg)
	} else {
		h.r.sendLate(&h.e, msg)
	}
	h.r.observe(&h.e)
}

// sendLate sends over UDP: an answer with the next Flush, anything else at once.
func (r *Relay) sendLate(e *Exchange, msg []byte) {
	r.lateMu.Lock()
	defer r.lateMu.Unlock()
	if r.late == nil {
		return
	}
	r.late.Add(e.Server, e.Client, msg)
	if e.Problem != NoProblem {
		r.late.Flush()
	}
}
