/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From bytes to a flow, or to the reason why there is none. Plain TCP and UDP are
 * read in place; all else is rare and goes through functions that can read at any
 * offset.
 */
#pragma once

#include "extension.h"
#include "fragment.h"
#include "icmp.h"
#include "packet.h"

static __noinline int parse_sctp(struct __sk_buff *skb, struct packet *p, __u32 at)
{
	struct sctp h;

	if (bpf_skb_load_bytes(skb, at, &h, sizeof(h)))
		return REASON_MALFORMED;
	p->src_port = h.ports.src;
	p->dst_port = h.ports.dst;
	p->policy_port = h.ports.dst;
	switch (h.chunk) {
	case SCTP_INIT: /* alone in its packet */
		p->tcp = CT_TCP_SYN;
		p->flags = PKT_OPENS;
		break;
	case SCTP_SHUTDOWN:
	case SCTP_SHUTDOWN_ACK:
		p->tcp = CT_TCP_FIN;
		break;
	case SCTP_ABORT:
	case SCTP_SHUTDOWN_COMPLETE:
		p->tcp = CT_TCP_RST;
		break;
	default:
		p->tcp = CT_TCP_DATA;
	}
	return 0;
}

/*
 * A transport header at any offset; addresses, protocol and direction of p are set.
 * Global: verified once.
 */
__noinline int parse_l4(struct __sk_buff *skb, struct packet *p, __u32 at)
{
	__u8 h[TCP_LEN];
	const struct ports *ports = (void *)h;

	if (!p)
		return REASON_MALFORMED;
	switch (p->protocol) {
	case PROTO_TCP:
		if (bpf_skb_load_bytes(skb, at, h, TCP_LEN))
			return REASON_MALFORMED;
		p->tcp = tcp_state(h[13]);
		if (tcp_opens(h[13]))
			p->flags = PKT_OPENS;
		break;
	case PROTO_UDP:
		if (bpf_skb_load_bytes(skb, at, h, L4_MIN))
			return REASON_MALFORMED;
		break;
	case PROTO_SCTP:
		return parse_sctp(skb, p, at);
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		if ((p->protocol == PROTO_ICMP) != (p->ethertype == bpf_htons(ETHERTYPE_IPV4)))
			return REASON_UNKNOWN_PROTOCOL;
		return parse_icmp(skb, p, at);
	default:
		return REASON_UNKNOWN_PROTOCOL;
	}
	p->src_port = ports->src;
	p->dst_port = ports->dst;
	p->policy_port = ports->dst;
	return 0;
}

/* A fragment with offset 0: its transport header, at offset at, must be whole. */
static __noinline int parse_first(struct __sk_buff *skb, struct packet *p, const struct fragment *f,
				  __u32 at)
{
	int reason;

	if (fragment_malformed(f))
		return REASON_MALFORMED;
	if (at + l4_header(p->protocol) > f->at + f->length)
		return REASON_FRAGMENT_TINY;
	p->fragment_id = f->id;
	reason = parse_l4(skb, p, at);
	return reason ? reason : fragment_first(p, f);
}

/* IPv4 that is not plain TCP or UDP. Global: verified once. */
__noinline int parse_rare4(struct __sk_buff *skb, struct packet *p)
{
	struct fragment f = {};
	struct ipv4 ip;
	__u32 length, end;
	int reason;

	if (!p || bpf_skb_load_bytes(skb, ETH_LEN, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	if (ip.version_ihl < 0x45 || ip.version_ihl > 0x4f)
		return REASON_MALFORMED;
	length = (ip.version_ihl & 15) * 4;
	if (length > IPV4_LEN) {
		reason = check_options(skb, ETH_LEN + IPV4_LEN, length - IPV4_LEN);
		if (reason)
			return reason;
	}
	p->protocol = ip.protocol;
	f.at = ETH_LEN + length;
	if (!(ip.fragment & bpf_htons(0x3fff)))
		return parse_l4(skb, p, f.at);
	/* A frame may be longer than its packet. */
	end = ETH_LEN + bpf_ntohs(ip.length);
	if (end < f.at || end > skb->len)
		return REASON_MALFORMED;
	f.length = end - f.at;
	f.id = ip.id;
	f.offset = (bpf_ntohs(ip.fragment) & 0x1fff) * 8;
	f.more = ip.fragment & bpf_htons(0x2000);
	f.protocol = ip.protocol;
	return f.offset ? fragment_later(p, &f) : parse_first(skb, p, &f, f.at);
}

/* IPv6 that is not plain TCP or UDP. Global: verified once. */
__noinline int parse_rare6(struct __sk_buff *skb, struct packet *p)
{
	struct chain c = { .at = ETH_LEN + IPV6_LEN };
	__be16 payload;
	__u32 end;
	int reason;

	if (!p || bpf_skb_load_bytes(skb, ETH_LEN + 4, &payload, sizeof(payload)))
		return REASON_MALFORMED;
	c.next = p->protocol;
	reason = walk(skb, &c);
	p->protocol = c.next;
	if (reason)
		return reason;
	if (!c.fragmented || (!c.fragment.offset && !c.fragment.more))
		return parse_l4(skb, p, c.at);
	end = ETH_LEN + IPV6_LEN + bpf_ntohs(payload);
	if (end < c.fragment.at || end > skb->len)
		return REASON_MALFORMED;
	c.fragment.length = end - c.fragment.at;
	return c.fragment.offset ? fragment_later(p, &c.fragment) :
				   parse_first(skb, p, &c.fragment, c.at);
}

static __always_inline int parse_rare(struct __sk_buff *skb, struct packet *p)
{
	int result = p->ethertype == bpf_htons(ETHERTYPE_IPV4) ? parse_rare4(skb, p) :
								 parse_rare6(skb, p);

	return !result && (p->flags & PKT_RELATED) ? parse_cited(skb, p) : result;
}

/* The ports of plain TCP or UDP. */
static __always_inline int parse_ports(struct __sk_buff *skb, struct packet *p, const __u32 l3_len)
{
	const __u32 l4 = ETH_LEN + l3_len;
	struct ports *ports;
	void *data;

	if (p->protocol == PROTO_TCP) {
		__u8 f;

		data = header(skb, l4 + TCP_LEN);
		if (!data)
			return REASON_MALFORMED;
		f = *(__u8 *)(data + l4 + 13);
		p->tcp = tcp_state(f);
		if (tcp_opens(f))
			p->flags = PKT_OPENS;
	} else {
		data = header(skb, l4 + L4_MIN);
		if (!data)
			return REASON_MALFORMED;
	}
	ports = data + l4;
	p->src_port = ports->src;
	p->dst_port = ports->dst;
	p->policy_port = ports->dst;
	return 0;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	void *data = header(skb, ETH_LEN + IPV4_LEN);
	struct ethernet *eth = data;
	struct ipv4 *ip;

	if (!data)
		return REASON_MALFORMED;
	ip = data + ETH_LEN;
	p->protocol = ip->protocol;
	p->src.w[2] = p->dst.w[2] = V4_MAPPED;
	p->src.w[3] = ip->src;
	p->dst.w[3] = ip->dst;
	/* 224.0.0.0/4, 255.255.255.255, or sent to all on the link */
	if ((ip->dst & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || ip->dst == 0xffffffff ||
	    (eth->dst[0] & 1))
		return REASON_MULTICAST;
	if (ip->version_ihl != 0x45 || (ip->fragment & bpf_htons(0x3fff)) ||
	    (ip->protocol != PROTO_TCP && ip->protocol != PROTO_UDP))
		return parse_rare(skb, p);
	return parse_ports(skb, p, IPV4_LEN);
}

static __always_inline bool is_mapped(const union addr *a)
{
	return !a->d[0] && a->w[2] == V4_MAPPED;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	void *data = header(skb, ETH_LEN + IPV6_LEN);
	struct ethernet *eth = data;
	struct ipv6 *ip;
	union addr *a;
	bool multicast;
	__u8 next;

	if (!data)
		return REASON_MALFORMED;
	ip = data + ETH_LEN;
	if ((ip->version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return REASON_MALFORMED;
	p->protocol = next = ip->next;
	a = (union addr *)ip->src;
	p->src.d[0] = a->d[0];
	p->src.d[1] = a->d[1];
	a = (union addr *)ip->dst;
	p->dst.d[0] = a->d[0];
	p->dst.d[1] = a->d[1];
	/* No address on any wire (RFC 4291), and here the key of an IPv4 address. */
	if (is_mapped(&p->src) || is_mapped(&p->dst))
		return REASON_MALFORMED;
	multicast = p->dst.b[0] == 0xff || (eth->dst[0] & 1);
	if (next == PROTO_ICMPV6) {
		data = header(skb, ETH_LEN + IPV6_LEN + 1);
		if (!data)
			return REASON_MALFORMED;
		__u8 type = *(__u8 *)(data + ETH_LEN + IPV6_LEN);

		if (type >= ICMPV6_ROUTER_SOLICIT && type <= ICMPV6_REDIRECT) {
			p->icmp_type = type;
			return PARSED_ND;
		}
	}
	if (multicast)
		return REASON_MULTICAST;
	if (next != PROTO_TCP && next != PROTO_UDP)
		return parse_rare(skb, p);
	return parse_ports(skb, p, IPV6_LEN);
}

/* Fills p, whose ifindex and direction are set and whose rest is zero. */
static __always_inline int parse(struct __sk_buff *skb, struct packet *p, const struct config *cfg)
{
	struct ethernet *eth = header(skb, ETH_LEN);

	if (!eth)
		return REASON_MALFORMED;
	p->ethertype = eth->type;
	/* A tag is taken off the bytes before any hook sees the packet. */
	if (skb->vlan_present)
		return REASON_UNKNOWN_ETHERTYPE;
	if (p->ethertype == bpf_htons(ETHERTYPE_IPV4))
		return cfg->enable_ipv4 ? parse_ipv4(skb, p) : REASON_DISABLED_FAMILY;
	if (p->ethertype == bpf_htons(ETHERTYPE_IPV6))
		return cfg->enable_ipv6 ? parse_ipv6(skb, p) : REASON_DISABLED_FAMILY;
	if (p->ethertype == bpf_htons(ETHERTYPE_ARP))
		return cfg->enable_ipv4 ? PARSED_ARP : REASON_DISABLED_FAMILY;
	return REASON_UNKNOWN_ETHERTYPE;
}
