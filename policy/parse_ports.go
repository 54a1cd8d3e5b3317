package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

var (
	toPortsSchema = schema{
		fields: []string{"ports", "rules"},
		unsupported: map[string]string{
			"listener": "", "terminatingTLS": "", "originatingTLS": "", "serverNames": "",
		},
	}
	toPortsDenySchema = schema{fields: []string{"ports"}}
	portSchema        = schema{fields: []string{"port", "endPort", "protocol"}}
	icmpsSchema       = schema{fields: []string{"fields"}}
	icmpFieldSchema   = schema{fields: []string{"family", "type"}}
)

var protocols = map[string][]uint8{
	"":     {ProtoTCP, ProtoUDP, ProtoSCTP},
	"ANY":  {ProtoTCP, ProtoUDP, ProtoSCTP},
	"TCP":  {ProtoTCP},
	"UDP":  {ProtoUDP},
	"SCTP": {ProtoSCTP},
}

// portless are the protocols of Cilium that have no ports; none is supported.
var portless = []string{"VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH"}

// ciliumPorts reads toPorts or icmps into pb. It tells whether the rule names
// ports, if only to select none.
func (w *walker) ciliumPorts(o object, section Section, pb *eventpb.Rule) bool {
	toPorts, tp := o.get("toPorts")
	icmps, ip := o.get("icmps")
	if toPorts != nil && icmps != nil && len(toPorts.items) > 0 && len(icmps.items) > 0 {
		w.invalid(icmps.line, ip, "excludes toPorts", "write one rule for each")
	}
	given := false
	if toPorts != nil {
		for i, v := range w.list(toPorts, tp, maxPorts) {
			given = true
			pb.Ports = append(pb.Ports, w.toPorts(v, index(tp, i), section)...)
		}
	}
	if icmps != nil {
		for i, v := range w.list(icmps, ip, maxPorts) {
			given = true
			pb.Ports = append(pb.Ports, w.icmps(v, index(ip, i))...)
		}
	}
	pb.Ports = uniquePorts(pb.Ports)
	pb.NoPort = given && len(pb.Ports) == 0
	return given
}

func uniquePorts(in []*eventpb.Port) []*eventpb.Port {
	type key struct {
		protocol, first, last uint32
		name                  string
	}
	seen := make(map[key]bool, len(in))
	return slices.DeleteFunc(in, func(p *eventpb.Port) bool {
		k := key{p.Protocol, p.First, p.Last, p.Name}
		was := seen[k]
		seen[k] = true
		return was
	})
}

func (w *walker) toPorts(v *value, path string, section Section) []*eventpb.Port {
	s := toPortsSchema
	if section.Denies() {
		s = toPortsDenySchema
	}
	o, ok := w.object(v, path, s)
	if !ok {
		return nil
	}
	var out []*eventpb.Port
	ports, p := o.get("ports")
	if ports != nil {
		for i, item := range w.list(ports, p, maxPortsEntry) {
			out = append(out, w.ciliumPort(item, index(p, i))...)
		}
	}
	if section.Denies() {
		return out
	}
	rules, p := o.get("rules")
	if rules != nil {
		w.l7Rules(rules, p, section, out)
	}
	w.serverNames(o, rules)
	return out
}

func (w *walker) ciliumPort(v *value, path string) []*eventpb.Port {
	o, ok := w.object(v, path, portSchema)
	if !ok {
		return nil
	}
	protos, ok := w.ciliumProtocol(o)
	if !ok {
		return nil
	}
	port, p := o.get("port")
	if port == nil {
		w.invalid(v.line, p, "missing", `write "0" for every port`)
		return nil
	}
	text := port.text
	if port.kind == kindInt {
		w.warn(port.line, p, "a number; Kubernetes wants a string: "+strconv.Quote(text))
	} else if text, ok = w.str(port, p); !ok {
		return nil
	}
	end, endPath := o.get("endPort")
	var last int64
	if end != nil {
		if last, ok = w.integer(end, endPath, 0, 65535); !ok {
			return nil
		}
	}
	if checkPortName(text) {
		if last > 0 {
			w.invalid(port.line, p, "endPort needs a port number", "remove endPort or the name")
			return nil
		}
		return namedPorts(protos, text)
	}
	first, ok := portNumber(text)
	if !ok {
		w.invalid(port.line, p, fmt.Sprintf("%q is neither a port number nor a port name", text),
			"use 0 to 65535 without leading zeros, or at most 15 letters, digits and single '-' with at least one letter")
		return nil
	}
	switch {
	case first == 0 && last > 0:
		w.unsupported(end.line, endPath, "endPort beside port 0 is not supported", `start the range at "1"`)
		return nil
	case first == 0:
		return portRange(protos, 0, 65535)
	case last > 0 && last < first:
		w.warn(end.line, endPath, fmt.Sprintf("below port: the rule is for port %d alone", first))
		last = first
	case last == 0:
		last = first
	}
	return portRange(protos, uint32(first), uint32(last))
}

func namedPorts(protos []uint8, name string) []*eventpb.Port {
	var out []*eventpb.Port
	for _, proto := range protos {
		out = append(out, &eventpb.Port{Protocol: uint32(proto), Name: strings.ToLower(name)})
	}
	return out
}

func portRange(protos []uint8, first, last uint32) []*eventpb.Port {
	var out []*eventpb.Port
	for _, proto := range protos {
		out = append(out, &eventpb.Port{Protocol: uint32(proto), First: first, Last: last})
	}
	return out
}

// portNumber refuses leading zeros, which some readers take for octal.
func portNumber(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, false
	}
	return int64(n), true
}

func (w *walker) ciliumProtocol(o object) ([]uint8, bool) {
	v, p := o.get("protocol")
	if v == nil {
		return protocols["ANY"], true
	}
	s, ok := w.str(v, p)
	if !ok {
		return nil, false
	}
	upper := strings.ToUpper(s)
	protos, ok := protocols[upper]
	switch port, _ := o.get("port"); {
	case ok:
	case strings.HasPrefix(upper, "ICMP"):
		w.invalid(v.line, p, "no protocol of ports", "name the types under icmps")
	case !slices.Contains(portless, upper):
		w.invalid(v.line, p, fmt.Sprintf("unknown protocol %q", s), "use TCP, UDP, SCTP or ANY")
	case port != nil && port.text != "0" && port.text != "":
		w.invalid(v.line, p, upper+" has no ports", "remove port")
	default:
		w.unsupported(v.line, p, "protocol "+upper+" is not supported", "use TCP, UDP, SCTP or ANY")
	}
	return protos, ok
}

// l7Rules refuses rules about what is inside a connection, and as invalid what
// Cilium refuses too. None at all, or an empty list of http or dns, is no
// restriction.
func (w *walker) l7Rules(v *value, path string, section Section, ports []*eventpb.Port) {
	if v.kind != kindMap {
		w.invalid(v.line, path, "must be a mapping, is "+v.kind.String(), "")
		return
	}
	kinds := 0
	for _, f := range v.fields {
		p := join(path, f.key)
		empty := len(f.val.items) == 0
		if f.val.kind == kindNull || f.val.kind == kindList && empty && (f.key == "http" || f.key == "dns") {
			continue
		}
		w.unsupported(f.line, p, "field "+f.key+" is not supported: rules above layer 4", "remove rules, which allows whatever the ports allow")
		if empty {
			continue
		}
		if kinds++; kinds > 1 {
			w.invalid(f.line, path, "rules of two protocols", "write one entry of toPorts for each")
		}
		switch {
		case f.key == "dns" && section == SectionIngress:
			w.invalid(f.line, p, "DNS rules are for egress only", "")
		case f.key == "dns" && len(ports) == 0:
			w.invalid(f.line, p, "DNS rules need port 53", "name it under ports")
		}
		w.l7Ports(f, p, ports)
	}
}

// l7Ports refuses ports that rules of a protocol cannot stand beside.
func (w *walker) l7Ports(f field, path string, ports []*eventpb.Port) {
	for _, port := range ports {
		switch {
		case port.Name == "" && port.First == 0 && port.Last == 65535:
			w.invalid(f.line, path, "rules above layer 4 need a port other than 0", "")
			return
		case f.key != "dns" && port.Protocol != uint32(ProtoTCP):
			w.invalid(f.line, path, f.key+" rules need protocol TCP", "write protocol: TCP at each port")
			return
		case f.key == "dns" && port.Last > port.First:
			w.invalid(f.line, path, "DNS rules take no range of ports", "")
			return
		}
	}
}

// serverNames refuses, as Cilium does, an empty name, and names beside rules that
// only a terminated TLS connection shows.
func (w *walker) serverNames(o object, rules *value) {
	names, p := o.get("serverNames")
	if names == nil {
		return
	}
	for i, n := range names.items {
		if n.kind == kindString && n.text == "" {
			w.invalid(n.line, index(p, i), "empty", "remove it")
		}
	}
	if tls, _ := o.get("terminatingTLS"); tls != nil || rules == nil || len(names.items) == 0 {
		return
	}
	for _, f := range rules.fields {
		if len(f.val.items) > 0 {
			w.invalid(names.line, p, "server names beside "+f.key+" rules need terminatingTLS", "")
		}
	}
}

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
