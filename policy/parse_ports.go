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
		unsupported: map[string]refusal{
			"listener":       {"there is no Envoy to hand connections to", "remove it, which allows whatever the ports allow"},
			"terminatingTLS": {"TLS connections are not looked into", "remove it, together with the rules that need it"},
			"originatingTLS": {"TLS connections are not looked into", "remove it, together with the rules that need it"},
			"serverNames":    {"the server names of TLS are not looked at", "select the names with toFQDNs"},
		},
	}
	toPortsDenySchema = schema{
		fields:      []string{"ports"},
		unsupported: map[string]refusal{"rules": {"a deny rule denies whole ports", "remove rules"}},
	}
	portSchema = schema{fields: []string{"port", "endPort", "protocol"}}
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
			pb.Ports = append(pb.Ports, w.toPorts(v, index(tp, i), section, pb)...)
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
		name, dns             string
	}
	seen := make(map[key]bool, len(in))
	return slices.DeleteFunc(in, func(p *eventpb.Port) bool {
		k := key{p.Protocol, p.First, p.Last, p.Name, dnsKey(p.Dns)}
		was := seen[k]
		seen[k] = true
		return was
	})
}

// toPorts reads one entry of toPorts of the rule pb.
func (w *walker) toPorts(v *value, path string, section Section, pb *eventpb.Rule) []*eventpb.Port {
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
	var within l7
	rules, p := o.get("rules")
	if rules != nil {
		within = w.l7Rules(rules, p, section, out)
	}
	w.serverNames(o, rules)
	for _, port := range out {
		port.Dns = within.dns
		w.ports = append(w.ports, portUse{rule: pb, port: port, http: within.http})
	}
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
		w.warn(port.line, p, "a number; Kubernetes wants a string", "write "+strconv.Quote(text))
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
		w.warn(end.line, endPath, fmt.Sprintf("below port: the rule is for port %d alone", first), "write a last port that is not below the first, or remove it")
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
