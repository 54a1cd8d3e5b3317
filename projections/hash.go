package projections

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log"
)

// The bytes below are the ABI's on a little-endian machine, on every machine, so
// that digests of different architectures agree.

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

var (
	endpointCodec = codec[EndpointKey, abi.EndpointValue]{"endpoints", appendEndpointKey, appendEndpointValue, lessEndpointKey}
	ipcacheCodec  = codec[Prefix, abi.IPCacheValue]{"ipcache", appendPrefix, appendIPCacheValue, lessPrefix}
	classCodec    = codec[abi.ClassKey, abi.ClassValue]{"classes", appendClassKey, appendClassValue, lessClassKey}
	policyCodec   = codec[abi.PolicyKey, abi.PolicyValue]{"policy", appendPolicyKey, appendPolicyValue, lessPolicyKey}
)

// reasonCodec is of no map: nobody asks for its hashes.
var reasonCodec = codec[ClassIn, struct{}]{
	"reasons",
	func(b []byte, k ClassIn) []byte { return le.AppendUint64(le.AppendUint64(b, k.Scope), k.Class) },
	func(b []byte, _ struct{}) []byte { return b },
	func(a, b ClassIn) bool {
		if a.Scope != b.Scope {
			return before64(a.Scope, b.Scope)
		}
		return before64(a.Class, b.Class)
	},
}

type (
	classRow  = Row[abi.ClassKey, abi.ClassValue]
	reasonRow = Row[ClassIn, struct{}]
)

// HashEndpoint is the hash of an endpoint row, log.RowHash over the table's name
// and the ABI's bytes of key and value. Whoever reads a row back from the kernel puts EndpointKey{value.ID}
// in the place of the interface index.
func HashEndpoint(k EndpointKey, v abi.EndpointValue) log.Hash { return endpointCodec.hashOf(k, v) }

// HashIPCache is the hash of an ipcache row; a row of the exact map is a prefix
// of length 128. Value.Ifindex is local to the boot and left out.
func HashIPCache(k Prefix, v abi.IPCacheValue) log.Hash { return ipcacheCodec.hashOf(k, v) }

// HashClass is the hash of a class row.
func HashClass(k abi.ClassKey, v abi.ClassValue) log.Hash { return classCodec.hashOf(k, v) }

// HashPolicy is the hash of a policy row.
func HashPolicy(k abi.PolicyKey, v abi.PolicyValue) log.Hash { return policyCodec.hashOf(k, v) }

func appendEndpointKey(b []byte, k EndpointKey) []byte { return le.AppendUint32(b, k.ID) }

func appendEndpointValue(b []byte, v abi.EndpointValue) []byte {
	b = le.AppendUint32(b, v.ID)
	b = le.AppendUint32(b, v.Identity)
	b = appendPolicyRef(b, v.Egress)
	b = appendPolicyRef(b, v.Ingress)
	b = append(b, v.IPv4[:]...)
	b = append(b, v.MAC[:]...)
	b = le.AppendUint16(b, v.Flags)
	b = append(b, v.IPv6[:]...)
	return append(b, 0, 0, 0, 0)
}

func appendPolicyRef(b []byte, r abi.PolicyRef) []byte {
	b = le.AppendUint64(b, r.Table)
	b = le.AppendUint64(b, r.Scope)
	b = le.AppendUint32(b, r.ClassLens)
	b = le.AppendUint32(b, r.AnyLens)
	b = le.AppendUint32(b, r.Flags)
	return le.AppendUint32(b, r.BaseLens)
}

func appendPrefix(b []byte, k Prefix) []byte {
	b = le.AppendUint32(b, k.PrefixLen)
	return append(b, k.Addr[:]...)
}

func appendIPCacheValue(b []byte, v abi.IPCacheValue) []byte {
	b = le.AppendUint64(b, v.Peer)
	b = append(b, 0, 0, 0, 0)
	return le.AppendUint32(b, v.Flags)
}

func appendClassKey(b []byte, k abi.ClassKey) []byte {
	return le.AppendUint64(le.AppendUint64(b, k.Scope), k.Peer)
}

func appendClassValue(b []byte, v abi.ClassValue) []byte { return le.AppendUint64(b, v.Class) }

func appendPolicyKey(b []byte, k abi.PolicyKey) []byte {
	b = le.AppendUint64(b, k.Table)
	b = le.AppendUint64(b, k.Class)
	b = append(b, k.PortBE[0], k.PortBE[1], k.Protocol, k.PortBits)
	return append(b, 0, 0, 0, 0)
}

func appendPolicyValue(b []byte, v abi.PolicyValue) []byte {
	b = le.AppendUint64(b, v.Row)
	return append(b, byte(v.Verdict), v.Flags, 0, 0, 0, 0, 0, 0)
}

// Numbers are little-endian in the bytes, so their first byte is the least.

func lessEndpointKey(a, b EndpointKey) bool { return before32(a.ID, b.ID) }

func lessPrefix(a, b Prefix) bool {
	if a.PrefixLen != b.PrefixLen {
		return before32(a.PrefixLen, b.PrefixLen)
	}
	return bytes.Compare(a.Addr[:], b.Addr[:]) < 0
}

func lessClassKey(a, b abi.ClassKey) bool {
	if a.Scope != b.Scope {
		return before64(a.Scope, b.Scope)
	}
	return before64(a.Peer, b.Peer)
}

func lessPolicyKey(a, b abi.PolicyKey) bool {
	switch {
	case a.Table != b.Table:
		return before64(a.Table, b.Table)
	case a.Class != b.Class:
		return before64(a.Class, b.Class)
	case a.PortBE != b.PortBE:
		return be.Uint16(a.PortBE[:]) < be.Uint16(b.PortBE[:])
	case a.Protocol != b.Protocol:
		return a.Protocol < b.Protocol
	}
	return a.PortBits < b.PortBits
}

func before32(a, b uint32) bool { return bits.ReverseBytes32(a) < bits.ReverseBytes32(b) }

func before64(a, b uint64) bool { return bits.ReverseBytes64(a) < bits.ReverseBytes64(b) }
