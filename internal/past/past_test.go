package past

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// fake is a log in memory with checkpoints at some of its revisions.
type fake struct {
	records     []log.Record
	checkpoints map[log.Revision][]byte
	read        int // records handed out
}

func (f *fake) Head() (log.Revision, log.Hash) {
	if len(f.records) == 0 {
		return 0, log.Hash{}
	}
	r := f.records[len(f.records)-1]
	return r.Revision, r.Chain
}
func (f *fake) First() log.Revision {
	if len(f.records) == 0 {
		return 1
	}
	return f.records[0].Revision
}
func (f *fake) Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error {
	for _, r := range f.records {
		if r.Revision < first || r.Revision > last {
			continue
		}
		f.read++
		if err := fn(r); err != nil {
			return err
		}
	}
	return ctx.Err()
}
func (f *fake) Checkpoints() []log.Revision {
	var out []log.Revision
	for r := log.Revision(0); len(out) < len(f.checkpoints); r++ {
		if _, ok := f.checkpoints[r]; ok {
			out = append(out, r)
		}
	}
	return out
}
func (f *fake) OpenCheckpoint(at log.Revision) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(f.checkpoints[at])), nil
}

// small is a history of which every revision's View is kept by a naive replay.
func small(t testing.TB, events int) (*fake, []fsm.View) {
	t.Helper()
	return drawn(t, mix.Mix{Seed: 7, Cluster: "bench", Events: events, Nodes: 3, Namespaces: 4, Endpoints: 60, Apps: 5, Policies: 20})
}

// drawn is a mix in memory, with every View.
func drawn(t testing.TB, m mix.Mix) (*fake, []fsm.View) {
	t.Helper()
	s := fsm.New(m.Cluster)
	f := &fake{checkpoints: map[log.Revision][]byte{}}
	views := []fsm.View{s.View()}
	for event, err := range m.All() {
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := s.Apply(event)
		if err != nil {
			t.Fatal(err)
		}
		f.records = append(f.records, r)
		views = append(views, s.View())
	}
	return f, views
}

func (f *fake) checkpoint(t testing.TB, v fsm.View) {
	t.Helper()
	var b bytes.Buffer
	if err := v.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	f.checkpoints[v.Revision()] = b.Bytes()
}

func same(t *testing.T, p *Past, at log.Revision, want fsm.View) {
	t.Helper()
	got, err := p.View(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	if got.Revision() != at || got.Digest() != want.Digest() || got.Chain() != want.Chain() || got.TimeNS() != want.TimeNS() {
		t.Fatalf("revision %d: got revision %d, digest %s; want %s", at, got.Revision(), got.Digest(), want.Digest())
	}
}

// In whatever order revisions are asked for, with or without checkpoints, each is
// as a naive replay had it.
func TestView(t *testing.T) {
	f, views := small(t, 1200)
	for _, checkpoints := range [][]int{nil, {1}, {0, 400, 401, 1000, 1200}} {
		f.checkpoints = map[log.Revision][]byte{}
		for _, at := range checkpoints {
			f.checkpoint(t, views[at])
		}
		p := New(Config{Log: f, Cluster: "bench", Checkpoints: f})
		for i := range 150 {
			at := (i*i*7919 + i*31) % len(views)
			same(t, p, log.Revision(at), views[at])
		}
		for at := len(views) - 1; at > len(views)-20; at-- {
			same(t, p, log.Revision(at), views[at])
		}
	}
	if _, err := New(Config{Log: f, Cluster: "bench"}).View(t.Context(), 1201); !errors.Is(err, ErrFuture) {
		t.Errorf("after the head: %v", err)
	}
}

// A neighbour of what was asked for costs few records, before as after it.
func TestNeighboursAreNear(t *testing.T) {
	f, views := small(t, 3000)
	p := New(Config{Log: f, Cluster: "bench"})
	same(t, p, 2000, views[2000])
	for _, at := range []int{2001, 1999, 1990, 2100} {
		f.read = 0
		same(t, p, log.Revision(at), views[at])
		if f.read > 150 {
			t.Errorf("revision %d: %d records were read", at, f.read)
		}
	}
}

// Nor does one on the other side of a checkpoint, unless the checkpoint is what was
// asked for.
func TestNeighboursBeyondACheckpointAreNear(t *testing.T) {
	f, views := small(t, 3000)
	for _, at := range []int{1000, 2000} {
		f.checkpoint(t, views[at])
	}
	p := New(Config{Log: f, Cluster: "bench", Checkpoints: f})
	same(t, p, 2100, views[2100])
	f.read = 0
	for _, at := range []int{2099, 1999, 1950, 1700} {
		same(t, p, log.Revision(at), views[at])
	}
	if f.read > 1000 {
		t.Errorf("%d records were read", f.read)
	}
	f.read = 0
	same(t, New(Config{Log: f, Cluster: "bench", Checkpoints: f}), 2000, views[2000])
	if f.read > 1 {
		t.Errorf("%d records were read for the state of a checkpoint", f.read)
	}
}

// A checkpoint that is damaged, of another log or of another revision is passed
// over; the answer is right all the same.
func TestBadCheckpoints(t *testing.T) {
	f, views := small(t, 600)
	f.checkpoint(t, views[300])
	good := f.checkpoints[300]
	other := mix.Mix{Seed: 8, Cluster: "bench", Events: 300, Nodes: 3, Namespaces: 4, Endpoints: 60, Apps: 5, Policies: 20}
	s := fsm.New("bench")
	for event := range other.All() {
		if _, _, err := s.Apply(event); err != nil {
			t.Fatal(err)
		}
	}
	var foreign bytes.Buffer
	if err := s.View().WriteSnapshot(&foreign); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 4
	for name, bad := range map[string][]byte{"flipped": flipped, "cut": good[:len(good)-9], "foreign": foreign.Bytes(), "empty": {}} {
		t.Run(name, func(t *testing.T) {
			f.checkpoints = map[log.Revision][]byte{300: bad}
			f.checkpoint(t, views[100])
			same(t, New(Config{Log: f, Cluster: "bench", Checkpoints: f}), 450, views[450])
			f.checkpoints[400] = good
			same(t, New(Config{Log: f, Cluster: "bench", Checkpoints: f}), 450, views[450])
		})
	}
}

// Records before the oldest kept can be gone: what a checkpoint covers is
// answered, and what is before it is refused.
func TestCompacted(t *testing.T) {
	f, views := small(t, 600)
	f.records = f.records[300:]
	p := New(Config{Log: f, Cluster: "bench", Checkpoints: f})
	if _, err := p.View(t.Context(), 400); !errors.Is(err, log.ErrCompacted) {
		t.Errorf("without a checkpoint: %v", err)
	}
	f.checkpoint(t, views[300])
	same(t, p, 300, views[300])
	same(t, p, 400, views[400])
	if _, err := p.View(t.Context(), 299); !errors.Is(err, log.ErrCompacted) {
		t.Errorf("before the checkpoint: %v", err)
	}
	if m, err := p.Resolve(t.Context(), time.Unix(0, views[301].TimeNS()-1).UTC().Format(time.RFC3339Nano)); !errors.Is(err, log.ErrCompacted) {
		t.Errorf("a time before the oldest record: %v, %v", m, err)
	}
}

// What is asked for in the order of revisions is one replay, of which each answer
// tells what changed since the one before.
func TestGoingOn(t *testing.T) {
	f, views := small(t, 3000)
	f.checkpoint(t, views[1500])
	p := New(Config{Log: f, Cluster: "bench", Checkpoints: f})
	last := p.must(t, 1000)
	f.read = 0
	for _, at := range []log.Revision{1001, 1040, 2000, 3000} {
		same(t, p, at, views[at])
		v := p.must(t, at)
		if changes, ok := v.ChangesSince(last); !ok || len(changes) == 0 {
			t.Errorf("from %d to %d: %d changes, %v", last.Revision(), at, len(changes), ok)
		}
		last = v
	}
	if f.read != 2000 {
		t.Errorf("%d records were read, want 2000", f.read)
	}
}

func (p *Past) must(t *testing.T, at log.Revision) fsm.View {
	t.Helper()
	v, err := p.View(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestDamagedRecord(t *testing.T) {
	f, views := small(t, 600)
	f.checkpoint(t, views[300])
	f.records[200].Chain[3] ^= 1
	p := New(Config{Log: f, Cluster: "bench", Checkpoints: f})
	same(t, p, 450, views[450])
	same(t, p, 200, views[200])
	var corrupt *log.CorruptError
	if _, err := p.View(t.Context(), 250); !errors.As(err, &corrupt) || corrupt.Revision != 201 {
		t.Errorf("over the damaged record: %v", err)
	}
	// A replay from what is known would be as short, but leads over the damage.
	p = New(Config{Log: f, Cluster: "bench", Checkpoints: f})
	same(t, p, 200, views[200])
	same(t, p, 310, views[310])
}

func TestTables(t *testing.T) {
	f, views := small(t, 900)
	p := New(Config{Log: f, Cluster: "bench"})
	for i := range 60 {
		at := log.Revision(100 + (i*i*331)%800)
		node := mix.Node(i % 3)
		got, err := p.Tables(t.Context(), at, node)
		if err != nil {
			t.Fatal(err)
		}
		want, err := projections.Build(views[at], node, projections.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Digest() != want.Digest() || got.Revision != at {
			t.Fatalf("revision %d, node %s: revision %d, digest %s, want %s", at, node, got.Revision, got.Digest(), want.Digest())
		}
	}
	if _, err := p.Tables(t.Context(), 0, mix.Node(0)); !errors.Is(err, projections.ErrUnknownNode) {
		t.Errorf("before the node joined: %v", err)
	}
}

func TestResolve(t *testing.T) {
	f, views := small(t, 300)
	now := time.Unix(0, views[300].TimeNS()).Add(time.Hour)
	p := New(Config{Log: f, Cluster: "bench", Now: func() time.Time { return now }})
	utc := func(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }
	for text, want := range map[string]log.Revision{
		"0": 0, "17": 17, "300": 300, "now": 300, " 17 ": 17,
		utc(views[17].TimeNS()):            17,
		utc(views[17].TimeNS() + 1):        17,
		utc(views[18].TimeNS() - 1):        17,
		utc(views[1].TimeNS() - 1):         0,
		"2001-02-03":                       0,
		"2001-02-03 04:05":                 0,
		"-1h":                              300,
		"-59m":                             300,
		"-1d1h":                            0,
		fmt.Sprintf("-%dms", 60*60*1000+1): 299,
	} {
		if m, err := p.Resolve(t.Context(), text); err != nil || m.Revision != want || m.TimeNS != views[want].TimeNS() {
			t.Errorf("%q: %+v, %v; want revision %d", text, m, err, want)
		}
	}
	for text, want := range map[string]error{
		"301": ErrFuture, utc(now.UnixNano() + 1): ErrFuture,
		"": ErrMoment, "2h": ErrMoment, "--2h": ErrMoment, "-": ErrMoment, "-2": ErrMoment, "yesterday": ErrMoment, "2026-13-01": ErrMoment, "-1": ErrMoment, "-+2h": ErrMoment, "1e3": ErrMoment,
	} {
		if m, err := p.Resolve(t.Context(), text); !errors.Is(err, want) {
			t.Errorf("%q: %+v, %v; want %v", text, m, err, want)
		}
		if want == ErrMoment && !errors.Is(Check(text), ErrMoment) {
			t.Errorf("Check(%q): %v", text, Check(text))
		}
	}
}
