// Package apiserver serves varve's API (api/varve/v1) over a unix socket, as
// gRPC, gRPC-Web and plain JSON over HTTP. Handlers only translate: they
// authenticate, check, append events and read views. What acts on the machine is
// behind the interfaces in this file, which package agent implements.
package apiserver

import (
	"context"
	"net/netip"
	"time"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/history"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// Log is the replicated log and the state it has led to.
type Log interface {
	log.Appender
	log.Proposer
	log.Reader
	View() fsm.View
	// History is where its records are kept.
	History() *history.History
	// ClockBehind is by how much the node's clock is behind the log's time, which
	// never goes back.
	ClockBehind() time.Duration
}

// Projector keeps the kernel equal to the log.
type Projector interface {
	// Wait returns once the kernel enforces the given revision, or with the
	// error that keeps it from doing so.
	Wait(ctx context.Context, revision log.Revision) error
	// Current is what is in force: the last tables written, nil before the first.
	Current() *projections.Tables
	// Hold calls fn with the view and the tables in force, while nothing is
	// written to the kernel.
	Hold(ctx context.Context, fn func(fsm.View, *projections.Tables) error) error
	// Err is why the newest view is not in force, or nil.
	Err() error
}

// Endpoints connects and disconnects workloads.
type Endpoints interface {
	Add(ctx context.Context, actor Actor, req *varvev1.AddEndpointRequest) (ref fsm.EndpointRef, created bool, err error)
	SetLabels(ctx context.Context, actor Actor, ref fsm.EndpointRef, set map[string]string, remove []string) error
	SetAuditMode(ctx context.Context, actor Actor, ref fsm.EndpointRef, on bool) error
	Delete(ctx context.Context, actor Actor, ref fsm.EndpointRef) (deleted bool, err error)
	// State says how a local endpoint does: "ready", or what is wrong.
	State(ref fsm.EndpointRef) string
}

// Kernel reads the datapath as it is.
type Kernel interface {
	KernelTables(ctx context.Context) (*projections.Tables, error)
	Verify(ctx context.Context, desired *projections.Tables) ([]dataplane.Difference, error)
	Flows(ctx context.Context, fn func(dataplane.Flow) error) error
	Counters() (counters []dataplane.Counter, lostEvents uint64, err error)
	Capacities() map[string]int
	Ifindex(endpointID uint32) int
	// Names are the rows of the map `fqdn`.
	Names(ctx context.Context) ([]dataplane.NameRow, error)
}

// Names is what the node's DNS proxy knows, which the log has a moment later. Every call
// fails while the proxy does not answer.
type Names interface {
	// Facts is what an endpoint was told of an address, or for a name if that is not
	// empty.
	Facts(ctx context.Context, of fsm.EndpointRef, addr netip.Addr, name string) ([]verdict.Fact, error)
	// Verify compares the rows of the map `fqdn` with what the proxy knows, and tells how
	// many differ, and the first of them.
	Verify(ctx context.Context) (int, []dataplane.Difference, error)
}

// Monitor hands out the events of the ring buffer.
type Monitor interface {
	// Subscribe calls fn for each event until ctx ends or fn fails; lost is the
	// number of events that this caller was too slow for since the last call.
	Subscribe(ctx context.Context, fn func(e dataplane.Event, lost uint64) error) error
}

// Info is what status tells of this process.
type Info struct {
	Version          string
	Cluster          string
	Node             string
	PID              int
	StartedUnixNS    int64
	ReplayedEvents   uint64
	ReplayNS         int64
	BootstrapNS      int64
	BootstrapWritten uint64
}
