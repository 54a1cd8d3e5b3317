package dnslink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log/eventpb"
)

// Errors of a Proxy.
var (
	// ErrOtherNode: the proxy serves another node or another cluster.
	ErrOtherNode = errors.New("the DNS proxy is of another node")
	// ErrCompacted: facts after the number asked for are not in the journal any
	// more, since they were reported as shipped.
	ErrCompacted = errors.New("facts are not in the journal any more")
)

// Proxy is what the agent asks of the proxy; package dataplane/dns implements it,
// and package internal/dnsrpc carries it over the proxy's unix socket. Safe for
// concurrent use.
type Proxy interface {
	// Status is answered at once and at any time.
	Status(ctx context.Context) (Status, error)
	// Load reads the rules file, and returns once the map `fqdn` agrees with it and
	// with all facts: from then on the kernel may get rows that only the new rules
	// mention. It raises the generations of addresses of which rows were added.
	Load(ctx context.Context) error
	// Seed tells what the log knows to a proxy that has lost its journal. Numbers
	// go on after Seed.Last. A proxy that is there already keeps what it has.
	Seed(ctx context.Context, s Seed) error
	// Facts returns those with numbers above after, at most limit, in order. It
	// waits until there is one or ctx ends, and is then empty; once there is one, until
	// there are limit, as long as linger at most. ErrCompacted.
	Facts(ctx context.Context, after uint64, limit int, linger time.Duration) ([]Fact, error)
	// Shipped says that the log has the facts up to a number. The journal may then
	// forget those of them that hold nothing any more.
	Shipped(ctx context.Context, last uint64) error
	// Repair makes the map `fqdn` what facts and rules say, and returns how many
	// rows differed, and the first of them.
	Repair(ctx context.Context) (int, []Difference, error)
	// Verify compares as Repair does, and changes nothing.
	Verify(ctx context.Context) (int, []Difference, error)
}

// Difference is a row of the map `fqdn` that is not what facts and rules say.
type Difference struct {
	Endpoint   uint32
	Addr       netip.Addr
	Have, Want *abi.FQDNValue // nil: none
}

// Status says what state a proxy is in.
type Status struct {
	Cluster string
	Node    string
	PID     int
	Version string
	// Rules is the revision of the rules in force, 0 before there are any.
	Rules uint64
	// Last is the number of the newest fact in the journal, 0 if it has none yet.
	Last uint64
	// Err is why new answers are refused, e.g. a full disk; empty: they are not.
	Err string
}

// Fact is a fact of the node as its journal has it, and its number. Numbers are
// dense and begin at 1; they are the proxy's own, apart from the agent's.
type Fact struct {
	Seq uint64
	// Data is an eventpb.Event, encoded, with a payload DnsObserved or DnsCollected; the
	// rest is the agent's to fill.
	Data []byte
}

// Event decodes the fact.
func (f *Fact) Event() (*eventpb.Event, error) {
	e := new(eventpb.Event)
	if err := e.UnmarshalVT(f.Data); err != nil {
		return nil, fmt.Errorf("fact %d of the DNS proxy: %w", f.Seq, err)
	}
	return e, nil
}

// Seed is what the log knows of a node's names.
type Seed struct {
	Last  uint64 // the highest number applied: fsm.Node.DNSSeq
	Facts []*eventpb.DnsObserved
}
