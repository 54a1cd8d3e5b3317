package relay

import (
	"errors"
	"net/netip"
	"time"

	"github.com/varve-net/varve/dataplane/dns/wire"
)

// question is one that a server was asked over UDP.
type question struct {
	query    wire.Query
	text     []byte // header and question as the client sent them
	client   netip.AddrPort
	server   netip.AddrPort
	ruling   *Ruling
	row      uint64
	selector string
	asked    time.Time

	at         *upstream
	deadline   time.Time
	prev, next *question // in a queue
}

// exchange is what is known of q without an answer.
func (q *question) exchange() Exchange {
	return Exchange{
		Time: q.asked, Client: q.client, Server: q.server, Protocol: UDP, Ruling: q.ruling,
		Name: q.query.Name, Type: q.query.Type, Row: q.row, Selector: q.selector,
	}
}

func (q *question) servfail(dst []byte, p Problem) []byte {
	return servfail(dst, q.text, &q.query, p)
}

// queue is the questions on their way, by deadline: each waits equally long, so
// that is the order in which they came.
type queue struct{ first, last *question }

func (l *queue) push(q *question) {
	q.prev, q.next = l.last, nil
	if l.last != nil {
		l.last.next = q
	} else {
		l.first = q
	}
	l.last = q
}

func (l *queue) remove(q *question) {
	if q.prev != nil {
		q.prev.next = q.next
	} else {
		l.first = q.next
	}
	if q.next != nil {
		q.next.prev = q.prev
	} else {
		l.last = q.prev
	}
	q.prev, q.next = nil, nil
}

// maxFree bounds the questions that are kept to be used again.
const maxFree = 1024

func (w *worker) take() *question {
	if n := len(w.free); n > 0 {
		q := w.free[n-1]
		w.free = w.free[:n-1]
		return q
	}
	return new(question)
}

func (w *worker) give(q *question) {
	if len(w.free) < maxFree {
		q.ruling, q.selector, q.at = nil, "", nil
		w.free = append(w.free, q)
	}
}

// judge sets the verdict on a question of which Parse returned err, and tells
// whether it may be forwarded.
func (r *Relay) judge(e *Exchange, err error) bool {
	switch {
	case err == nil:
	case errors.Is(err, wire.ErrUnsupported):
		e.Verdict, e.RCode, e.Problem = Malformed, wire.NotImplemented, NotForwarded
		return false
	default:
		e.Verdict, e.RCode, e.Problem, e.Name = Malformed, wire.FormErr, MalformedQuery, nil
		return false
	}
	var ok bool
	if e.Row, e.Selector, ok = e.Ruling.Admits(e.Name); !ok {
		e.Verdict, e.RCode = Rejected, r.cfg.RejectCode
		return false
	}
	return true
}

// refusal is the answer to a question that is not forwarded.
func (r *Relay) refusal(dst, query []byte, q *wire.Query, e *Exchange) []byte {
	if e.Verdict == Rejected {
		return q.AppendError(dst, query, e.RCode, wire.ExtendedBlocked, "no policy rule allows this name")
	}
	return q.AppendError(dst, query, e.RCode, wire.NoExtended, "")
}

func servfail(dst, text []byte, q *wire.Query, p Problem) []byte {
	extended := wire.ExtendedOther
	if p == ServerSilent || p == ServerGone || p == ServerAbsent {
		extended = wire.ExtendedTimeout
	}
	return q.AppendError(dst, text, wire.ServFail, extended, string(p))
}
