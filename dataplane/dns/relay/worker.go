package relay

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/dataplane/dns/sock"
	"github.com/varve-net/varve/dataplane/dns/wire"
)

// worker is one thread of UDP. Nothing of it is shared, but for the listeners.
type worker struct {
	r       *Relay
	epoll   int
	stop    int // an eventfd
	batch   *sock.Batch
	answers *sock.Answers
	query   wire.Query
	answer  wire.Answer
	inbox   *sock.Inbox
	out     []byte // an answer of ours
	// Of the question or answer in hand, here so that telling others of it allocates
	// nothing.
	exchange    Exchange
	observation Observation
	random      *rand.ChaCha8
	now         time.Time

	pools   map[poolKey]*pool
	sockets []*upstream // by file descriptor
	open    map[netip.Addr]int
	swept   time.Time
	waiting queue
	held    []*held // oldest first
	free    []*question
}

func newWorker(r *Relay) (w *worker, err error) {
	var seed [32]byte
	crand.Read(seed[:])
	w = &worker{
		r: r, epoll: -1, stop: -1, batch: sock.NewBatch(), inbox: sock.NewInbox(), random: rand.NewChaCha8(seed),
		pools: map[poolKey]*pool{}, open: map[netip.Addr]int{}, now: time.Now(),
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if w.stop, err = eventFD(); err != nil {
		return nil, err
	}
	if w.answers, err = sock.NewAnswers(r.cfg.Mark); err != nil {
		return nil, err
	}
	if err := w.watch(w.stop, unix.EPOLLIN); err != nil {
		return nil, err
	}
	for _, fd := range r.udp {
		if fd < 0 {
			continue
		}
		// All workers wait at the same two sockets: the kernel wakes one of them. A
		// socket each (SO_REUSEPORT) is what bpf_sk_assign refuses before Linux 6.6.
		if err := w.watch(fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *worker) watch(fd int, events uint32) error {
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

func (w *worker) close() {
	for _, p := range w.pools {
		for _, u := range p.all {
			unix.Close(u.fd)
		}
	}
	for _, fd := range []int{w.epoll, w.stop} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if w.answers != nil {
		w.answers.Close()
	}
}

// wake ends run.
func (w *worker) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.stop, one[:])
}

func (w *worker) run() error {
	for {
		if ended, err := w.step(w.patience()); ended || err != nil {
			return err
		}
	}
}

// step handles what is there, after waiting some milliseconds for it (-1: for ever).
func (w *worker) step(patience int) (ended bool, err error) {
	var events [64]unix.EpollEvent
	n, err := unix.EpollWait(w.epoll, events[:], patience)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("epoll: %w", err)
	}
	w.now = time.Now()
	for i := range max(n, 0) {
		switch fd := int(events[i].Fd); fd {
		case w.stop:
			return true, nil
		case w.r.udp[0], w.r.udp[1]:
			w.questions(fd)
		default:
			w.reply(fd)
		}
	}
	w.expire()
	w.answers.Flush()
	return false, nil
}

// sweepEvery is how often sockets that are no longer used are looked for.
const sweepEvery = 2 * time.Second

// patience is how many milliseconds the loop may sleep; -1: for ever.
func (w *worker) patience() int {
	next := time.Duration(-1)
	sooner := func(t time.Time) {
		if d := max(t.Sub(w.now), 0); next < 0 || d < next {
			next = d
		}
	}
	if q := w.waiting.first; q != nil {
		sooner(q.deadline)
	}
	if len(w.held) > 0 {
		sooner(w.held[0].deadline)
	}
	if len(w.pools) > 0 {
		sooner(w.swept.Add(sweepEvery))
	}
	if next < 0 {
		return -1
	}
	return int((next + time.Millisecond - 1) / time.Millisecond)
}

// expire gives up on what has waited too long.
func (w *worker) expire() {
	for q := w.waiting.first; q != nil && !q.deadline.After(w.now); q = w.waiting.first {
		w.fail(q, ServerSilent)
	}
	for len(w.held) > 0 {
		h := w.held[0]
		if h.deadline.After(w.now) && !h.answered() {
			break
		}
		h.give(NotApplied)
		w.held[0] = nil
		w.held = w.held[1:]
	}
	if w.now.Sub(w.swept) >= sweepEvery {
		w.swept = w.now
		w.sweep()
	}
}

// questions reads and handles what waits at a listener.
func (w *worker) questions(fd int) {
	n, err := w.batch.Receive(fd)
	if err != nil {
		return // EAGAIN: another worker has it
	}
	for i := range n {
		d := w.batch.At(i)
		if d.Usable {
			w.question(&d)
		}
	}
}

func (w *worker) question(d *sock.Datagram) {
	err := w.query.Parse(d.Data)
	if errors.Is(err, wire.ErrIgnore) {
		return
	}
	ruling := w.r.cfg.Policy.Rule(d.From.Addr(), d.To, UDP)
	if ruling == nil {
		return
	}
	e := &w.exchange
	*e = Exchange{Time: w.now, Client: d.From, Server: d.To, Protocol: UDP, Ruling: ruling, Name: w.query.Name, Type: w.query.Type}
	if !d.Whole {
		err = wire.ErrFormat
	}
	if !w.r.judge(e, err) {
		w.out = w.r.refusal(w.out[:0], d.Data, &w.query, e)
		w.answers.Add(d.To, d.From, w.out)
		w.r.observe(e)
		return
	}
	w.forward(d, e)
}

// forward asks the server.
func (w *worker) forward(d *sock.Datagram, e *Exchange) {
	q := w.take()
	q.query, w.query = w.query, q.query
	q.text = append(q.text[:0], d.Data[:q.query.Length()]...)
	q.client, q.server, q.ruling, q.row, q.selector, q.asked = d.From, d.To, e.Ruling, e.Row, e.Selector, w.now

	u, problem := w.pick(poolKey{d.From.Addr(), d.To})
	if u == nil {
		w.refuse(q, problem)
		return
	}
	id := w.freeID(u)
	wire.SetID(d.Data, id)
	_, err := unix.Write(u.fd, d.Data)
	if errors.Is(err, unix.ECONNREFUSED) { // of an earlier question
		_, err = unix.Write(u.fd, d.Data)
	}
	if err != nil {
		w.retireIfIdle(u)
		w.refuse(q, ServerAbsent)
		return
	}
	u.add(id, q)
	q.deadline = w.now.Add(w.r.cfg.Timeout)
	w.waiting.push(q)
}

// freeID is a random id that no question at this socket has.
func (w *worker) freeID(u *upstream) uint16 {
	for {
		if id := uint16(w.random.Uint64()); u.find(id) < 0 {
			return id
		}
	}
}

// reply reads answers from a server's socket. The kernel has compared where they came
// from: the socket is connected.
func (w *worker) reply(fd int) {
	if fd >= len(w.sockets) || w.sockets[fd] == nil {
		return
	}
	u := w.sockets[fd]
	n, err := w.inbox.Receive(fd)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return
	case errors.Is(err, unix.ECONNREFUSED):
		w.failAll(u, ServerGone)
		return
	case err != nil:
		w.failAll(u, ServerAbsent)
		return
	}
	for i := range n {
		w.answerTo(u, w.inbox.At(i))
	}
}

// answerTo handles a message that came in at a server's socket.
func (w *worker) answerTo(u *upstream, msg []byte) {
	id, ok := wire.ID(msg)
	if !ok {
		return
	}
	i := u.find(id)
	if i < 0 {
		return // late, or a lie
	}
	q := u.questions[i]
	switch err := w.answer.Parse(msg, q.query.Question(q.text)); {
	case errors.Is(err, wire.ErrNotReply):
		return
	case err != nil:
		w.fail(q, BadReply)
		return
	}
	w.remove(q)
	w.release(q, msg)
	w.give(q)
}

// release gives a server's answer to the client, at once or when the way to its
// addresses is open.
func (w *worker) release(q *question, msg []byte) {
	wire.Restore(msg, q.query.ID, q.query.Question(q.text))
	if len(msg) > q.query.UDPSize {
		msg = wire.Fit(msg, q.query.UDPSize, w.r.cfg.Compress)
	}
	e := &w.exchange
	*e = q.exchange()
	e.RCode, e.Chain, e.Addresses = w.answer.RCode, w.answer.Chain, w.answer.Addresses
	e.Upstream = w.now.Sub(q.asked)
	if o := &w.observation; e.observe(o) && !w.r.cfg.Learner.Known(o) {
		h := hold(w.r, e, msg, q.text, &q.query)
		w.held = append(w.held, h)
		w.r.cfg.Learner.Learn(o, h)
		return
	}
	w.answers.Add(q.server, q.client, msg)
	w.r.observe(e)
}

// fail tells the client of a question on its way that there is no answer.
func (w *worker) fail(q *question, p Problem) {
	w.remove(q)
	w.refuse(q, p)
}

// refuse tells the client that there is no answer.
func (w *worker) refuse(q *question, p Problem) {
	e := &w.exchange
	*e = q.exchange()
	e.Problem, e.RCode = p, wire.ServFail
	w.out = q.servfail(w.out[:0], p)
	w.answers.Add(q.server, q.client, w.out)
	w.r.observe(e)
	w.give(q)
}

// failAll does so for all questions at a socket, which is used no more.
func (w *worker) failAll(u *upstream, p Problem) {
	u.used = socketUses
	for len(u.questions) > 0 {
		w.fail(u.questions[0], p)
	}
	w.retireIfIdle(u)
}
