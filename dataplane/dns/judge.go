package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane/dns/relay"
)

// judge says who may ask which server for which names. It reads the maps as the
// programs do, and remembers what it found for as long as they would: until a
// generation changes.
type judge struct {
	maps  *bpf.Objects
	rules *atomic.Pointer[rules]
	// opened grows after the keeper has put a new row into the map `fqdn`.
	opened *atomic.Uint64

	mu   sync.RWMutex
	seen map[asked]*found
}

var _ relay.Policy = (*judge)(nil)

// asked is what a ruling depends on, besides policy.
type asked struct {
	client   netip.Addr
	server   netip.AddrPort
	protocol uint8
}

// found is a ruling, and of when it is.
type found struct {
	generation uint32
	rules      *rules
	ruling     *relay.Ruling
	// learns says that rows of what this endpoint learns of the server would count
	// too: the ruling holds while the map has nothing under that key, as it had not
	// when the keeper had opened so many.
	learns bool
	key    abi.FQDNKey
	opened atomic.Uint64
}

// maxSeen bounds the rulings that are remembered.
const maxSeen = 1 << 16

func newJudge(maps *bpf.Objects, r *atomic.Pointer[rules], opened *atomic.Uint64) *judge {
	return &judge{maps: maps, rules: r, opened: opened, seen: map[asked]*found{}}
}

// Rule implements relay.Policy.
func (j *judge) Rule(client netip.Addr, server netip.AddrPort, protocol uint8) *relay.Ruling {
	key := asked{client, server, protocol}
	src, dst := abi.AddrFrom(client), abi.AddrFrom(server.Addr())
	// Both before the rows, so that what is remembered is never older than it says.
	generation, r := j.maps.GenerationSum(src, dst), j.rules.Load()
	j.mu.RLock()
	f := j.seen[key]
	j.mu.RUnlock()
	if f != nil && f.generation == generation && f.rules == r && (!f.learns || j.unlearned(f)) {
		return f.ruling
	}
	f = &found{generation: generation, rules: r}
	f.opened.Store(j.opened.Load())
	if lasts := j.look(f, src, dst, server.Port(), protocol); lasts {
		j.mu.Lock()
		defer j.mu.Unlock()
		if len(j.seen) >= maxSeen {
			clear(j.seen)
		}
		j.seen[key] = f
	}
	return f.ruling
}

// unlearned tells whether the map `fqdn` has no row under f's key, for sure.
func (j *judge) unlearned(f *found) bool {
	opened := j.opened.Load()
	if f.opened.Load() == opened {
		return true
	}
	var v abi.FQDNValue
	if !errors.Is(j.maps.FQDN.Lookup(&f.key, &v), ebpf.ErrKeyNotExist) {
		return false
	}
	f.opened.Store(opened)
	return true
}

// look asks the maps for f's ruling under its rules. The answer lasts unless it hangs on
// the time or on what could not be read.
func (j *judge) look(f *found, client, server abi.Addr, port uint16, protocol uint8) (lasts bool) {
	r := f.rules
	var at abi.IPCacheValue
	if err := j.maps.IPCache.Lookup(&abi.IPCacheKey{Addr: client}, &at); err != nil || at.Ifindex == 0 {
		return false
	}
	var ep abi.EndpointValue
	if err := j.maps.Endpoints.Lookup(&abi.EndpointKey{Ifindex: at.Ifindex}, &ep); err != nil {
		return false
	}
	out := &relay.Ruling{}
	f.ruling = out
	if e := r.endpoints[ep.ID]; e != nil {
		out.Endpoint, out.Namespace, out.Name = e.ID, e.Namespace, e.Name
	}
	q := lookup{maps: j.maps, ref: &ep.Egress, port: port, protocol: protocol}
	f.key = abi.FQDNKey{Endpoint: ep.ID, Addr: server}
	row, verdict, lasts := q.decide(&f.key)
	if q.err != nil {
		return false
	}
	f.learns = q.learns
	switch {
	case verdict == abi.VerdictDeny:
	case verdict == abi.VerdictNone:
		out.Every = ep.Egress.Flags&abi.PolicyEnforced == 0
	case row.Flags&abi.PolicyDNS == 0:
		out.Every, out.Row = true, row.Row
	default:
		// A row that the rules do not know admits nothing.
		if s := r.rows[row.Row]; s != nil && s.Set == nil {
			out.Every, out.Row = true, row.Row
		} else if s != nil {
			out.Sets = []relay.NameSet{*s}
		}
	}
	return lasts
}

// lookup is the walk over the maps for one packet.
type lookup struct {
	maps     *bpf.Objects
	ref      *abi.PolicyRef
	port     uint16
	protocol uint8
	learns   bool  // what the endpoint has learned of the server counts
	err      error // what could not be read, so that nothing is allowed
}

// decide finds the row that decides. A deny wins, else an allow that admits questions
// and not packets, else any other: one rule that looks at names is enough for them to
// be looked at. Of several the first has the whole answer: of the server's own
// class, of its base class, of every peer, and then of what the endpoint itself has
// learned of the server's address.
func (l *lookup) decide(key *abi.FQDNKey) (row abi.PolicyValue, verdict abi.Verdict, lasts bool) {
	class := l.classOf(l.peerOf(key.Addr), key.Addr)
	var rows []abi.PolicyValue
	if abi.IsOwnClass(class) {
		rows = append(rows, l.longest(class, l.ref.ClassLens))
	}
	if base := abi.BaseOf(class); base != abi.ClassAny {
		rows = append(rows, l.longest(base, l.ref.BaseLens))
	}
	rows = append(rows, l.longest(abi.ClassAny, l.ref.AnyLens))
	lasts = true
	if l.ref.Flags&abi.PolicyFQDN != 0 && isWorld(abi.BaseOf(class)) {
		l.learns = true
		var learned []abi.PolicyValue
		learned, lasts = l.learned(key)
		rows = append(rows, learned...)
	}
	for _, wins := range []func(r abi.PolicyValue) bool{
		func(r abi.PolicyValue) bool { return r.Verdict == abi.VerdictDeny },
		func(r abi.PolicyValue) bool { return r.Verdict == abi.VerdictAllow && r.Flags&abi.PolicyDNS != 0 },
		func(r abi.PolicyValue) bool { return r.Verdict == abi.VerdictAllow },
	} {
		if i := slices.IndexFunc(rows, wins); i >= 0 {
			return rows[i], rows[i].Verdict, lasts
		}
	}
	return abi.PolicyValue{}, abi.VerdictNone, lasts
}

// learned is the rows of the classes under which the endpoint knows the address, and
// whether it knows nothing of it.
func (l *lookup) learned(key *abi.FQDNKey) (rows []abi.PolicyValue, nothing bool) {
	var v abi.FQDNValue
	if !l.find(l.maps.FQDN, key, &v) {
		return nil, true
	}
	now := monotonicSeconds()
	for i, class := range v.Class {
		if class != 0 && int32(v.ExpiresSeconds[i]-now) > 0 {
			rows = append(rows, l.longest(class, l.ref.ClassLens))
		}
	}
	return rows, false
}

func isWorld(base uint64) bool {
	return base == uint64(abi.IdentityWorld) || base == uint64(abi.IdentityWorldIPv4) || base == uint64(abi.IdentityWorldIPv6)
}

// find looks a key up; what is wrong but absence is kept.
func (l *lookup) find(m *ebpf.Map, key, value any) bool {
	err := m.Lookup(key, value)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		l.err = errors.Join(l.err, err)
	}
	return err == nil
}

// peerOf is who owns an address.
func (l *lookup) peerOf(a abi.Addr) uint64 {
	var v abi.IPCacheValue
	if l.find(l.maps.IPCache, &abi.IPCacheKey{Addr: a}, &v) || l.find(l.maps.IPCacheLPM, &abi.IPCacheLPMKey{PrefixLen: 128, Addr: a}, &v) {
		return v.Peer
	}
	return worldOf(a)
}

func worldOf(a abi.Addr) uint64 {
	if a.Addr().Is4() {
		return uint64(abi.IdentityWorldIPv4)
	}
	return uint64(abi.IdentityWorldIPv6)
}

// classOf is a peer's class: its row, or what its number says.
func (l *lookup) classOf(peer uint64, a abi.Addr) uint64 {
	var v abi.ClassValue
	if l.ref.ClassLens|l.ref.BaseLens != 0 && l.find(l.maps.Classes, &abi.ClassKey{Scope: l.ref.Scope, Peer: peer}, &v) {
		return v.Class
	}
	identity := uint32(peer)
	switch {
	case peer&abi.PeerCIDR != 0, identity == abi.IdentityWorld, identity == abi.IdentityWorldIPv4, identity == abi.IdentityWorldIPv6:
		return worldOf(a)
	case identity >= abi.IdentityFirstDynamic:
		return abi.ClassPod
	case uint64(identity) < abi.ClassPod:
		return uint64(identity)
	}
	return abi.ClassAny
}

// longest is the row with the most port bits, else that of every protocol.
func (l *lookup) longest(class uint64, lens uint32) (v abi.PolicyValue) {
	key := abi.PolicyKey{Table: l.ref.Table, Class: class, Protocol: l.protocol}
	for bits := 16; bits >= 0; bits-- {
		if lens&(1<<bits) == 0 {
			continue
		}
		binary.BigEndian.PutUint16(key.PortBE[:], l.port&uint16(uint32(0xffff0000)>>bits))
		key.PortBits = uint8(bits)
		if l.find(l.maps.Policy, &key, &v) {
			return v
		}
	}
	if lens&abi.LensAllProtocols != 0 {
		l.find(l.maps.Policy, &abi.PolicyKey{Table: l.ref.Table, Class: class}, &v)
	}
	return v
}
