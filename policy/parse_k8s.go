package policy

import (
	"fmt"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

var (
	npSpecSchema    = schema{fields: []string{"podSelector", "policyTypes", "ingress", "egress"}}
	npIngressSchema = schema{fields: []string{"from", "ports"}}
	npEgressSchema  = schema{fields: []string{"to", "ports"}}
	npPeerSchema    = schema{fields: []string{"podSelector", "namespaceSelector", "ipBlock"}}
	npBlockSchema   = schema{fields: []string{"cidr", "except"}}
)

// networkPolicy reads the spec of a NetworkPolicy.
func (w *walker) networkPolicy(o object, ref Ref) []*eventpb.PolicySpec {
	v, path := o.get("spec")
	if v == nil {
		w.invalid(o.v.line, path, "missing", "")
		return nil
	}
	spec, ok := w.object(v, path, npSpecSchema)
	if !ok {
		return nil
	}
	pb := &eventpb.PolicySpec{}
	var ts terms
	if sel, p := spec.get("podSelector"); sel != nil {
		ts, _ = w.selector(sel, p, k8sKey)
	} else {
		w.warn(v.line, p, "missing: the policy selects every pod of its namespace, as podSelector: {} does", "write podSelector: {} if that is meant")
	}
	pb.Subject = ts.require(KeyNamespace, ref.Namespace).pb()

	ingress, ip := spec.get("ingress")
	egress, ep := spec.get("egress")
	isolates := w.policyTypes(spec, egress != nil && len(egress.items) > 0)
	pb.DefaultDenyIngress, pb.DefaultDenyEgress = isolates[Ingress], isolates[Egress]
	if rules := w.npRules(ingress, ip, "from", npIngressSchema, ref); isolates[Ingress] {
		pb.Ingress = rules
	} else if len(rules) > 0 {
		w.warn(ingress.line, ip, "ignored: policyTypes does not name Ingress", "add Ingress to policyTypes, or remove ingress")
	}
	if rules := w.npRules(egress, ep, "to", npEgressSchema, ref); isolates[Egress] {
		pb.Egress = rules
	} else if len(rules) > 0 {
		w.warn(egress.line, ep, "ignored: policyTypes does not name Egress", "add Egress to policyTypes, or remove egress")
	}
	return []*eventpb.PolicySpec{pb}
}

// policyTypes tells which directions the policy isolates. Without policyTypes
// that is ingress, and egress if there is an egress rule.
func (w *walker) policyTypes(spec object, hasEgress bool) (isolates [2]bool) {
	types, path := spec.get("policyTypes")
	if types == nil || types.kind == kindList && len(types.items) == 0 {
		isolates[Ingress], isolates[Egress] = true, hasEgress
		return isolates
	}
	for i, t := range w.list(types, path, 2) {
		p := index(path, i)
		switch s, ok := w.str(t, p); {
		case !ok:
		case s == "Ingress":
			isolates[Ingress] = true
		case s == "Egress":
			isolates[Egress] = true
		default:
			w.invalid(t.line, p, fmt.Sprintf("unknown policy type %q", s), "use Ingress or Egress")
		}
	}
	return isolates
}

func (w *walker) npRules(list *value, path, peers string, s schema, ref Ref) []*eventpb.Rule {
	if list == nil {
		return nil
	}
	var out []*eventpb.Rule
	for i, v := range w.list(list, path, maxRules) {
		o, ok := w.object(v, index(path, i), s)
		if !ok {
			continue
		}
		pb := &eventpb.Rule{AnyPeer: true}
		if list, p := o.get(peers); list != nil {
			for i, item := range w.list(list, p, maxPeers) {
				pb.AnyPeer = false
				if peer := w.npPeer(item, index(p, i), ref); peer != nil {
					pb.Peers = append(pb.Peers, peer)
				}
			}
		}
		if list, p := o.get("ports"); list != nil {
			for i, item := range w.list(list, p, maxPorts) {
				if port := w.npPort(item, index(p, i)); port != nil {
					pb.Ports = append(pb.Ports, port)
				}
			}
		}
		pb.Ports = uniquePorts(pb.Ports)
		out = append(out, pb)
	}
	return out
}

// npPeer reads one peer. Selectors of pods never select anything else: each
// requires a namespace, if only that there is one, and the local cluster.
func (w *walker) npPeer(v *value, path string, ref Ref) *eventpb.Peer {
	o, ok := w.object(v, path, npPeerSchema)
	if !ok {
		return nil
	}
	pods, pp := o.get("podSelector")
	namespaces, np := o.get("namespaceSelector")
	block, bp := o.get("ipBlock")
	switch {
	case block != nil && (pods != nil || namespaces != nil):
		w.invalid(block.line, bp, "excludes podSelector and namespaceSelector", "write two peers")
		return nil
	case block != nil:
		return w.ipBlock(block, bp)
	case pods == nil && namespaces == nil:
		w.invalid(v.line, path, "selects nothing", "give podSelector, namespaceSelector or ipBlock")
		return nil
	}
	var ts terms
	if pods != nil {
		if ts, ok = w.selector(pods, pp, k8sKey); !ok {
			return nil
		}
	}
	if namespaces == nil {
		ts = ts.require(KeyNamespace, ref.Namespace)
	} else {
		more, ok := w.selector(namespaces, np, namespaceKey)
		if !ok {
			return nil
		}
		ts = append(ts, more...).require(KeyNamespace)
	}
	return endpointsPeer(w.localCluster(ts).pb())
}

func (w *walker) ipBlock(v *value, path string) *eventpb.Peer {
	o, ok := w.object(v, path, npBlockSchema)
	if !ok {
		return nil
	}
	cidr, p := o.get("cidr")
	if cidr == nil {
		w.invalid(v.line, p, "missing", "")
		return nil
	}
	except, ep := o.get("except")
	return w.cidr(cidr, p, except, ep, true)
}

// npPort reads one port. Kubernetes takes a number or, as a string, a name.
func (w *walker) npPort(v *value, path string) *eventpb.Port {
	o, ok := w.object(v, path, portSchema)
	if !ok {
		return nil
	}
	proto := ProtoTCP
	if pv, p := o.get("protocol"); pv != nil {
		s, ok := w.str(pv, p)
		if !ok {
			return nil
		}
		switch s {
		case "TCP":
		case "UDP":
			proto = ProtoUDP
		case "SCTP":
			proto = ProtoSCTP
		default:
			w.invalid(pv.line, p, fmt.Sprintf("unknown protocol %q", s), "use TCP, UDP or SCTP")
			return nil
		}
	}
	port, p := o.get("port")
	end, ep := o.get("endPort")
	switch {
	case end != nil && (port == nil || port.kind == kindString):
		w.invalid(end.line, ep, "endPort needs a port number", "give port as a number")
		return nil
	case port == nil:
		return &eventpb.Port{Protocol: uint32(proto), First: 0, Last: 65535}
	case port.kind == kindString:
		name, ok := w.str(port, p)
		if !ok {
			return nil
		}
		if !checkPortName(name) || strings.ToLower(name) != name {
			w.invalid(port.line, p, fmt.Sprintf("%q is no port name", name),
				"write a number without quotes, or at most 15 of a-z, 0-9 and single '-' with at least one letter")
			return nil
		}
		return namedPorts([]uint8{proto}, name)[0]
	}
	first, ok := w.integer(port, p, 1, 65535)
	if !ok {
		return nil
	}
	last := first
	if end != nil {
		if last, ok = w.integer(end, ep, first, 65535); !ok {
			return nil
		}
	}
	return &eventpb.Port{Protocol: uint32(proto), First: uint32(first), Last: uint32(last)}
}
