// Command crashinit is the only program of a machine that is going to be killed: it
// opens the log on the machine's disk, checks it, tells the host every record of it,
// and then appends from several clients at once and tells the host of each append that
// was acknowledged, until the host kills the machine.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/raftlog"
	"github.com/varve-net/varve/test/vm/guest"
	"github.com/varve-net/varve/test/vm/wire"
)

const (
	disk    = "/dev/vda"
	dir     = "/disk"
	clients = 8
	name    = "crash"
)

func main() {
	err := run(context.Background())
	fmt.Println("init:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run(ctx context.Context) (err error) {
	if err := errors.Join(guest.MountAll(), guest.LoadModules()); err != nil {
		return err
	}
	port, err := guest.OpenPort()
	if err != nil {
		return err
	}
	host := &line{w: port}
	defer func() {
		if err != nil {
			_ = host.say(wire.Crash{Broke: err.Error()})
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(disk, dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", disk, err)
	}
	id, err := cluster.LoadOrCreate(dir+"/state", name, name)
	if err != nil {
		return err
	}
	// Little between two snapshots, so that kills meet them too.
	l, err := raftlog.Open(ctx, raftlog.Config{
		Dir: dir + "/state/log", Cluster: name, Raft: cluster.RaftConfig(id), SnapshotThreshold: 64, TrailingLogs: 16,
	})
	if err != nil {
		return err
	}
	if err := l.Verify(ctx, 1); err != nil {
		return err
	}
	head, chain := l.Head()
	if head > 0 {
		err = l.Read(ctx, 1, head, func(r log.Record) error {
			var e eventpb.Event
			if err := e.UnmarshalVT(r.Event); err != nil {
				return err
			}
			return host.say(wire.Crash{Have: &wire.Append{ID: e.RequestId, Revision: uint64(r.Revision)}})
		})
		if err != nil {
			return err
		}
	}
	if err := host.say(wire.Crash{Open: &wire.Head{Revision: uint64(head), Chain: hex.EncodeToString(chain[:])}}); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for client := range clients {
		g.Go(func() error { return appendOn(ctx, l, host, client) })
	}
	return g.Wait()
}

// appendOn appends for ever.
func appendOn(ctx context.Context, l *raftlog.Log, host *line, client int) error {
	for n := 0; ; n++ {
		var random [16]byte
		if _, err := unix.Getrandom(random[:], 0); err != nil {
			return err
		}
		id := hex.EncodeToString(random[:])
		e := &eventpb.Event{
			RequestId: id,
			Actor:     &eventpb.Actor{Role: eventpb.Role_ROLE_ADMIN, Name: name},
			Origin:    &eventpb.Origin{Cluster: name, Node: name},
			Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{
				Name: fmt.Sprintf("client-%d", client), Labels: map[string]string{"n": fmt.Sprint(n)},
			}},
		}
		var err error
		if e.Stream, err = log.StreamOf(e); err != nil {
			return err
		}
		results, err := l.Append(ctx, e)
		if err != nil {
			return err
		}
		if err := host.say(wire.Crash{Acked: &wire.Append{ID: id, Revision: uint64(results[0].Revision)}}); err != nil {
			return err
		}
	}
}

// line is the serial line to the host, shared by the clients.
type line struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *line) say(m wire.Crash) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := io.WriteString(l.w, m.Line())
	return err
}
