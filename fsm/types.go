// Package fsm folds the log into state. State.Apply is a pure function of the
// state and the event: the same events give the same state, identities and
// digests on every replica, in every batching, after every restart.
package fsm

import (
	"net/netip"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// EndpointRef names an endpoint.
type EndpointRef struct {
	Namespace string
	Name      string
}

// Endpoint is a workload's interface. Rows in a View are immutable.
type Endpoint struct {
	Ref         EndpointRef
	Incarnation uint64
	Node        string
	// ID is unique on its node and not used again.
	ID       uint32
	Identity uint32
	// Labels are the workload's own; the identity's labels add its namespace's.
	Labels         map[string]string
	ServiceAccount string
	IPv4, IPv6     netip.Addr // the zero Addr: none
	MAC            [6]byte
	NamedPorts     []NamedPort // sorted by name, protocol
	// AuditMode lets pass what policy would drop of its traffic, and reports it.
	AuditMode bool
	// Facts for the node itself, in no table.
	HostInterface, ContainerInterface, Netns, NetnsID string
	MTU                                               uint16 // 0: the agent's
	BigTCP                                            bool   // false: as the agent has it

	Created          log.Revision // of this incarnation
	Revision         log.Revision // last change of any kind, a new identity included
	IdentityRevision log.Revision // the event that gave it its identity
}

// NamedPort is a name for a port of one protocol.
type NamedPort struct {
	Name     string // lower case
	Protocol uint8  // IP protocol number
	Port     uint16
}

// Identity is a set of security labels that some endpoint has, or has had lately.
type Identity struct {
	ID       uint32
	Labels   policy.Labels
	Refs     int          // endpoints that have it
	Revision log.Revision // that allocated it
	// ReleasedRevision and ReleasedTimeNS say when Refs became 0; 0 while in use.
	ReleasedRevision log.Revision
	ReleasedTimeNS   int64
}

// Namespace is a set of labels that its endpoints inherit.
type Namespace struct {
	Name     string
	Labels   map[string]string
	Revision log.Revision
}

// Node is a member of the cluster.
type Node struct {
	Name          string
	Addresses     []netip.Addr
	EndpointCIDRs []netip.Prefix
	KubeAPIServer bool
	AuditMode     bool // the same for every endpoint of the node
	Left          bool
	// JournalSeq is the highest sequence number applied of the node's own facts.
	JournalSeq uint64
	// DNSSeq is the same of the facts of its DNS proxy, which numbers them itself.
	DNSSeq uint64
	// NextEndpointID is the id its next endpoint gets.
	NextEndpointID uint32
	Revision       log.Revision
}

// Name is a name that an endpoint asked for, with what it was told. It goes with
// its endpoint.
type Name struct {
	Endpoint  EndpointRef
	Name      string        // lower case, with a dot at its end
	Addresses []NameAddress // ascending, not empty
	Chain     []string      // the names that led to them, as told last
	Revision  log.Revision
}

// NameAddress is an address of a name.
type NameAddress struct {
	Addr netip.Addr
	// ExpiresNS is when a new connection may no longer be made to it on the ground
	// of the name, in nanoseconds since the Unix epoch. It is still there then, until
	// an event takes it away.
	ExpiresNS int64
	Revision  log.Revision // of the event that gave it its expiry
}

// Policy is a policy in force.
type Policy struct {
	Policy   *policy.Policy
	Set      *eventpb.PolicySet // as in the log; read only
	Created  log.Revision
	Revision log.Revision
}

// The methods of View that readers rely on. View is an immutable snapshot taken
// in O(1); all iteration is in key order.
//
//	func (v View) Revision() log.Revision
//	func (v View) Chain() log.Hash
//	func (v View) TimeNS() int64
//	func (v View) Cluster() string
//	func (v View) Digest() log.Hash
//	func (v View) Endpoint(EndpointRef) (*Endpoint, bool)
//	func (v View) Endpoints() iter.Seq[*Endpoint]              // by namespace, name
//	func (v View) Identity(id uint32) (*Identity, bool)
//	func (v View) Identities() iter.Seq[*Identity]             // by id; reserved ones not included
//	func (v View) Namespace(name string) (*Namespace, bool)
//	func (v View) Namespaces() iter.Seq[*Namespace]
//	func (v View) Node(name string) (*Node, bool)
//	func (v View) Nodes() iter.Seq[*Node]
//	func (v View) Policy(policy.Ref) (*Policy, bool)
//	func (v View) Policies() iter.Seq[*Policy]                 // by kind, namespace, name
//	func (v View) Names() iter.Seq[*Name]                      // by endpoint, name
//	func (v View) NamesOf(EndpointRef) iter.Seq[*Name]         // by name
//	func (v View) StreamRevision(stream string) log.Revision   // 0: does not exist
