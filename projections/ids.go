package projections

import (
	"crypto/sha256"
	"fmt"
	"net/netip"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

// content gathers the bytes that an id stands for. Every part is delimited, so
// that different parts never make the same bytes.
type content struct{ b []byte }

func (c *content) str(s string) *content {
	c.b = le.AppendUint32(c.b, uint32(len(s)))
	c.b = append(c.b, s...)
	return c
}

func (c *content) num(n uint64) *content {
	c.b = le.AppendUint64(c.b, n)
	return c
}

func (c *content) flag(f bool) *content {
	if f {
		return c.num(1)
	}
	return c.num(0)
}

// ids gives content its number and remembers what each number stands for. The
// first collision sticks in err; numbers given after it mean nothing.
type ids struct {
	seed  string
	seen  map[idKey]log.Hash
	ports map[string]log.Hash // of sets of named ports, which many endpoints share
	err   error
}

type idKey struct {
	kind string
	id   uint64
}

func newIDs(cluster string) *ids {
	return &ids{seed: cluster, seen: make(map[idKey]log.Hash), ports: make(map[string]log.Hash)}
}

func (x *ids) hash(kind string, c *content) log.Hash {
	var seeded content
	seeded.str(x.seed).str(kind)
	return sha256.Sum256(append(seeded.b, c.b...))
}

// claim notes that id stands for the content with hash h. Zero stands for
// nothing in every map, so nothing may have it.
func (x *ids) claim(kind string, id uint64, h log.Hash) uint64 {
	k := idKey{kind, id}
	if other, ok := x.seen[k]; (ok && other != h) || id == 0 {
		if x.err == nil {
			x.err = fmt.Errorf("%s %#x: %w; rename the cluster to seed the ids anew", kind, id, ErrCollision)
		}
		return id
	}
	x.seen[k] = h
	return id
}

// release forgets an id that stands for nothing any more.
func (x *ids) release(kind string, id uint64) { delete(x.seen, idKey{kind, id}) }

func (x *ids) id(kind string, c *content) uint64 {
	h := x.hash(kind, c)
	return x.claim(kind, le.Uint64(h[:]), h)
}

// class is the id of a class of the class map: never a base class, and known by
// itself as part of one.
func (x *ids) class(base uint64, c *content) uint64 {
	h := x.hash("class", c)
	return x.claim("class", abi.ClassOf(base, le.Uint64(h[:])), h)
}

// cidrPeer is the number of a prefix.
func (x *ids) cidrPeer(p netip.Prefix) uint64 {
	var c content
	c.str(p.String())
	h := x.hash("cidr", &c)
	id := le.Uint64(h[:])&^abi.PeerCIDRv6 | abi.PeerCIDR
	if p.Addr().Is6() {
		id |= abi.PeerCIDRv6
	}
	return x.claim("cidr", id, h)
}

// row is the id of a policy row.
func (x *ids) row(k abi.PolicyKey, d decision) uint64 {
	var c content
	c.b = appendPolicyKey(c.b, k)
	c.num(uint64(d.verdict)).num(uint64(d.flags()))
	if d.dns != nil {
		c.str(d.dns.String())
	}
	return x.id("row", &c)
}

// keptPorts is of how many sets of named ports the hashes are kept.
const keptPorts = 1024

// endpointPeer is the number of an identity with a set of named ports. Only sets
// of the same identity can collide.
func (x *ids) endpointPeer(identity uint32, ports []fsm.NamedPort) uint64 {
	if len(ports) == 0 {
		return uint64(identity)
	}
	var c content
	for _, p := range ports {
		c.str(p.Name).num(uint64(p.Protocol)).num(uint64(p.Port))
	}
	h, ok := x.ports[string(c.b)]
	if !ok {
		if len(x.ports) >= keptPorts {
			clear(x.ports)
		}
		h = x.hash("named-ports", &c)
		x.ports[string(c.b)] = h
	}
	const half = 1<<31 - 1
	upper := le.Uint64(h[:]) & half
	if upper == 0 {
		upper = half
	}
	return x.claim("peer", upper<<32|uint64(identity), h)
}
