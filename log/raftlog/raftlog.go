// Package raftlog is the replicated log: hashicorp/raft over package wal, with all
// appends that wait gathered into one Raft entry, every record kept in package
// history, and the state folded from them. It is the only place where a clock
// enters the log.
//
//	Append --> queue --> proposer --> wal (durable) --> fsm.State.Apply --> history --> answer
//	                                                              |                 |
//	                                                            View              feed --> Subscribe
//
// While the state applies one entry, the next one is made durable, and a third one
// gathers. Order is the queue's; an answer is given after all of that line.
package raftlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// Log is a node's replica of the log. All methods may be called at any time from
// any goroutine.
type Log struct {
	config  Config
	history *history.History
	queue   *queue
	feed    feed
	view    atomic.Pointer[fsm.View]
	seed    *fsm.State // that an empty log begins with, or nil
	// Set while Open runs: the newest snapshot, and what was applied after it.
	restored, opened log.Revision

	lock      *os.File
	files     files
	transport *raft.InmemTransport
	machine   *machine
	raft      *raft.Raft
	flight    flight
	observing sync.Mutex    // calls of config.Observe, one at a time
	watcher   chan struct{} // closed when the proposer and, after it, the watcher have ended
	clockLate bool          // as the watcher said last

	closing  sync.Once
	released chan struct{} // closed when Close has let go of everything
	closeErr error

	mu       sync.Mutex
	cause    error         // why the log has stopped; ErrClosed after Close
	stopped  chan struct{} // closed with it
	shutdown raft.Future   // of Raft, once it was told to stop
}

var (
	_ log.Appender = (*Log)(nil)
	_ log.Proposer = (*Log)(nil)
	_ log.Reader   = (*Log)(nil)
)

// Open opens the log in a directory, or creates an empty one, and returns once
// every committed event has been applied. The error is ErrInUse if another Log
// has the directory, and wraps a *log.CorruptError, which names a remedy, if Raft's
// files are damaged or what the directory holds does not belong together. Damage to the
// history alone keeps it from telling what it hit (history.Lost), and nothing else: the
// state follows from Raft's files.
func Open(ctx context.Context, config Config) (*Log, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	l := newLog(config)
	if err := l.open(ctx); err != nil {
		l.stop(err)
		return nil, fmt.Errorf("log %s: %w", config.Dir, errors.Join(classify(err), l.release()))
	}
	return l, nil
}

func newLog(config Config) *Log {
	return &Log{
		config: config, queue: newQueue(&config),
		watcher: make(chan struct{}), released: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// Replayed is the number of events that Open applied after the snapshot.
func (l *Log) Replayed() uint64 { return uint64(l.opened - l.restored) }

func (l *Log) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(l.config.Dir, 0o750); err != nil {
		return err
	}
	if l.lock, err = lock(l.config.Dir); err != nil {
		return err
	}
	if l.history, err = history.OpenSized(filepath.Join(l.config.Dir, historyDir), l.config.SegmentBytes, l.config.Logger); err != nil {
		return err
	}
	if l.seed != nil {
		from := l.seed.View()
		if err := l.history.Begin(from.Revision(), from.Chain()); err != nil {
			return err
		}
	}
	if err := l.start(); err != nil {
		return err
	}
	if err := l.lead(ctx); err != nil {
		return err
	}
	// Entries of before this start are applied once a barrier after them is.
	if err := l.await(ctx, l.raft.Barrier(0)); err != nil {
		return err
	}
	if err := l.Err(); err != nil {
		return err
	}
	if err := l.compareHeads(); err != nil {
		return err
	}
	l.heal()
	if err := l.beyond(l.View()); err != nil {
		return err
	}
	l.opened = l.View().Revision()
	go l.propose()
	return nil
}

// start opens what Raft needs and starts it.
func (l *Log) start() (err error) {
	c := &l.config
	// bbolt panics on damaged pages, and a file that was cut short faults where it
	// is mapped; Raft panics on what it cannot read.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if err = l.Err(); err == nil {
				err = &log.CorruptError{What: fmt.Sprintf("%s cannot be read (%v); restore the directory from a copy", filepath.Join(c.Dir, stableFile), p)}
			}
		}
	}()
	all, err := raft.NewFileSnapshotStoreWithLogger(c.Dir, 2, c.Raft.Logger)
	if err != nil {
		return err
	}
	snapshots := newestSnapshot{all, l.fail}
	_, l.transport = raft.NewInmemTransport(raft.ServerAddress(c.Raft.LocalID))
	l.transport.Connect(l.transport.LocalAddr(), l.transport)

	newest, err := snapshots.List()
	if err != nil {
		return err
	}
	var index uint64
	for _, s := range newest {
		index = s.Index
	}
	last, _ := l.history.Last()
	if err := l.openFiles(last == 0 && index == 0 || l.seed != nil, snapshots); err != nil {
		return err
	}
	if err := l.checkContinuity(index); err != nil {
		return err
	}
	l.machine = &machine{log: l, state: fsm.New(c.Cluster)}
	if l.seed != nil {
		l.machine.state = l.seed
	}
	view := l.machine.state.View()
	l.view.Store(&view)
	l.feed.reset(view.Revision(), view.Chain())
	s := &store{Store: l.files.entries, StableStore: l.files.stable, stop: l.failDisk}
	r, err := raft.NewRaft(c.Raft, l.machine, s, s, snapshots, l.transport)
	if err != nil {
		if cause := l.Err(); cause != nil {
			return cause
		}
		return err
	}
	s.running.Store(true)
	l.mu.Lock()
	l.raft = r
	l.mu.Unlock()
	return nil
}

// lead makes this server, the only member, the leader.
func (l *Log) lead(ctx context.Context) error {
	members := l.raft.GetConfiguration()
	if err := l.await(ctx, members); err != nil {
		return err
	}
	if all := members.Configuration().Servers; len(all) != 1 || all[0].ID != l.config.Raft.LocalID {
		return fmt.Errorf("%s is of members %v, and this is server %s; restore the node's identity that belongs to it, or choose another directory",
			stableFile, all, l.config.Raft.LocalID)
	}
	// A leader that hands over sends this; here it spares the wait for an election
	// timeout, after which the server would elect itself anyway.
	id, address := l.config.Raft.LocalID, l.transport.LocalAddr()
	request := raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: l.config.Raft.ProtocolVersion, ID: []byte(id), Addr: []byte(address),
	}}
	if err := l.transport.TimeoutNow(id, address, &request, &raft.TimeoutNowResponse{}); err != nil {
		l.config.Logger.Debug("asked for an election in vain", "error", err)
	}
	for {
		select {
		case leads := <-l.raft.LeaderCh():
			if leads {
				return nil
			}
		case <-l.stopped:
			return l.Err()
		case <-ctx.Done():
			return fmt.Errorf("elect a leader: %w", ctx.Err())
		}
	}
}

// await waits for one of Raft's futures. Raft leaves some unanswered when it
// stops, so the log's end counts as an answer.
func (l *Log) await(ctx context.Context, f raft.Future) error {
	answered := make(chan error, 1)
	go func() { answered <- f.Error() }()
	select {
	case err := <-answered:
		if cause := l.Err(); cause != nil {
			return cause
		}
		if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) {
			err = fmt.Errorf("%w: %w", log.ErrNotLeader, err)
		}
		return err
	case <-l.stopped:
		return l.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// compareHeads checks that the replay has led to where history ends.
func (l *Log) compareHeads() error {
	view := l.View()
	last, chain := l.history.Last()
	switch {
	case last > view.Revision():
		return &log.CorruptError{Revision: view.Revision() + 1, What: fmt.Sprintf(
			"history goes up to revision %d, replay of the Raft log only to %d: the Raft log has lost acknowledged events; restore both from one copy",
			last, view.Revision())}
	case last < view.Revision() || chain != view.Chain():
		return &log.CorruptError{Revision: view.Revision(), What: fmt.Sprintf(
			"history ends at revision %d with chain value %s, the state is of revision %d with chain value %s; restore both from one copy",
			last, chain, view.Revision(), view.Chain())}
	}
	l.config.Logger.Info("opened the log", "dir", l.config.Dir, "revision", last, "chain", chain)
	return nil
}

// Err says why the log has stopped: nil while it works, log.ErrClosed after
// Close, or what made it impossible to go on.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// Done is closed when the log has stopped; Err says why. Close is still due.
func (l *Log) Done() <-chan struct{} { return l.stopped }

// fail stops the log for a reason that lies in itself. Any goroutine may call
// it, Raft's too; only the first call counts. Raft runs on until Close, so that
// it answers who waits for it, but the machine applies nothing more.
func (l *Log) fail(err error) {
	if l.stop(err) {
		l.config.Logger.Error("the log stops", "dir", l.config.Dir, "error", err)
	}
}

func (l *Log) stop(cause error) (first bool) {
	l.mu.Lock()
	first = l.cause == nil
	if first {
		l.cause = cause
		close(l.stopped)
	}
	cause = l.cause
	l.mu.Unlock()
	l.queue.close(cause)
	return first
}

// failDisk is fail for a disk that does not take what Raft must write. Raft
// would step down, elect itself again and panic at its term: it must end, too.
func (l *Log) failDisk(err error) {
	l.fail(err)
	l.halt()
}

// halt tells Raft to end and does not wait for it.
func (l *Log) halt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.raft != nil && l.shutdown == nil {
		l.shutdown = l.raft.Shutdown()
	}
}

// Close ends the log in order: appends are refused, the entries in flight are
// finished, history is made durable, and the directory is given free. When ctx
// ends first, Close returns its error and goes on in the background.
func (l *Log) Close(ctx context.Context) error {
	l.closing.Do(func() {
		go func() {
			defer close(l.released)
			l.queue.close(log.ErrClosed)
			<-l.watcher
			l.stop(log.ErrClosed)
			l.closeErr = l.release()
		}()
	})
	select {
	case <-l.released:
		return l.closeErr
	case <-ctx.Done():
		return fmt.Errorf("close log %s: %w", l.config.Dir, ctx.Err())
	}
}

// release lets go of everything that was opened, once Raft has ended.
func (l *Log) release() error {
	var errs []error
	l.halt()
	if l.shutdown != nil {
		errs = append(errs, l.shutdown.Error())
	}
	if l.machine != nil {
		errs = append(errs, l.machine.endReplay())
	}
	if l.transport != nil {
		errs = append(errs, l.transport.Close())
	}
	errs = append(errs, l.files.close())
	if l.history != nil {
		errs = append(errs, l.history.Close())
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}
