package relay

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/varve-net/varve/dataplane/dns/match"
	"github.com/varve-net/varve/dataplane/dns/wire"
)

// Protocols that questions come by: IP's numbers.
const (
	TCP uint8 = 6
	UDP uint8 = 17
)

// Config is what a Relay works with.
type Config struct {
	// Port is where it listens, UDP and TCP, both families; 0: a free one.
	Port uint16
	// Mark is on all sockets and packets.
	Mark uint32
	// Workers is the number of threads for UDP; 0: one a CPU, at most 4.
	Workers int
	// RejectCode answers what no rule allows: wire.Refused or wire.NXDomain.
	RejectCode int
	// Compress says that an answer too long for the client may be compressed, before it
	// is cut.
	Compress bool
	// MaxDelay is how long an answer may wait for what it opens; after that the
	// client is told SERVFAIL.
	MaxDelay time.Duration
	// Timeout is how long a server may take.
	Timeout time.Duration

	Policy  Policy
	Learner Learner
	// Observe, if set, is told of every question once it is done with, by several
	// goroutines at once. The Exchange is valid until it returns.
	Observe func(*Exchange)
	Logger  *slog.Logger
}

// Policy says what may be asked.
type Policy interface {
	// Rule says what client may ask a server, at this moment. nil: client is no
	// endpoint of this node. It is called for every question and by several
	// goroutines at once.
	Rule(client netip.Addr, server netip.AddrPort, protocol uint8) *Ruling
}

// Ruling is what an endpoint may ask a server. It is immutable.
type Ruling struct {
	Endpoint  uint32 // id
	Namespace string
	Name      string
	// Every says that every name may be asked for; Row is the policy row that
	// says so, 0 if no policy is enforced.
	Every bool
	Row   uint64
	// Sets are those of the rows that admit some names.
	Sets []NameSet
}

// NameSet is the names that one policy row admits.
type NameSet struct {
	Row       uint64
	Set       *match.Set
	Selectors []string // by the ids of Set
}

// Admits tells whether a name may be asked for, and by which row and selector.
func (r *Ruling) Admits(name []byte) (row uint64, selector string, ok bool) {
	if r.Every {
		return r.Row, "*", true
	}
	for i := range r.Sets {
		s := &r.Sets[i]
		if id, ok := s.Set.Match(name); ok {
			return s.Row, s.Selectors[id], true
		}
	}
	return 0, "", false
}

// Observation is an answer that gave addresses to an endpoint. It is valid until
// the method that it is given to returns.
type Observation struct {
	Endpoint  uint32
	Name      []byte // as asked
	Chain     [][]byte
	Addresses []wire.Address
}

// observe sets o to what an answer teaches, and tells whether that is anything.
func (e *Exchange) observe(o *Observation) bool {
	if len(e.Addresses) == 0 || e.Ruling.Endpoint == 0 {
		return false
	}
	*o = Observation{Endpoint: e.Ruling.Endpoint, Name: e.Name, Chain: e.Chain, Addresses: e.Addresses}
	return true
}

// Learner keeps what answers said, and opens the way to their addresses.
type Learner interface {
	// Known tells whether all that o opens is open and durable, or is so by now. It is quick.
	Known(o *Observation) bool
	// Learn calls w.Learned once that is so.
	Learn(o *Observation, w Waiter)
}

// Waiter waits for an Observation.
type Waiter interface {
	// Learned is called once, from any goroutine; with an error if the answer must not be given.
	// Relay.Flush, after some of these calls, sends what they released.
	Learned(err error)
}

// Verdict is what policy said of a question.
type Verdict uint8

// Verdicts.
const (
	Allowed Verdict = iota
	Rejected
	// Malformed questions are none that policy could be asked about.
	Malformed
)

// Problem is why a question has no answer of a server's.
type Problem string

// Problems.
const (
	NoProblem      Problem = ""
	ServerSilent   Problem = "the server did not answer in time"
	ServerGone     Problem = "nobody listens at the server"
	ServerAbsent   Problem = "the server cannot be reached"
	BadReply       Problem = "the server's answer is malformed"
	NotApplied     Problem = "the answer's addresses could not be opened in time"
	NotKept        Problem = "the answer could not be made durable"
	TooMany        Problem = "too many questions wait for this server"
	NotForwarded   Problem = "neither question nor answer: this operation is not forwarded"
	MalformedQuery Problem = "the question is malformed"
)

// Exchange is a question and what became of it.
type Exchange struct {
	Time     time.Time // when the question came
	Client   netip.AddrPort
	Server   netip.AddrPort
	Protocol uint8
	Ruling   *Ruling

	Name     []byte // empty if the question could not be read
	Type     uint16
	Verdict  Verdict
	Row      uint64 // that admitted it
	Selector string

	RCode     int
	Problem   Problem
	Chain     [][]byte
	Addresses []wire.Address
	Upstream  time.Duration // until the server's answer; 0: there was none
	Total     time.Duration // until ours
}
