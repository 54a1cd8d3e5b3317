package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
)

// bench is a log without Raft: a history, and every View.
type bench struct {
	dir   string
	h     *history.History
	views []fsm.View
	space error
}

func (b *bench) View() fsm.View                 { return b.views[len(b.views)-1] }
func (b *bench) History() *history.History      { return b.h }
func (b *bench) Changed() <-chan struct{}       { return nil }
func (b *bench) Snapshot(context.Context) error { return nil }
func (b *bench) CheckSpace() error              { return b.space }
func (b *bench) Sparing(w io.Writer) io.Writer  { return w }

// events of a small cluster, with the time of the mix.
const events = 2400

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{dir: t.TempDir()}
	b.open(t)
	m := mix.Mix{Seed: 5, Cluster: "bench", Events: events, Nodes: 3, Namespaces: 4, Endpoints: 60, Apps: 5, Policies: 20}
	s := fsm.New(m.Cluster)
	b.views = []fsm.View{s.View()}
	var batch []log.Record
	for event, err := range m.All() {
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := s.Apply(event)
		if err != nil {
			t.Fatal(err)
		}
		b.views = append(b.views, s.View())
		if batch = append(batch, r); len(batch) == 20 {
			if err := b.h.Append(batch); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	return b
}

// The whole history is read once a day on an idle node. What it lost is known then,
// and a checkpoint leads over it.
func TestCheckHistory(t *testing.T) {
	b := newBench(t)
	now := time.Unix(0, b.View().TimeNS())
	k := b.keeper(func(c *Config) { c.Events, c.Now = math.MaxUint64, func() time.Time { return now } })
	idle := func() {
		t.Helper()
		for {
			if did, err := k.round(t.Context(), true); err != nil {
				t.Fatal(err)
			} else if !did {
				return
			}
		}
	}
	idle()
	if lost := b.h.Lost(); len(lost) != 0 {
		t.Fatalf("lost %v, and nothing was damaged", lost)
	}
	segments, err := b.h.Segments()
	if err != nil || len(segments) < 3 {
		t.Fatal(segments, err)
	}
	path := filepath.Join(b.dir, fmt.Sprintf("%020d.history", segments[1].First))
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 2
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	idle()
	if lost := b.h.Lost(); len(lost) != 0 {
		t.Fatalf("lost %v within the day", lost)
	}
	now = now.Add(checkEvery)
	idle()
	lost := b.h.Lost()
	if len(lost) != 1 || lost[0].First < segments[1].First || lost[0].Last > segments[1].Last || !errors.Is(lost[0].Err, log.ErrCorrupt) {
		t.Fatalf("lost %v, of segment %+v", lost, segments[1])
	}
	head := b.View().Revision()
	if at := b.h.Checkpoints(); len(at) != 1 || at[0] != head {
		t.Errorf("checkpoints %v, want one at %d", at, head)
	}
	if v, err := b.past().View(t.Context(), head); err != nil || v.Digest() != b.View().Digest() {
		t.Errorf("the newest state over the loss: %v", err)
	}
	if _, err := b.past().View(t.Context(), lost[0].First); !errors.Is(err, log.ErrCorrupt) {
		t.Errorf("the state at a lost revision: %v", err)
	}
}

func (b *bench) open(t *testing.T) {
	t.Helper()
	var err error
	if b.h, err = history.OpenSized(b.dir, 64<<10, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	h := b.h
	t.Cleanup(func() { h.Close() })
}

func (b *bench) past() *past.Past {
	return past.New(past.Config{Log: past.Kept{History: b.h}, Cluster: "bench", Checkpoints: b.h})
}

func (b *bench) keeper(change func(*Config)) *Keeper {
	c := Config{Log: b, Past: b.past(), Events: 300, Bytes: math.MaxInt64, Logger: slog.New(slog.DiscardHandler)}
	change(&c)
	return New(c)
}

// settle lets a keeper do all that is due.
func settle(t *testing.T, k *Keeper) {
	t.Helper()
	for range 1000 {
		did, err := k.round(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		if !did {
			return
		}
	}
	t.Fatal("the keeper finds no end")
}

func (b *bench) answers(t *testing.T, from, to int) {
	t.Helper()
	p := b.past()
	for at := from; at <= to; at += 61 {
		v, err := p.View(t.Context(), log.Revision(at))
		if err != nil || v.Digest() != b.views[at].Digest() {
			t.Fatalf("revision %d: %v", at, err)
		}
	}
	v, err := p.Verify(t.Context(), b.h, log.Revision(to))
	if err != nil || v.Digest != b.views[to].Digest() || int(v.From) > from {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// A history that had no keeper is made up for: checkpoints at all distances, every
// sealed segment packed, the answers the same.
func TestSettle(t *testing.T) {
	b := newBench(t)
	settle(t, b.keeper(func(*Config) {}))
	at := log.Revision(0)
	for _, next := range append(b.h.Checkpoints(), events) {
		if next-at > 450 {
			t.Errorf("no checkpoint from %d to %d", at, next)
		}
		at = next
	}
	segments, err := b.h.Segments()
	if err != nil || len(segments) < 5 {
		t.Fatalf("%+v, %v: the test wants segments", segments, err)
	}
	for _, s := range segments {
		if s.Packed != s.Sealed {
			t.Errorf("%+v", s)
		}
	}
	b.answers(t, 0, events)
}

func TestCheckpointsByBytes(t *testing.T) {
	b := newBench(t)
	k := b.keeper(func(c *Config) { c.Events, c.Bytes = 1e9, 100<<10 })
	if did, err := k.checkpoint(t.Context()); !did || err != nil || len(b.h.Checkpoints()) != 1 {
		t.Errorf("%v, %v, %v", did, err, b.h.Checkpoints())
	}
	if did, err := k.checkpoint(t.Context()); did || err != nil {
		t.Errorf("again: %v, %v", did, err)
	}
}

// Events that change many rows are followed by a checkpoint sooner.
func TestCheckpointsByRows(t *testing.T) {
	b := newBench(t)
	rows := b.View().Cost()
	if rows < events {
		t.Fatalf("%d events changed %d rows", events, rows)
	}
	k := b.keeper(func(c *Config) { c.Events, c.Rows = 1e9, rows+1 })
	if did, err := k.checkpoint(t.Context()); did || err != nil {
		t.Errorf("before its time: %v, %v", did, err)
	}
	k.Rows = rows
	if did, err := k.checkpoint(t.Context()); !did || err != nil || len(b.h.Checkpoints()) != 1 {
		t.Errorf("%v, %v, %v", did, err, b.h.Checkpoints())
	}
	if did, err := k.checkpoint(t.Context()); did || err != nil {
		t.Errorf("again: %v, %v", did, err)
	}
}

// Retention by size and by age keeps what it says, and that can be replayed.
func TestRetention(t *testing.T) {
	for name, change := range map[string]func(*bench, *Config){
		"size": func(_ *bench, c *Config) { c.MaxBytes = 70 << 10 },
		"age": func(b *bench, c *Config) {
			c.MaxAge = time.Minute
			c.Now = func() time.Time { return time.Unix(0, b.views[1500].TimeNS()).Add(time.Minute) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			k := b.keeper(func(c *Config) { change(b, c) })
			settle(t, k)
			first := int(b.h.First())
			if first == 1 || first > 1501 && name == "age" {
				t.Fatalf("first %d", first)
			}
			segments, err := b.h.Segments()
			if err != nil {
				t.Fatal(err)
			}
			var bytes int64
			for _, s := range segments {
				bytes += s.Bytes
			}
			if name == "size" && bytes > 70<<10 {
				t.Errorf("%d bytes are kept", bytes)
			}
			b.answers(t, first-1, events)
			if _, err := b.past().View(t.Context(), log.Revision(first-2)); !errors.Is(err, log.ErrCompacted) {
				t.Errorf("before what is kept: %v", err)
			}
			if err := b.h.Close(); err != nil {
				t.Fatal(err)
			}
			b.open(t)
			b.answers(t, first-1, events)
		})
	}
}

// Without space nothing is written and nothing is lost; with space again it is
// made up for.
func TestNoSpace(t *testing.T) {
	b := newBench(t)
	b.space = fmt.Errorf("the disk: %w", log.ErrNoSpace)
	k := b.keeper(func(c *Config) { c.MaxBytes = 70 << 10 })
	for range 3 {
		if _, err := k.round(t.Context(), true); !errors.Is(err, log.ErrNoSpace) {
			t.Fatalf("%v", err)
		}
	}
	if b.h.First() != 1 || len(b.h.Checkpoints()) != 0 {
		t.Errorf("first %d, checkpoints %v", b.h.First(), b.h.Checkpoints())
	}
	b.answers(t, 0, events)
	b.space = nil
	settle(t, k)
	b.answers(t, int(b.h.First())-1, events)
}

// Run ends with its context, whatever it waits for.
func TestRunEnds(t *testing.T) {
	b := newBench(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	k := b.keeper(func(*Config) {})
	go func() { defer close(done); k.Run(ctx) }()
	for len(b.h.Checkpoints()) == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-done
}
