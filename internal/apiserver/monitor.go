package apiserver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
)

// Types of monitor events.
const (
	typeDrop    = "drop"
	typeNewFlow = "new-flow"
	typeClosed  = "closed"
	typeAudited = "audited"
	typeDrift   = "drift"
	typeLost    = "lost"
)

var eventTypes = map[abi.EventType]string{abi.EventDrop: typeDrop, abi.EventNewFlow: typeNewFlow, abi.EventClosed: typeClosed, abi.EventAudited: typeAudited}

func (s datapathService) Monitor(ctx context.Context, req *connect.Request[varvev1.MonitorRequest], stream *connect.ServerStream[varvev1.DatapathEvent]) error {
	for i, t := range req.Msg.Types {
		if !slices.Contains([]string{typeDrop, typeNewFlow, typeAudited, typeClosed, typeDrift, typeLost}, t) {
			return invalid("types[%d]: %q; give %s, %s, %s, %s or %s", i, t, typeDrop, typeNewFlow, typeAudited, typeClosed, typeDrift)
		}
	}
	// The header tells the client that it listens now.
	if err := stream.Send(nil); err != nil {
		return err
	}
	var n *names
	err := s.Server.Monitor.Subscribe(ctx, func(e dataplane.Event, lost uint64) error {
		if lost > 0 {
			if err := stream.Send(&varvev1.DatapathEvent{Type: typeLost, Lost: lost, TimeUnixNs: unixTime(e)}); err != nil {
				return err
			}
		}
		if len(req.Msg.Types) > 0 && !slices.Contains(req.Msg.Types, typeOf(e)) {
			return nil
		}
		if tables := s.Projector.Current(); n == nil || n.tables != tables {
			n = newNames(s.Log.View(), tables, s.Node)
		}
		out := eventProto(n, e)
		if len(req.Msg.Endpoints) > 0 && !slices.ContainsFunc([]string{out.Endpoint, out.SourceName, out.DestinationName}, func(name string) bool { return slices.Contains(req.Msg.Endpoints, name) }) {
			return nil
		}
		out.Facts, out.ByName = s.facts(ctx, n, e)
		return stream.Send(out)
	})
	return streamError(err)
}

func typeOf(e dataplane.Event) string {
	if e.Drift != nil {
		return typeDrift
	}
	return eventTypes[e.Type]
}

func eventProto(n *names, e dataplane.Event) *varvev1.DatapathEvent {
	if e.Drift != nil {
		return driftEvent(n, e)
	}
	src, dst := e.Src, e.Dst
	out := &varvev1.DatapathEvent{
		TimeUnixNs: unixTime(e), Type: eventTypes[e.Type], Direction: directionName(e.Direction),
		Protocol: protocolName(e.Protocol), Length: uint32(e.Length), Endpoint: n.endpointName(e.Endpoint), Row: hex(e.Row),
		SourceIdentity: IdentityOf(e.SrcPeer, src), DestinationIdentity: IdentityOf(e.DstPeer, dst),
		SourceName: n.peer(e.SrcPeer, src), DestinationName: n.peer(e.DstPeer, dst),
	}
	if src.IsValid() && !src.IsUnspecified() {
		out.Source = src.String()
	}
	if dst.IsValid() && !dst.IsUnspecified() {
		out.Destination = dst.String()
	}
	if e.Type == abi.EventDrop || e.Type == abi.EventAudited {
		out.Reason = e.Reason.String()
	}
	switch e.Protocol {
	case 1, 58:
		out.IcmpType, out.IcmpCode = uint32(e.SrcPort), uint32(e.DstPort)
	case 0:
		out.Protocol = fmt.Sprintf("ethertype 0x%04x", e.EtherType)
	default:
		out.SourcePort, out.DestinationPort = uint32(e.SrcPort), uint32(e.DstPort)
	}
	out.Rules, out.Revisions, out.Log = n.rules(e)
	if n.tables != nil {
		out.Revision = uint64(n.tables.Revision)
	}
	return out
}

// unixTime is when an event happened. The boot clock's offset is taken at every
// call, since the wall clock may be set.
func unixTime(e dataplane.Event) int64 {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return time.Now().UnixNano()
	}
	return time.Now().UnixNano() - boot.Nano() + int64(e.SinceBoot)
}
