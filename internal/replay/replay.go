// Package replay folds kept records into a state, decoding ahead on other cores.
package replay

import (
	"context"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

// batchRecords share a hand-over between goroutines.
const batchRecords = 256

// Reader is what of log.Reader a replay needs.
type Reader interface {
	Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error
}

type batch struct {
	records []log.Record
	decoded []fsm.Decoded
	done    chan struct{} // closed once decoded is filled
}

// Run applies the records after the state's revision up to last, as far as they
// exist, and checks that the state gives each the revision, outcome, time and
// chain value that were kept. The error of a record that differs is a
// *log.CorruptError. The state is the caller's alone until Run returns.
func Run(ctx context.Context, from Reader, last log.Revision, state *fsm.State) error {
	work, ctx := errgroup.WithContext(ctx)
	decoders := max(1, runtime.GOMAXPROCS(0)-1)
	todo := make(chan *batch, 2*decoders)
	ordered := make(chan *batch, 4*decoders)
	for range decoders {
		work.Go(func() error {
			for b := range todo {
				for i := range b.records {
					b.decoded[i] = fsm.Decode(b.records[i].Event)
				}
				close(b.done)
			}
			return nil
		})
	}
	first := state.View().Revision() + 1
	work.Go(func() error {
		defer close(todo)
		defer close(ordered)
		return read(ctx, from, first, last, func(b *batch) error {
			for _, to := range []chan *batch{todo, ordered} {
				select {
				case to <- b:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	})
	work.Go(func() error {
		for b := range ordered {
			select {
			case <-b.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			for i := range b.records {
				if err := apply(state, &b.records[i], b.decoded[i]); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return work.Wait()
}

// read hands on records in batches. Their events are copies, in one piece a batch.
func read(ctx context.Context, from Reader, first, last log.Revision, next func(*batch) error) error {
	var records []log.Record
	var bytes []byte
	flush := func() error {
		if len(records) == 0 {
			return nil
		}
		whole := slices.Clone(bytes)
		for i := range records {
			n := len(records[i].Event)
			records[i].Event, whole = whole[:n:n], whole[n:]
		}
		b := &batch{records: slices.Clone(records), decoded: make([]fsm.Decoded, len(records)), done: make(chan struct{})}
		records, bytes = records[:0], bytes[:0]
		return next(b)
	}
	err := from.Read(ctx, first, last, func(r log.Record) error {
		bytes = append(bytes, r.Event...)
		if records = append(records, r); len(records) < batchRecords {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

func apply(state *fsm.State, kept *log.Record, event fsm.Decoded) error {
	got, _, err := state.ApplyDecoded(event)
	if err != nil {
		return err
	}
	if got.Revision != kept.Revision || got.Chain != kept.Chain || got.Outcome != kept.Outcome || got.TimeNS != kept.TimeNS {
		return &log.CorruptError{Revision: kept.Revision, What: fmt.Sprintf(
			"replay gives revision %d, outcome %d, time %d, chain %.8s; recorded are %d, %d, %d, %.8s",
			got.Revision, got.Outcome, got.TimeNS, got.Chain, kept.Revision, kept.Outcome, kept.TimeNS, kept.Chain)}
	}
	return nil
}
