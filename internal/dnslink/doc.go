// Package dnslink is what the agent and the DNS proxy of a node tell each other.
// They are two processes, and either goes on without the other.
//
//	agent                                              proxy
//	-----                                              -----
//	writes the rules file  ---- durable, atomic ---->  reads it at start and on Load
//	Load, Seed, Facts, Shipped  --- unix socket ---->  serves them (Proxy)
//	writes endpoints, ipcache, classes, policy ----->  reads these maps as the kernel does
//	reads the map `fqdn`  <--------------------------  writes it, and `proxy`; nobody else does
//	log: dns-observed, dns-collected  <--------------  its journal, numbered by it
//
// # What a packet meets
//
// A policy row with abi.PolicyDNS admits questions, not packets: the programs hand
// what is sent there to the proxy's sockets, under the mark abi.MarkToProxy, and
// drop it (abi.ProxyMissing) while there are none. The sockets of the proxy are
// told from all others by their own mark, abi.MarkFromProxy, which needs
// CAP_NET_ADMIN to set:
//
//   - listeners: one port, written to the map `proxy`, for UDP and TCP; the wildcard
//     address of each family (IPv6 with V6ONLY); IP_TRANSPARENT or IPV6_TRANSPARENT.
//   - answers to a container: from the address and port that it asked, to where it
//     asked from, with the mark on the packet.
//   - questions to a server: from the container's address and a port of the host's
//     choice, by a socket with the mark, IP_TRANSPARENT, and connected: the programs
//     find it by the answer's addresses and ports, and by nothing else. Nothing else
//     needs to be remembered of it, so its port may well be one that the container
//     uses itself.
//
// # Whom a question is from
//
// The proxy finds what a question may ask as the programs do (bpf/README.md): the
// endpoint by the source address (ipcache, its ifindex, endpoints), the class of the
// server, then the row of that class and the row of abi.ClassAny; if neither allows
// and the server is in the world, the rows of the live pairs in `fqdn`. Of the rows
// that allow, each is either in Rules.Rows, and admits the names of its set, or it
// is not, and admits every name. A denying row, or none in an enforcing direction,
// refuses all. A direction that enforces nothing admits every name.
//
// # What an answer opens
//
// The addresses of an answer for name N to endpoint E are put under (E, address) in
// `fqdn`, with every class of Rules.Classes that belongs to the egress table of E's
// row in `endpoints` and of which the set matches N. More than abi.FQDNPairs classes
// do not fit; the rest are left out and counted. The answer leaves once the rows are
// in the map and the fact is in the journal.
package dnslink
