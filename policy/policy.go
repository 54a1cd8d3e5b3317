// Package policy is the model of network policy: what a user may write, what it
// means, and which labels a selector selects.
//
// A policy passes two gates. Parse turns a user's YAML or JSON into the explicit
// form that the log stores (eventpb.PolicySet), refusing with file, line, field
// path and remedy whatever it does not fully understand. Compile turns that form
// into the immutable types below, and repeats every check, since Apply trusts no
// one. Nothing here reads a clock, a file or a socket.
package policy

import (
	"net/netip"

	"github.com/varve-net/varve/log/eventpb"
)

// Kind is the sort of object a policy came from.
type Kind = eventpb.PolicyKind

// Ref names a policy. Cluster-wide kinds have no namespace.
type Ref struct {
	Kind      Kind
	Namespace string
	Name      string
}

// Policy is one compiled, immutable policy.
type Policy struct {
	Ref   Ref
	Specs []Spec
}

// Spec is one subject selector and its rules.
type Spec struct {
	Subject     Selector
	DefaultDeny [2]bool // indexed by Direction
	Audit       bool    // what this spec alone would drop passes, and is reported
	Log         string  // what its verdicts are tagged with; empty: nothing
	Rules       []Rule  // in the order ingress, egress, ingressDeny, egressDeny
}

// Direction is the side of the subject a rule guards; numbered as abi.Direction.
type Direction uint8

// Directions.
const (
	Egress  Direction = 0
	Ingress Direction = 1
)

// Section is the list of a spec that a rule stands in.
type Section uint8

// Sections, named as users write them.
const (
	SectionIngress Section = iota + 1
	SectionEgress
	SectionIngressDeny
	SectionEgressDeny
)

// Rule admits or denies peers AND ports.
type Rule struct {
	Section Section
	Index   int // position in its section as the user wrote it
	// AnyPeer is every peer, known or not. Otherwise the rule takes Peers, and
	// with none of them it selects no one.
	AnyPeer bool
	Peers   []Peer
	// AllPorts is every protocol and port. Otherwise the rule takes Ports, and
	// with none of them it matches nothing.
	AllPorts bool
	Ports    []Port
}

// Peer is one term of a rule's peers. Exactly one of Selector, CIDR, Entity, FQDN
// and Group is set. Two peers that select alike have the same Key.
type Peer struct {
	Selector *Selector
	CIDR     netip.Prefix
	Except   []netip.Prefix // inside CIDR, sorted
	Entity   Entity
	// FQDN selects the addresses that the subject itself learned by asking for a
	// name, and no others.
	FQDN FQDNSelector
	// Group is the addresses of a cloud provider's group: none until it is resolved.
	Group *Group
}

// Entity is a reserved group of peers, named as in Cilium.
type Entity string

// Port is a range of ports of one protocol, or a named port.
type Port struct {
	Protocol uint8  // IP protocol number; 1 and 58 have the ICMP type as port
	First    uint16 // 0 to 65535 is every port
	Last     uint16
	Name     string // if set, a lower-case named port of the destination
	// DNS, if set, says that what is sent here are DNS questions, and which of them
	// may be asked. Only a single port of an egress rule that allows has it.
	DNS *DNSRules
}

// DNSRules are the names that may be asked for. Without any, none may.
type DNSRules struct {
	Names []FQDNSelector // sorted by their text, without repeats
}

// Group is a group of machines of a cloud provider, which is AWS.
type Group struct {
	Labels             []GroupLabel // all of which a machine has; sorted by key
	SecurityGroupIDs   []string     // one of which it has; sorted
	SecurityGroupNames []string     // the same by name
	Region             string
}

// GroupLabel is a label of a machine.
type GroupLabel struct{ Key, Value string }

// Label is one security label, e.g. k8s:app=web.
type Label struct {
	Source string
	Key    string
	Value  string
}

// Labels is a set of labels, sorted by (source, key, value), without repeats.
// Treat it as immutable.
type Labels []Label
