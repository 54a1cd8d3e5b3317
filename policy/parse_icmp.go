package policy

import (
	"fmt"

	"github.com/varve-net/varve/log/eventpb"
)

var (
	icmpsSchema     = schema{fields: []string{"fields"}}
	icmpFieldSchema = schema{fields: []string{"family", "type"}}
)

// icmpTypes are the names Cilium takes, by family.
var icmpTypes = map[string]map[string]uint32{
	"IPv4": {
		"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
		"RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12,
		"Timestamp": 13, "TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42,
		"ExtendedEchoReply": 43,
	},
	"IPv6": {
		"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4,
		"EchoRequest": 128, "EchoReply": 129, "MulticastListenerQuery": 130,
		"MulticastListenerReport": 131, "MulticastListenerDone": 132, "RouterSolicitation": 133,
		"RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136,
		"RedirectMessage": 137, "RouterRenumbering": 138, "ICMPNodeInformationQuery": 139,
		"ICMPNodeInformationResponse": 140, "InverseNeighborDiscoverySolicitation": 141,
		"InverseNeighborDiscoveryAdvertisement": 142, "HomeAgentAddressDiscoveryRequest": 144,
		"HomeAgentAddressDiscoveryReply": 145, "MobilePrefixSolicitation": 146,
		"MobilePrefixAdvertisement": 147, "DuplicateAddressRequestCodeSuffix": 157,
		"DuplicateAddressConfirmationCodeSuffix": 158, "ExtendedEchoRequest": 160,
		"ExtendedEchoReply": 161,
	},
}

func (w *walker) icmps(v *value, path string) []*eventpb.Port {
	o, ok := w.object(v, path, icmpsSchema)
	if !ok {
		return nil
	}
	fields, p := o.get("fields")
	if fields == nil {
		return nil
	}
	var out []*eventpb.Port
	for i, item := range w.list(fields, p, maxPortsEntry) {
		if port := w.icmpField(item, index(p, i)); port != nil {
			out = append(out, port)
		}
	}
	return out
}

func (w *walker) icmpField(v *value, path string) *eventpb.Port {
	o, ok := w.object(v, path, icmpFieldSchema)
	if !ok {
		return nil
	}
	family := "IPv4"
	if f, p := o.get("family"); f != nil {
		s, ok := w.str(f, p)
		if !ok {
			return nil
		}
		if s != "" {
			family = s
		}
		if icmpTypes[family] == nil {
			w.invalid(f.line, p, fmt.Sprintf("unknown family %q", s), "use IPv4 or IPv6")
			return nil
		}
	}
	t, p := o.get("type")
	if t == nil {
		w.invalid(v.line, p, "missing", "give a number from 0 to 255 or a name, e.g. EchoRequest")
		return nil
	}
	n, ok := icmpTypes[family][t.text]
	if t.kind != kindString || !ok {
		number, ok := portNumber(t.text)
		if (t.kind != kindString && t.kind != kindInt) || !ok || number > 255 {
			w.invalid(t.line, p, fmt.Sprintf("%q is no ICMP type of %s", t.text, family), "give a number from 0 to 255 or a name, e.g. EchoRequest")
			return nil
		}
		n = uint32(number)
	}
	proto := ProtoICMP
	if family == "IPv6" {
		proto = ProtoICMPv6
	}
	return &eventpb.Port{Protocol: uint32(proto), First: n, Last: n}
}
