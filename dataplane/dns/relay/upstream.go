package relay

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/dataplane/dns/sock"
)

// Who would forge an answer must guess a port and an id. So a socket, and with it
// its port, which the kernel chose at random, serves few questions and not for
// long, and each question takes one of several at random.
const (
	poolSize   = 4
	socketUses = 64
	socketAge  = 10 * time.Second
)

const (
	maxWaiting = 1024 // questions of one container to one server, on one worker
	maxSockets = 256  // of one container, on one worker
)

// poolKey is who asks whom.
type poolKey struct {
	from   netip.Addr
	server netip.AddrPort
}

// pool is the sockets from one container to one server.
type pool struct {
	key     poolKey
	current []*upstream // those that take questions
	all     []*upstream // and those that wait for answers only
	waiting int
}

// upstream is one socket to a server.
type upstream struct {
	fd        int
	pool      *pool
	opened    time.Time
	used      int
	ids       []uint16 // of questions
	questions []*question
}

func (u *upstream) find(id uint16) int { return slices.Index(u.ids, id) }

func (u *upstream) add(id uint16, q *question) {
	u.used++
	u.pool.waiting++
	u.ids = append(u.ids, id)
	u.questions = append(u.questions, q)
	q.at = u
}

// remove takes q off its socket and the queue.
func (w *worker) remove(q *question) {
	w.waiting.remove(q)
	u := q.at
	i := slices.Index(u.questions, q)
	last := len(u.questions) - 1
	u.ids[i], u.questions[i] = u.ids[last], u.questions[last]
	u.questions[last] = nil
	u.ids, u.questions = u.ids[:last], u.questions[:last]
	u.pool.waiting--
	w.retireIfIdle(u)
}

// pick returns a socket for the next question; nil, and why, if there is none.
func (w *worker) pick(key poolKey) (*upstream, Problem) {
	p := w.pools[key]
	if p == nil {
		p = &pool{key: key}
		w.pools[key] = p
	}
	if p.waiting >= maxWaiting {
		return nil, TooMany
	}
	p.current = slices.DeleteFunc(p.current, w.spent)
	if len(p.current) < poolSize && w.open[key.from] < maxSockets {
		if u, err := w.dial(p); err == nil {
			return u, NoProblem
		} else if len(p.current) == 0 {
			w.r.cfg.Logger.Debug("no socket to a DNS server", "error", err)
			return nil, ServerAbsent
		}
	}
	if len(p.current) == 0 {
		return nil, TooMany
	}
	return p.current[w.random.Uint64()%uint64(len(p.current))], NoProblem
}

func (w *worker) spent(u *upstream) bool {
	return u.used >= socketUses || w.now.Sub(u.opened) >= socketAge
}

func (w *worker) dial(p *pool) (*upstream, error) {
	fd, err := sock.DialUDP(p.key.from, p.key.server, w.r.cfg.Mark)
	if err != nil {
		return nil, err
	}
	if err := w.watch(fd, unix.EPOLLIN); err != nil {
		unix.Close(fd)
		return nil, err
	}
	u := &upstream{fd: fd, pool: p, opened: w.now}
	for fd >= len(w.sockets) {
		w.sockets = append(w.sockets, make([]*upstream, max(64, len(w.sockets)))...)
	}
	w.sockets[fd] = u
	p.current = append(p.current, u)
	p.all = append(p.all, u)
	w.open[p.key.from]++
	return u, nil
}

// retireIfIdle closes a socket that takes no questions and waits for no answer.
func (w *worker) retireIfIdle(u *upstream) {
	if len(u.questions) > 0 || !w.spent(u) || w.sockets[u.fd] != u {
		return
	}
	w.sockets[u.fd] = nil
	unix.Close(u.fd)
	same := func(x *upstream) bool { return x == u }
	u.pool.current = slices.DeleteFunc(u.pool.current, same)
	u.pool.all = slices.DeleteFunc(u.pool.all, same)
	if w.open[u.pool.key.from]--; w.open[u.pool.key.from] <= 0 {
		delete(w.open, u.pool.key.from)
	}
}

// sweep closes sockets of containers that ask no more.
func (w *worker) sweep() {
	for key, p := range w.pools {
		for _, u := range slices.Clone(p.all) {
			w.retireIfIdle(u)
		}
		if len(p.all) == 0 {
			delete(w.pools, key)
		}
	}
}
