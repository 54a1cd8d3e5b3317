// Package replay folds kept records into a state, decoding ahead on other cores.
package replay

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

// batchRecords share a hand-over between goroutines. What is under way at once shall
// fit into a core's cache.
const batchRecords = 64

// Reader is what of log.Reader a replay needs.
type Reader interface {
	Read(ctx context.Context, first, last log.Revision, fn func(log.Record) error) error
}

// batch is records on their way: read, decoded, applied, and empty again.
type batch struct {
	records []log.Record
	bytes   []byte // of their events
	events  [batchRecords]fsm.Decoded
	decoded chan struct{} // receives once events are filled
}

// add copies a record.
func (b *batch) add(r log.Record) {
	b.bytes = append(b.bytes, r.Event...)
	b.records = append(b.records, r)
}

// seal lets the records have their events, which moved while they were gathered.
func (b *batch) seal() {
	rest := b.bytes
	for i := range b.records {
		n := len(b.records[i].Event)
		b.records[i].Event, rest = rest[:n:n], rest[n:]
	}
}

func (b *batch) decode() {
	for i := range b.records {
		b.events[i].Decode(b.records[i].Event)
	}
	b.decoded <- struct{}{}
}

// Run applies the records after the state's revision up to last, as far as they
// exist, and checks that the state gives each the revision, outcome, time and
// chain value that were kept. The error of a record that differs is a
// *log.CorruptError. The state is the caller's alone until Run returns.
func Run(ctx context.Context, from Reader, last log.Revision, state *fsm.State) error {
	work, ctx := errgroup.WithContext(ctx)
	decoders := max(1, runtime.GOMAXPROCS(0)-1)
	under := 4 * (decoders + 1) // way
	empty := make(chan *batch, under)
	todo := make(chan *batch, under)
	ordered := make(chan *batch, under)
	for range under {
		empty <- nil // made when it is needed
	}
	for range decoders {
		work.Go(func() error {
			for b := range todo {
				b.decode()
			}
			return nil
		})
	}
	first := state.View().Revision() + 1
	work.Go(func() error {
		defer close(todo)
		defer close(ordered)
		return read(ctx, from, first, last, empty, func(b *batch) {
			b.seal()
			todo <- b
			ordered <- b
		})
	})
	work.Go(func() error {
		for b := range ordered {
			<-b.decoded
			for i := range b.records {
				if err := apply(state, &b.records[i], &b.events[i]); err != nil {
					return err
				}
			}
			empty <- b
		}
		return nil
	})
	return work.Wait()
}

// read fills empty batches and hands them on. No channel between the goroutines is
// ever full: each has room for all batches that there are.
func read(ctx context.Context, from Reader, first, last log.Revision, empty <-chan *batch, full func(*batch)) error {
	var b *batch
	err := from.Read(ctx, first, last, func(r log.Record) error {
		if b == nil {
			select {
			case b = <-empty:
				if b == nil {
					b = &batch{decoded: make(chan struct{}, 1)}
				}
				b.records, b.bytes = b.records[:0], b.bytes[:0]
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if b.add(r); len(b.records) == batchRecords {
			full(b)
			b = nil
		}
		return nil
	})
	if err == nil && b != nil {
		full(b)
	}
	return err
}

func apply(state *fsm.State, kept *log.Record, event *fsm.Decoded) error {
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
