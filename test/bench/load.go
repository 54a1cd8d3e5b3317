package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varve-net/varve/log/eventpb"
)

// Load is what one process of clients measured.
type Load struct {
	Events  int     `json:"events"`
	Seconds float64 `json:"seconds"`
	// Micros are samples of the time from asking to the answer; at most
	// maxSamples, taken evenly.
	Micros []float64 `json:"micros"`
}

const maxSamples = 4000

// warmup is not counted: connections are opened, code is paged in.
const warmup = 300 * time.Millisecond

// A writer appends one event or puts one value of payloadBytes, and returns once
// it is durable. client is its number among the clients of the process.
type writer func(ctx context.Context, client, n int) error

// loadCommand runs clients against a server until time is up. Each has one
// request under way at a time, but for varve-stream, where it has `depth`.
func loadCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	fs.SetOutput(stderr)
	target := fs.String("target", "", "varve, varve-unary, varve-stream, etcd; varve-inproc, etcd-inproc with -addr a directory")
	addr := fs.String("addr", "", "unix socket of the server")
	clients := fs.Int("clients", 1, "clients at once")
	conns := fs.Int("conns", 1, "connections that they share")
	depth := fs.Int("depth", 1, "requests of a client under way, of varve-stream")
	seconds := fs.Float64("seconds", 2, "how long to measure")
	if err := fs.Parse(args); err != nil {
		return err
	}
	open, ok := targets[*target]
	if !ok {
		return fmt.Errorf("-target: %q is not known", *target)
	}
	write, closeTarget, err := open(ctx, *addr, *conns)
	if err != nil {
		return err
	}
	load, err := drive(ctx, write, *clients, *depth, time.Duration(*seconds*float64(time.Second)))
	if err = errors.Join(err, closeTarget()); err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(load)
}

// drive lets each of depth lanes of each client write one thing after another.
func drive(ctx context.Context, write writer, clients, depth int, length time.Duration) (Load, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var counting, done atomic.Bool
	var wait sync.WaitGroup
	lanes := make([][]float64, clients*depth)
	errs := make([]error, clients*depth)
	for lane := range lanes {
		wait.Go(func() {
			for n := 0; !done.Load(); n++ {
				began := time.Now()
				if err := write(ctx, lane/depth, n); err != nil {
					errs[lane] = fmt.Errorf("client %d: %w", lane/depth, err)
					cancel()
					return
				}
				if counting.Load() {
					lanes[lane] = append(lanes[lane], float64(time.Since(began).Nanoseconds())/1e3)
				}
			}
		})
	}
	if err := sleep(ctx, warmup); err == nil {
		counting.Store(true)
	}
	began := time.Now()
	_ = sleep(ctx, length)
	counting.Store(false)
	took := time.Since(began)
	done.Store(true)
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return Load{}, err
	}
	all := slices.Concat(lanes...)
	load := Load{Events: len(all), Seconds: took.Seconds(), Micros: all}
	if len(all) > maxSamples {
		load.Micros = make([]float64, maxSamples)
		for i := range load.Micros {
			load.Micros[i] = all[i*len(all)/maxSamples]
		}
	}
	return load, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// payloadBytes is the size of an event's payload and of a value in etcd.
const payloadBytes = 256

// payload sets the labels of a namespace. They change with every n, and the
// message is of payloadBytes.
func payload(client, n int) *eventpb.Event {
	set := &eventpb.NamespaceSet{Name: fmt.Sprintf("bench-%04d", client)}
	set.Labels = map[string]string{
		"revision": fmt.Sprintf("r%09d", n),
		"team":     strings.Repeat("t", 58),
		"owner":    strings.Repeat("o", 58),
		"purpose":  strings.Repeat("p", 38),
	}
	return &eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: set}}
}
