// Package dns is the DNS proxy of a node: it says which names a container may ask
// which servers for (judge), passes those questions on (package relay), and keeps
// what the answers said (keeper): in its journal, and in the kernel's map `fqdn`,
// before an answer leaves. It is a process of its own and needs no agent to go on.
// Package internal/dnslink has what the two tell each other.
//
//	            question                              answer
//	container ----------> relay ----------> server ----------> relay ----------> container
//	                        | judge                              | keeper
//	                        v                                    v
//	              maps of policy, rules file              journal, then map `fqdn`
package dns
