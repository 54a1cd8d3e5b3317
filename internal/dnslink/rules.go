package dnslink

import "net/netip"

// Rules is all that the proxy needs to know of policy and cannot read from the
// maps. While policy changes, the agent has the rules of before and after in one
// file, so that they cover whatever the kernel has at any moment. Rows and classes
// are named by hashes of their content: one id never means two things.
type Rules struct {
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	// Revision of the log that the rules come from.
	Revision uint64 `json:"revision"`
	// Sets are the sets of selectors that Rows and Classes point into, each sorted.
	Sets [][]string `json:"sets"`
	// Endpoints are those of this node with a table that has rows or classes below.
	Endpoints []Endpoint `json:"endpoints"`
	Rows      []Row      `json:"rows"`
	Classes   []Class    `json:"classes"`
}

// Endpoint is an endpoint as facts name it. An incarnation that was replaced may
// stand beside its successor for a moment; ids are never used again.
type Endpoint struct {
	ID          uint32     `json:"id"`
	Namespace   string     `json:"namespace"`
	Name        string     `json:"name"`
	Incarnation uint64     `json:"incarnation"`
	IPv4        netip.Addr `json:"ipv4"` // the zero Addr: none
	IPv6        netip.Addr `json:"ipv6"`
	// Tables are its egress tables, of before and after a change.
	Tables []uint64 `json:"tables"`
}

// Row is a policy row with abi.PolicyDNS. Set is the index in Sets of the names
// that may be asked for; -1: every name.
type Row struct {
	ID  uint64 `json:"id"`
	Set int    `json:"set"`
}

// EveryName is the set of a Row that admits every name.
const EveryName = -1

// Class is a class of the names that some rule of a table admits (toFQDNs).
type Class struct {
	Table uint64 `json:"table"`
	ID    uint64 `json:"id"`
	Set   int    `json:"set"`
}

// A selector in a set is the canonical text of a policy.FQDNSelector: lower case,
// with a dot at its end, a pattern if it holds a '*', and "*" for every name.
