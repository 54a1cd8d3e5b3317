package replay

import (
	"context"
	"errors"
	"testing"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/log"
)

// kept is records in memory; their events are valid during the call only.
type kept []log.Record

func (k kept) Read(_ context.Context, first, last log.Revision, fn func(log.Record) error) error {
	var buf []byte
	for _, r := range k {
		if r.Revision < first || r.Revision > last {
			continue
		}
		buf = append(buf[:0], r.Event...)
		r.Event = buf
		if err := fn(r); err != nil {
			return err
		}
		clear(buf)
	}
	return nil
}

func records(t *testing.T, events int) (kept, log.Hash) {
	t.Helper()
	m := mix.Standard(events)
	s := fsm.New(m.Cluster)
	var all kept
	for event, err := range m.All() {
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := s.Apply(event)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all, s.View().Digest()
}

func TestReplayReachesTheDigest(t *testing.T) {
	all, want := records(t, 14_000)
	s := fsm.New("bench")
	// In two parts, the second of which asks for more than there is.
	for _, last := range []log.Revision{5000, 99_999} {
		if err := Run(t.Context(), all, last, s); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.View().Digest(); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}

func TestReplayNamesTheRecordThatDiffers(t *testing.T) {
	all, _ := records(t, 3000)
	all[2500].TimeNS++
	err := Run(t.Context(), all, 3000, fsm.New("bench"))
	corrupt, ok := errors.AsType[*log.CorruptError](err)
	if !ok || corrupt.Revision != 2501 {
		t.Errorf("got %v, want revision 2501 corrupt", err)
	}
}

func TestReplayEndsWithItsContext(t *testing.T) {
	all, _ := records(t, 3000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, all, 3000, fsm.New("bench")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
