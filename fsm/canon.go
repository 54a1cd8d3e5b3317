package fsm

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// The canonical bytes of a row: every field in a fixed order, numbers as uvarint,
// strings and lists with their length before them, maps by key. They are what
// the state digest covers, so a change here is a change of every digest: the
// format version of the log must rise with it.

func appendUint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendMap(b []byte, m map[string]string) []byte {
	var stack [16]string
	keys := stack[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b = appendUint(b, uint64(len(keys)))
	for _, k := range keys {
		b = appendString(b, k)
		b = appendString(b, m[k])
	}
	return b
}

// appendAddr writes the length, 0, 4 or 16, and the address in network order.
func appendAddr(b []byte, a netip.Addr) []byte {
	switch {
	case a.Is4():
		v := a.As4()
		return append(append(b, 4), v[:]...)
	case a.Is6():
		v := a.As16()
		return append(append(b, 16), v[:]...)
	default:
		return append(b, 0)
	}
}

func canonNamespace(b []byte, n *Namespace) []byte {
	b = appendString(b, n.Name)
	b = appendMap(b, n.Labels)
	return appendUint(b, uint64(n.Revision))
}

func canonNode(b []byte, n *Node) []byte {
	b = appendString(b, n.Name)
	b = appendUint(b, uint64(len(n.Addresses)))
	for _, a := range n.Addresses {
		b = appendAddr(b, a)
	}
	b = appendUint(b, uint64(len(n.EndpointCIDRs)))
	for _, p := range n.EndpointCIDRs {
		b = appendAddr(b, p.Addr())
		b = append(b, byte(p.Bits()))
	}
	b = appendBool(b, n.KubeAPIServer)
	b = appendBool(b, n.Left)
	b = appendUint(b, n.JournalSeq)
	b = appendUint(b, uint64(n.NextEndpointID))
	b = appendUint(b, uint64(n.Revision))
	// As of endpoints: what is new is there only if it is set.
	if n.AuditMode {
		b = append(b, 5)
	}
	if n.DNSSeq > 0 {
		b = appendUint(append(b, 6), n.DNSSeq)
	}
	return b
}

func canonName(b []byte, n *Name) []byte {
	b = appendString(b, n.Endpoint.Namespace)
	b = appendString(b, n.Endpoint.Name)
	b = appendString(b, n.Name)
	b = appendUint(b, uint64(len(n.Addresses)))
	for _, a := range n.Addresses {
		b = appendAddr(b, a.Addr)
		b = appendUint(b, uint64(a.ExpiresNS))
		b = appendUint(b, uint64(a.Revision))
	}
	b = appendUint(b, uint64(len(n.Chain)))
	for _, c := range n.Chain {
		b = appendString(b, c)
	}
	return appendUint(b, uint64(n.Revision))
}

// canonIdentity leaves Refs out: the endpoints say it.
func canonIdentity(b []byte, i *Identity) []byte {
	b = appendUint(b, uint64(i.ID))
	b = appendUint(b, uint64(len(i.Labels)))
	for j := range i.Labels {
		b = appendString(b, i.Labels[j].Source)
		b = appendString(b, i.Labels[j].Key)
		b = appendString(b, i.Labels[j].Value)
	}
	b = appendUint(b, uint64(i.Revision))
	b = appendUint(b, uint64(i.ReleasedRevision))
	return appendUint(b, uint64(i.ReleasedTimeNS))
}

func canonEndpoint(b []byte, e *Endpoint) []byte {
	b = appendString(b, e.Ref.Namespace)
	b = appendString(b, e.Ref.Name)
	b = appendUint(b, e.Incarnation)
	b = appendString(b, e.Node)
	b = appendUint(b, uint64(e.ID))
	b = appendUint(b, uint64(e.Identity))
	b = appendMap(b, e.Labels)
	b = appendString(b, e.ServiceAccount)
	b = appendAddr(b, e.IPv4)
	b = appendAddr(b, e.IPv6)
	b = append(b, e.MAC[:]...)
	b = appendUint(b, uint64(len(e.NamedPorts)))
	for _, p := range e.NamedPorts {
		b = appendString(b, p.Name)
		b = append(b, p.Protocol)
		b = appendUint(b, uint64(p.Port))
	}
	b = appendString(b, e.HostInterface)
	b = appendString(b, e.ContainerInterface)
	b = appendString(b, e.Netns)
	b = appendString(b, e.NetnsID)
	b = appendUint(b, uint64(e.Created))
	b = appendUint(b, uint64(e.Revision))
	b = appendUint(b, uint64(e.IdentityRevision))
	// What rows had not from the start is there only if it is set, behind its field's
	// number in EndpointCreated: rows of older logs keep their digest.
	if e.AuditMode {
		b = append(b, 13)
	}
	if e.MTU != 0 {
		b = appendUint(append(b, 14), uint64(e.MTU))
	}
	if e.BigTCP {
		b = append(b, 15)
	}
	return b
}

func canonPolicy(b []byte, p *Policy) []byte {
	b = appendUint(b, uint64(p.Created))
	b = appendUint(b, uint64(p.Revision))
	return appendPolicySet(b, p.Set)
}

func canonPart(b []byte, p *part) []byte {
	b = appendString(b, p.restore)
	b = appendUint(b, uint64(p.set.Part))
	b = appendString(b, p.node)
	b = appendUint(b, uint64(p.revision))
	b = appendUint(b, uint64(p.timeNS))
	b = appendUint(b, uint64(len(p.set.Namespaces)))
	for _, n := range p.set.Namespaces {
		b = appendString(b, n.Name)
		b = appendMap(b, n.Labels)
	}
	for _, set := range p.set.Policies {
		b = appendUint(b, uint64(set.SizeVT()))
		b = appendPolicySet(b, set)
	}
	return b
}

// canonRequest leaves the reason out: it is for people.
func canonRequest(b []byte, r *request) []byte {
	b = appendUint(b, uint64(r.id.size))
	b = append(b, r.id.bytes[:r.id.size]...)
	b = appendUint(b, uint64(r.revision))
	b = append(b, byte(r.outcome))
	return append(b, r.fingerprint[:]...)
}
