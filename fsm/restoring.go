package fsm

import (
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// Restoring is the payloads of the events that put policies and namespaces back to
// what the View has, in the order in which they are to be appended: the parts, each
// of about partBytes at most but of one row at least, and then the one event that
// puts them in force. restore is a name that no other restore has.
func (v View) Restoring(restore string, partBytes int) []*eventpb.Event {
	chain, digest, declared := v.Chain(), v.Digest(), v.DeclaredDigest()
	b := partBuilder{restore: restore, most: partBytes}
	for n := range v.Namespaces() {
		set := &eventpb.NamespaceSet{Name: n.Name, Labels: n.Labels}
		b.scratch = appendMap(b.scratch[:0], n.Labels)
		p := b.room(set.SizeVT(), declaredNamespace(n.Name, b.scratch))
		p.Namespaces = append(p.Namespaces, set)
	}
	for row := range v.Policies() {
		b.scratch = appendPolicySet(b.scratch[:0], row.Set)
		p := b.room(len(b.scratch), declaredPolicy(policyKey(row.Policy.Ref), b.scratch))
		p.Policies = append(p.Policies, row.Set)
	}
	b.end()
	return append(b.events, &eventpb.Event{Payload: &eventpb.Event_SnapshotRestored{SnapshotRestored: &eventpb.SnapshotRestored{
		Restore: restore,
		Parts:   uint32(len(b.events)),
		Digest:  declared[:],
		Source:  &eventpb.SnapshotSource{Revision: uint64(v.Revision()), TimeUnixNs: v.TimeNS(), Chain: chain[:], Digest: digest[:]},
	}}})
}

// partBuilder divides rows into parts.
type partBuilder struct {
	restore string
	most    int
	events  []*eventpb.Event

	part    *eventpb.SnapshotStaged
	bytes   int
	digest  log.Digest
	scratch []byte
}

// room is the part that takes the next row.
func (b *partBuilder) room(size int, hash log.Hash) *eventpb.SnapshotStaged {
	if b.part != nil && b.bytes+size > b.most {
		b.end()
	}
	if b.part == nil {
		b.part = &eventpb.SnapshotStaged{Restore: b.restore, Part: uint32(len(b.events))}
	}
	b.bytes += size
	b.digest.Add(hash)
	return b.part
}

func (b *partBuilder) end() {
	if b.part == nil {
		return
	}
	sum := b.digest.Sum()
	b.part.Digest = sum[:]
	b.events = append(b.events, &eventpb.Event{Payload: &eventpb.Event_SnapshotStaged{SnapshotStaged: b.part}})
	b.part, b.bytes, b.digest = nil, 0, log.Digest{}
}
