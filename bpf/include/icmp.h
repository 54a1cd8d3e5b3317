/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP and ICMPv6, neighbour discovery aside. */
#pragma once

#include "extension.h"
#include "fragment.h"
#include "packet.h"

/* The flow of a packet that an ICMP error cites: its first bytes at offset at. */
static __noinline int cited_flow(struct __sk_buff *skb, struct packet *p, __u8 protocol, __u32 at)
{
	union {
		struct ports ports;
		struct icmp icmp;
	} h;
	__be16 request = echo_request(p);
	__be16 reply, type;

	p->protocol = protocol;
	p->flags = PKT_RELATED;
	if (bpf_skb_load_bytes(skb, at, &h, sizeof(h)))
		return REASON_MALFORMED;
	if (protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP) {
		p->src_port = h.ports.dst;
		p->dst_port = h.ports.src;
		p->policy_port = p->dst_port;
		return 0;
	}
	if (protocol != (p->ethertype == bpf_htons(ETHERTYPE_IPV4) ? PROTO_ICMP : PROTO_ICMPV6))
		return REASON_ICMP_UNSOLICITED;
	reply = protocol == PROTO_ICMP ? bpf_htons(ICMP_ECHO_REPLY) : bpf_htons(ICMPV6_ECHO_REPLY);
	type = bpf_htons(h.icmp.type);
	if (type != request && type != reply)
		return REASON_ICMP_UNSOLICITED;
	p->src_port = p->dst_port = h.icmp.id;
	p->policy_port = request;
	return 0;
}

/*
 * The same for a fragment that is not the first: known if this interface saw its
 * first go the other way.
 */
static __noinline int cited_fragment(struct packet *p, __u32 id, __u8 protocol)
{
	struct fragment_key key = {};
	struct fragment_value *v;

	__builtin_memcpy(key.src, p->dst.b, 16);
	__builtin_memcpy(key.dst, p->src.b, 16);
	key.id = id;
	key.ifindex = p->ifindex;
	key.protocol = protocol;
	key.direction = p->direction == DIR_EGRESS ? DIR_INGRESS : DIR_EGRESS;
	v = fragment_find(&key);
	if (!v || !v->known || (v->flags & PKT_NO_FLOW))
		return REASON_ICMP_UNSOLICITED;
	p->flags = PKT_RELATED;
	p->protocol = v->protocol;
	p->src_port = v->dst_port;
	p->dst_port = v->src_port;
	p->policy_port = is_icmp(p) ? echo_request(p) : p->dst_port;
	return 0;
}

static __noinline int cited4(struct __sk_buff *skb, struct packet *p, __u32 at)
{
	struct ipv4 ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	if (ip.version_ihl < 0x45 || ip.version_ihl > 0x4f)
		return REASON_ICMP_UNSOLICITED;
	/* An error goes to who sent the packet, and a container reports on its own only. */
	if (ip.src != p->dst.w[3] || (p->direction == DIR_EGRESS && ip.dst != p->src.w[3]))
		return REASON_ICMP_UNSOLICITED;
	p->src.w[3] = ip.dst;
	if (ip.fragment & bpf_htons(0x1fff))
		return cited_fragment(p, ip.id, ip.protocol);
	return cited_flow(skb, p, ip.protocol, at + (ip.version_ihl & 15) * 4);
}

static __noinline int cited6(struct __sk_buff *skb, struct packet *p, __u32 at)
{
	struct chain c = {};
	struct ipv6 ip __attribute__((aligned(8)));
	int reason;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	if ((ip.version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return REASON_ICMP_UNSOLICITED;
	if (!addr_equal((union addr *)ip.src, &p->dst) ||
	    (p->direction == DIR_EGRESS && !addr_equal((union addr *)ip.dst, &p->src)))
		return REASON_ICMP_UNSOLICITED;
	__builtin_memcpy(p->src.b, ip.dst, 16);
	c.at = at + IPV6_LEN;
	c.next = ip.next;
	reason = walk(skb, &c);
	if (reason)
		return reason == REASON_MALFORMED ? reason : REASON_ICMP_UNSOLICITED;
	if (c.fragmented && c.fragment.offset)
		return cited_fragment(p, c.fragment.id, 0);
	return cited_flow(skb, p, c.next, c.at);
}

/*
 * A message at offset at; addresses and direction of p are set. An error still has
 * to become the flow of the packet that it cites: parse_cited(). Global: verified
 * once.
 */
__noinline int parse_icmp(struct __sk_buff *skb, struct packet *p, __u32 at)
{
	struct icmp icmp;
	bool error;

	if (!p || bpf_skb_load_bytes(skb, at, &icmp, sizeof(icmp)))
		return REASON_MALFORMED;
	p->icmp_type = icmp.type;
	p->icmp_code = icmp.code;
	p->policy_port = bpf_htons(icmp.type);
	if (p->protocol == PROTO_ICMP) {
		if (icmp.type == ICMP_ECHO_REQUEST || icmp.type == ICMP_ECHO_REPLY) {
			p->flags = icmp.type == ICMP_ECHO_REQUEST ? PKT_OPENS : PKT_NO_NEW;
			p->src_port = p->dst_port = icmp.id;
			return 0;
		}
		if (icmp.type == ICMP_SOURCE_QUENCH || icmp.type == ICMP_REDIRECT)
			return REASON_ICMP_UNSOLICITED;
		error = icmp.type == ICMP_UNREACHABLE || icmp.type == ICMP_TIME_EXCEEDED ||
			icmp.type == ICMP_PARAMETER;
	} else {
		if (icmp.type == ICMPV6_ECHO_REQUEST || icmp.type == ICMPV6_ECHO_REPLY) {
			p->flags = icmp.type == ICMPV6_ECHO_REQUEST ? PKT_OPENS : PKT_NO_NEW;
			p->src_port = p->dst_port = icmp.id;
			return 0;
		}
		/* Neighbour discovery stands right after the IPv6 header (RFC 6980). */
		if (icmp.type >= ICMPV6_ROUTER_SOLICIT && icmp.type <= ICMPV6_REDIRECT)
			return REASON_EXTENSION_HEADER;
		error = icmp.type >= ICMPV6_UNREACHABLE && icmp.type <= ICMPV6_PARAMETER;
	}
	p->flags = error ? PKT_RELATED : PKT_NO_FLOW;
	p->cited = error ? at + sizeof(icmp) : 0;
	return 0;
}

/* Global: verified once. */
__noinline int parse_cited(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return REASON_MALFORMED;
	return p->ethertype == bpf_htons(ETHERTYPE_IPV4) ? cited4(skb, p, p->cited) :
							   cited6(skb, p, p->cited);
}
