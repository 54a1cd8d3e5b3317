package fsm

import (
	"slices"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// What is declared is what users have said: policies and namespaces. All the rest
// are facts, which nodes found, or follows from both.

// DeclaredDigest is the digest of policies and namespaces as they were said: it
// covers no revision, so it is the same whenever and in whatever order they were set.
// It costs time with their number.
func (v View) DeclaredDigest() log.Hash {
	var d log.Digest
	var scratch []byte
	for n := range v.Namespaces() {
		scratch = appendMap(scratch[:0], n.Labels)
		d.Add(declaredNamespace(n.Name, scratch))
	}
	for p := range v.Policies() {
		scratch = appendPolicySet(scratch[:0], p.Set)
		d.Add(declaredPolicy(policyKey(p.Policy.Ref), scratch))
	}
	return d.Sum()
}

func declaredNamespace(name string, labels []byte) log.Hash {
	return log.RowHash("namespace", []byte(name), labels)
}

func declaredPolicy(key string, set []byte) log.Hash {
	return log.RowHash("policy", []byte(key), set)
}

// appendPolicySet writes a policy's encoding. It holds no map, so that is canonical.
// Encoding fails for no message that was decoded.
func appendPolicySet(b []byte, set *eventpb.PolicySet) []byte {
	size := set.SizeVT()
	b = slices.Grow(b, size)
	n, err := set.MarshalToSizedBufferVT(b[len(b) : len(b)+size])
	if err != nil {
		return b
	}
	return b[:len(b)+n]
}
