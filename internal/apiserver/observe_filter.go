package apiserver

import (
	"net/netip"
	"slices"
	"strings"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/policy"
)

// flowFilter takes flows that meet every field that is set.
type flowFilter struct {
	verdicts          []flows.Verdict
	reasons           []abi.Reason
	from, to, any     ends
	ports, identities []uint32
	protocols         []uint8
}

// ends are the pods and prefixes of which one end of a flow must be one.
type ends struct {
	pods     []string
	prefixes []netip.Prefix
}

func newFlowFilter(f *varvev1.FlowFilter) (flowFilter, error) {
	out := flowFilter{ports: f.GetPorts(), identities: f.GetIdentities()}
	for i, v := range f.GetVerdicts() {
		all := []flows.Verdict{flows.Forwarded, flows.Dropped, flows.Audited}
		n := slices.IndexFunc(all, func(known flows.Verdict) bool { return strings.EqualFold(known.String(), v) })
		if n < 0 {
			return out, invalid("filter.verdicts[%d]: %q is none of %s, %s, %s", i, v, all[0], all[1], all[2])
		}
		out.verdicts = append(out.verdicts, all[n])
	}
	for i, name := range f.GetDropReasons() {
		n := abi.Reason(0)
		for ; n < abi.ReasonCount && !strings.EqualFold(n.String(), name); n++ {
		}
		if n == abi.ReasonCount {
			return out, invalid("filter.drop_reasons[%d]: %q is unknown; `varve bpf metrics list` shows those that were met, e.g. %q", i, name, abi.PolicyDenied)
		}
		out.reasons = append(out.reasons, n)
	}
	for i, name := range f.GetProtocols() {
		all := []uint8{policy.ProtoTCP, policy.ProtoUDP, policy.ProtoSCTP, policy.ProtoICMP, policy.ProtoICMPv6}
		n := slices.IndexFunc(all, func(known uint8) bool { return strings.EqualFold(policy.ProtocolName(known), name) })
		if n < 0 {
			return out, invalid("filter.protocols[%d]: %q is none of tcp, udp, sctp, icmp, icmpv6", i, name)
		}
		out.protocols = append(out.protocols, all[n])
	}
	for i, p := range f.GetPorts() {
		if p > 65535 {
			return out, invalid("filter.ports[%d]: %d is no port; give 0 to 65535", i, p)
		}
	}
	for _, e := range []struct {
		to        *ends
		name      string
		pods, ips []string
	}{{&out.from, "from_", f.GetFromPods(), f.GetFromIps()}, {&out.to, "to_", f.GetToPods(), f.GetToIps()}, {&out.any, "", f.GetPods(), f.GetIps()}} {
		for i, pod := range e.pods {
			if namespace, _, ok := strings.Cut(pod, "/"); !ok || namespace == "" {
				return out, invalid("filter.%spods[%d]: %q; give NAMESPACE/NAME, or NAMESPACE/ for all in it", e.name, i, pod)
			}
		}
		e.to.pods = e.pods
		for i, ip := range e.ips {
			prefix, err := netip.ParsePrefix(ip)
			if addr, addrErr := netip.ParseAddr(ip); addrErr == nil {
				prefix, err = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
			}
			if err != nil {
				return out, invalid("filter.%sips[%d]: %q is neither an address nor a prefix", e.name, i, ip)
			}
			e.to.prefixes = append(e.to.prefixes, prefix.Masked())
		}
	}
	return out, nil
}

func (f *flowFilter) match(flow *flows.Flow) bool {
	return oneOf(f.verdicts, flow.Verdict) && oneOf(f.ports, uint32(flow.Port)) && oneOf(f.protocols, flow.Protocol) &&
		(len(f.reasons) == 0 || flow.Verdict == flows.Dropped && oneOf(f.reasons, flow.Reason)) &&
		(oneOf(f.identities, flow.SrcIdentity) || oneOf(f.identities, flow.DstIdentity)) &&
		f.from.match(flow.SrcName, flow.Src) && f.to.match(flow.DstName, flow.Dst) &&
		(f.any.match(flow.SrcName, flow.Src) || f.any.match(flow.DstName, flow.Dst))
}

// oneOf tells whether v is in a list; of an empty one everything is.
func oneOf[T comparable](list []T, v T) bool { return len(list) == 0 || slices.Contains(list, v) }

// match tells whether an end is one of the pods, if there are any, and in one of
// the prefixes, if there are any.
func (e *ends) match(pod string, addr netip.Addr) bool {
	named := func(want string) bool {
		return want == pod || strings.HasSuffix(want, "/") && strings.HasPrefix(pod, want)
	}
	within := func(p netip.Prefix) bool { return p.Contains(addr) }
	return (len(e.pods) == 0 || slices.ContainsFunc(e.pods, named)) && (len(e.prefixes) == 0 || slices.ContainsFunc(e.prefixes, within))
}
