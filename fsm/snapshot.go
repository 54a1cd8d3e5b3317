package fsm

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// A snapshot file:
//
//	magic    8 bytes  snapshotMagic
//	header   frame    eventpb.SnapshotHeader
//	records  frames   eventpb.SnapshotRecord: namespaces, nodes, identities,
//	                  endpoints, policies, requests, names, parts, each in the order of
//	                  keys
//	end      1 byte   0, as a length that no frame has
//	count    8 bytes  of records, little endian
//	sum      32 bytes SHA-256 of all before it
//
// A frame is the message's length (uvarint, 1 to maxFrame), the CRC32C of its
// bytes (4 bytes, little endian) and the bytes. Equal states have equal files.
// The CRC says where a file is damaged, the sum that it is whole, and the header's
// digest that the rows are the ones that the log gave.
const (
	snapshotMagic  = "VARVESN\x01"
	snapshotFormat = 1
	// maxFrame holds the largest row: an event, and the labels of a namespace.
	maxFrame = 4 * log.MaxEventBytes
)

// WriteSnapshot writes the whole state, from which ReadSnapshot makes a State
// equal to the one that the View is of. It may run while the State moves on.
func (v View) WriteSnapshot(w io.Writer) error {
	t := v.tables()
	buffered := bufio.NewWriterSize(w, 1<<16)
	sw := snapshotWriter{sum: sha256.New()}
	sw.w = io.MultiWriter(buffered, sw.sum)

	sw.write([]byte(snapshotMagic))
	digest := t.sum()
	sw.frame(&eventpb.SnapshotHeader{
		Format:       snapshotFormat,
		Revision:     uint64(t.revision),
		Chain:        t.chain[:],
		TimeUnixNs:   t.timeNS,
		Digest:       digest[:],
		NextIdentity: t.nextIdentity,
		Cluster:      t.cluster,
	})
	for n := range all(t.namespaces) {
		sw.record(&eventpb.SnapshotRecord{Record: &eventpb.SnapshotRecord_Namespace{Namespace: namespacePB(n)}})
	}
	for n := range all(t.nodes) {
		sw.record(&eventpb.SnapshotRecord{Record: &eventpb.SnapshotRecord_Node{Node: nodePB(n)}})
	}
	for i := range all(t.identities) {
		sw.record(&eventpb.SnapshotRecord{Record: &eventpb.SnapshotRecord_Identity{Identity: identityPB(i)}})
	}
	for e := range all(t.endpoints) {
		sw.record(&eventpb.SnapshotRecord{Record: &eventpb.SnapshotRecord_Endpoint{Endpoint: endpointPB(e)}})
	}
	for p := range all(t.policies) {
		sw.record(&eventpb.SnapshotRecord{Record: &eventpb.SnapshotRecord_Policy{Policy: policyPB(p)}})
	}
	for r := range t.requests.all() {
		sw.record(&eventpb.SnapshotRecord{Record: &eventpb.SnapshotRecord_Request{Request: requestPB(r)}})
	}
	for n := range all(t.names) {
		sw.record(&eventpb.SnapshotRecord{Record: &eventpb.SnapshotRecord_Name{Name: namePB(n)}})
	}
	for p := range all(t.parts) {
		sw.record(&eventpb.SnapshotRecord{Record: &eventpb.SnapshotRecord_Part{Part: partPB(p)}})
	}
	sw.write([]byte{0})
	sw.write(binary.LittleEndian.AppendUint64(nil, sw.count))
	sw.write(sw.sum.Sum(nil))
	if sw.err == nil {
		sw.err = buffered.Flush()
	}
	if sw.err != nil {
		return fmt.Errorf("snapshot of revision %d: %w", t.revision, sw.err)
	}
	return nil
}

// snapshotWriter keeps the first error and does nothing after it.
type snapshotWriter struct {
	w     io.Writer
	sum   hash.Hash
	count uint64
	buf   []byte
	err   error
}

func (w *snapshotWriter) write(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}

func (w *snapshotWriter) record(r *eventpb.SnapshotRecord) {
	w.count++
	w.frame(r)
}

func (w *snapshotWriter) frame(m log.Message) {
	if w.err != nil {
		return
	}
	b, err := log.MarshalMessage(m)
	if err != nil {
		w.err = err
		return
	}
	w.buf = binary.AppendUvarint(w.buf[:0], uint64(len(b)))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, log.Checksum(b))
	w.buf = append(w.buf, b...)
	w.write(w.buf)
}

func namespacePB(n *Namespace) *eventpb.SnapshotNamespace {
	return &eventpb.SnapshotNamespace{
		Set:      &eventpb.NamespaceSet{Name: n.Name, Labels: n.Labels},
		Revision: uint64(n.Revision),
	}
}

func nodePB(n *Node) *eventpb.SnapshotNode {
	j := &eventpb.NodeJoined{Name: n.Name, KubeApiserver: n.KubeAPIServer, PolicyAuditMode: n.AuditMode}
	for _, a := range n.Addresses {
		j.Addresses = append(j.Addresses, a.AsSlice())
	}
	for _, p := range n.EndpointCIDRs {
		j.EndpointCidrs = append(j.EndpointCidrs, p.String())
	}
	return &eventpb.SnapshotNode{
		Joined:         j,
		Revision:       uint64(n.Revision),
		JournalSeq:     n.JournalSeq,
		NextEndpointId: n.NextEndpointID,
		Left:           n.Left,
		DnsSeq:         n.DNSSeq,
	}
}

func namePB(n *Name) *eventpb.SnapshotName {
	pb := &eventpb.SnapshotName{
		Ref:      &eventpb.EndpointRef{Namespace: n.Endpoint.Namespace, Name: n.Endpoint.Name},
		Name:     n.Name,
		Chain:    n.Chain,
		Revision: uint64(n.Revision),
	}
	for _, a := range n.Addresses {
		pb.Addresses = append(pb.Addresses, &eventpb.SnapshotNameAddress{
			Address: a.Addr.AsSlice(), ExpiresUnixNs: a.ExpiresNS, Revision: uint64(a.Revision),
		})
	}
	return pb
}

func identityPB(i *Identity) *eventpb.SnapshotIdentity {
	return &eventpb.SnapshotIdentity{
		Id:                 i.ID,
		Labels:             i.Labels.Strings(),
		Revision:           uint64(i.Revision),
		ReleasedRevision:   uint64(i.ReleasedRevision),
		ReleasedTimeUnixNs: i.ReleasedTimeNS,
	}
}

func endpointPB(e *Endpoint) *eventpb.SnapshotEndpoint {
	c := &eventpb.EndpointCreated{
		Ref:                &eventpb.EndpointRef{Namespace: e.Ref.Namespace, Name: e.Ref.Name},
		Incarnation:        e.Incarnation,
		Node:               e.Node,
		Labels:             e.Labels,
		ServiceAccount:     e.ServiceAccount,
		Mac:                e.MAC[:],
		HostInterface:      e.HostInterface,
		ContainerInterface: e.ContainerInterface,
		Netns:              e.Netns,
		NetnsId:            e.NetnsID,
		Mtu:                uint32(e.MTU),
		BigTcp:             e.BigTCP,
		PolicyAuditMode:    e.AuditMode,
	}
	for _, a := range e.addresses() {
		c.Addresses = append(c.Addresses, a.AsSlice())
	}
	for _, p := range e.NamedPorts {
		c.NamedPorts = append(c.NamedPorts, &eventpb.NamedPort{Name: p.Name, Protocol: uint32(p.Protocol), Port: uint32(p.Port)})
	}
	return &eventpb.SnapshotEndpoint{
		Created:          c,
		CreatedRevision:  uint64(e.Created),
		Revision:         uint64(e.Revision),
		Id:               e.ID,
		Identity:         e.Identity,
		IdentityRevision: uint64(e.IdentityRevision),
	}
}

func policyPB(p *Policy) *eventpb.SnapshotPolicy {
	return &eventpb.SnapshotPolicy{Set: p.Set, CreatedRevision: uint64(p.Created), Revision: uint64(p.Revision)}
}

func partPB(p *part) *eventpb.SnapshotPart {
	return &eventpb.SnapshotPart{Staged: p.set, Revision: uint64(p.revision), TimeUnixNs: p.timeNS, Node: p.node}
}

func requestPB(r *request) *eventpb.SnapshotRequest {
	return &eventpb.SnapshotRequest{
		Id:          r.id.String(),
		Revision:    uint64(r.revision),
		Outcome:     uint32(r.outcome),
		Reason:      r.reason,
		Fingerprint: r.fingerprint[:],
	}
}
