/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From bytes to a flow, or to the reason why there is none. Only what the
 * programs understand in full gets through: no fragments, no IPv4 options, no
 * IPv6 extension headers, no VLAN tags.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "layouts are written for little endian");

#define ETH_LEN 14
#define IPV4_LEN 20
#define IPV6_LEN 40
#define L4_MIN 8 /* UDP and ICMP headers; of SCTP we read no more than that */
#define TCP_LEN 20

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_IPV6 0x86dd

enum {
	PROTO_HOPOPTS = 0,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_AH = 51,
	PROTO_ICMPV6 = 58,
	PROTO_DSTOPTS = 60,
	PROTO_SCTP = 132,
	PROTO_MOBILITY = 135,
	PROTO_HIP = 139,
	PROTO_SHIM6 = 140,
};

enum {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_REDIRECT = 5,
	ICMP_ECHO_REQUEST = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER = 12,

	ICMPV6_UNREACHABLE = 1,
	ICMPV6_PARAMETER = 4, /* 2: packet too big, 3: time exceeded */
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_ROUTER_SOLICIT = 133,
	ICMPV6_NEIGHBOUR_SOLICIT = 135,
	ICMPV6_NEIGHBOUR_ADVERT = 136,
	ICMPV6_REDIRECT = 137,
};

struct ethernet {
	__u8 dst[6];
	__u8 src[6];
	__be16 type;
};

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__sum16 checksum;
	__be32 src;
	__be32 dst;
};

struct ipv6 {
	__be32 version_class_flow;
	__be16 length;
	__u8 next;
	__u8 hops;
	__u8 src[16];
	__u8 dst[16];
};

struct ports {
	__be16 src;
	__be16 dst;
};

struct icmp {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id; /* of an echo */
	__be16 sequence;
};

union addr {
	__u8 b[16];
	__u32 w[4];
	__u64 d[2];
};

#define V4_MAPPED bpf_htonl(0xffff) /* w[2] of an IPv4 address */

#define PKT_OPENS (1U << 0)   /* only ever the first packet of a flow: SYN, echo request */
#define PKT_RELATED (1U << 1) /* ICMP error; the flow is that of the packet it cites */
#define PKT_NO_NEW (1U << 2)  /* judged if it belongs to no flow, but opens none: echo reply */
#define PKT_NO_FLOW (1U << 3) /* has no flow, judged each time: other ICMP messages */

/*
 * What parsing finds. The flow of an ICMP error is the one it reports on, in the
 * direction in which the error travels: src is the receiver of the cited packet.
 */
struct packet {
	union addr src; /* IPv4 as ::ffff:a.b.c.d */
	union addr dst;
	__be16 src_port; /* echo: identifier, both */
	__be16 dst_port;
	__be16 policy_port; /* what policy rows match; ICMP: type */
	__be16 ethertype;
	__u32 ifindex;
	__u8 protocol;
	__u8 tcp;	/* CT_TCP_* */
	__u8 flags;	/* PKT_* */
	__u8 direction; /* enum direction: which hook */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 pad[2];
};

/* Results of parse() beside 0 (a flow) and enum reason (drop). */
#define PARSED_ARP (-1)
#define PARSED_ND (-2)

/* Volatile, or the compiler keeps pointers across a check that the verifier wants redone. */
static __always_inline void *packet_start(const struct __sk_buff *skb)
{
	return (void *)(long)*(const volatile __u32 *)&skb->data;
}

static __always_inline void *packet_end(const struct __sk_buff *skb)
{
	return (void *)(long)*(const volatile __u32 *)&skb->data_end;
}

/*
 * The first len bytes of the packet, or NULL if it is shorter. May pull them from
 * a page fragment, so every pointer into the packet from before is void.
 */
static __always_inline void *header(struct __sk_buff *skb, __u32 len)
{
	void *data = packet_start(skb);

	if (data + len <= packet_end(skb))
		return data;
	if (bpf_skb_pull_data(skb, len))
		return 0;
	data = packet_start(skb);
	if (data + len > packet_end(skb))
		return 0;
	return data;
}

static __always_inline bool is_icmp(const struct packet *p)
{
	return p->protocol == PROTO_ICMP || p->protocol == PROTO_ICMPV6;
}

static __always_inline __be16 echo_request(const struct packet *p)
{
	return p->ethertype == bpf_htons(ETHERTYPE_IPV4) ? bpf_htons(ICMP_ECHO_REQUEST) :
							   bpf_htons(ICMPV6_ECHO_REQUEST);
}

/* The flow of a packet that an ICMP error cites: protocol and first 8 bytes. */
static __always_inline int parse_cited(struct packet *p, __u8 protocol, const void *l4)
{
	p->protocol = protocol;
	p->flags = PKT_RELATED;
	if (protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP) {
		const struct ports *ports = l4;

		p->src_port = ports->dst;
		p->dst_port = ports->src;
		p->policy_port = p->dst_port;
		return 0;
	}
	if (is_icmp(p)) {
		const struct icmp *icmp = l4;
		__be16 request = echo_request(p);
		__be16 reply = p->protocol == PROTO_ICMP ? bpf_htons(ICMP_ECHO_REPLY) :
							   bpf_htons(ICMPV6_ECHO_REPLY);
		__be16 type = bpf_htons(icmp->type);

		if (type != request && type != reply)
			return REASON_ICMP_UNSOLICITED;
		p->src_port = p->dst_port = icmp->id;
		p->policy_port = request;
		return 0;
	}
	return REASON_ICMP_UNSOLICITED;
}

/* An ICMPv4 message; src, dst and direction are set. */
static __noinline int parse_icmp4(struct __sk_buff *skb, struct packet *p)
{
	const __u32 outer = ETH_LEN + IPV4_LEN + sizeof(struct icmp);
	void *data = header(skb, outer);
	struct icmp *icmp;
	struct ipv4 *ip;

	if (!data)
		return REASON_MALFORMED;
	icmp = data + ETH_LEN + IPV4_LEN;
	p->icmp_type = icmp->type;
	p->icmp_code = icmp->code;
	p->policy_port = bpf_htons(icmp->type);
	switch (icmp->type) {
	case ICMP_ECHO_REQUEST:
		p->flags = PKT_OPENS;
		p->src_port = p->dst_port = icmp->id;
		return 0;
	case ICMP_ECHO_REPLY:
		p->flags = PKT_NO_NEW;
		p->src_port = p->dst_port = icmp->id;
		return 0;
	case ICMP_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER:
		break;
	case ICMP_SOURCE_QUENCH:
	case ICMP_REDIRECT:
		return REASON_ICMP_UNSOLICITED;
	default:
		p->flags = PKT_NO_FLOW;
		return 0;
	}

	data = header(skb, outer + IPV4_LEN + L4_MIN);
	if (!data)
		return REASON_MALFORMED;
	ip = data + outer;
	if (ip->version_ihl != 0x45 || (ip->fragment & bpf_htons(0x1fff)))
		return REASON_ICMP_UNSOLICITED;
	/* An error goes to who sent the packet, and a container reports on its own only. */
	if (ip->src != p->dst.w[3] || (p->direction == DIR_EGRESS && ip->dst != p->src.w[3]))
		return REASON_ICMP_UNSOLICITED;
	p->src.w[3] = ip->dst;
	return parse_cited(p, ip->protocol == PROTO_ICMPV6 ? 0 : ip->protocol,
			   data + outer + IPV4_LEN);
}

/* An ICMPv6 message, neighbour discovery aside; src, dst and direction are set. */
static __noinline int parse_icmp6(struct __sk_buff *skb, struct packet *p)
{
	const __u32 outer = ETH_LEN + IPV6_LEN + sizeof(struct icmp);
	void *data = header(skb, outer);
	union addr *src, *dst;
	struct icmp *icmp;
	struct ipv6 *ip;

	if (!data)
		return REASON_MALFORMED;
	icmp = data + ETH_LEN + IPV6_LEN;
	p->icmp_type = icmp->type;
	p->icmp_code = icmp->code;
	p->policy_port = bpf_htons(icmp->type);
	if (icmp->type == ICMPV6_ECHO_REQUEST) {
		p->flags = PKT_OPENS;
		p->src_port = p->dst_port = icmp->id;
		return 0;
	}
	if (icmp->type == ICMPV6_ECHO_REPLY) {
		p->flags = PKT_NO_NEW;
		p->src_port = p->dst_port = icmp->id;
		return 0;
	}
	if (icmp->type < ICMPV6_UNREACHABLE || icmp->type > ICMPV6_PARAMETER) {
		p->flags = PKT_NO_FLOW;
		return 0;
	}

	data = header(skb, outer + IPV6_LEN + L4_MIN);
	if (!data)
		return REASON_MALFORMED;
	ip = data + outer;
	if ((ip->version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return REASON_ICMP_UNSOLICITED;
	src = (union addr *)ip->src;
	dst = (union addr *)ip->dst;
	if (src->d[0] != p->dst.d[0] || src->d[1] != p->dst.d[1])
		return REASON_ICMP_UNSOLICITED;
	if (p->direction == DIR_EGRESS && (dst->d[0] != p->src.d[0] || dst->d[1] != p->src.d[1]))
		return REASON_ICMP_UNSOLICITED;
	p->src.d[0] = dst->d[0];
	p->src.d[1] = dst->d[1];
	return parse_cited(p, ip->next == PROTO_ICMP ? 0 : ip->next, data + outer + IPV6_LEN);
}

static __always_inline int parse_ports(struct __sk_buff *skb, struct packet *p, const __u32 l3_len)
{
	const __u32 l4 = ETH_LEN + l3_len;
	struct ports *ports;
	void *data;

	if (p->protocol == PROTO_TCP) {
		__u8 f; /* 1 FIN, 2 SYN, 4 RST, 16 ACK */

		data = header(skb, l4 + TCP_LEN);
		if (!data)
			return REASON_MALFORMED;
		f = *(__u8 *)(data + l4 + 13);
		p->tcp = (f & 2 ? CT_TCP_SYN : CT_TCP_DATA) | (f & 1 ? CT_TCP_FIN : 0) |
			 (f & 4 ? CT_TCP_RST : 0);
		if ((f & 18) == 2)
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
	if (ip->version_ihl != 0x45)
		return (ip->version_ihl >> 4) == 4 && (ip->version_ihl & 15) > 5 ?
			       REASON_IPV4_OPTIONS :
			       REASON_MALFORMED;
	/* 224.0.0.0/4, 255.255.255.255, or sent to all on the link */
	if ((ip->dst & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || ip->dst == 0xffffffff ||
	    (eth->dst[0] & 1))
		return REASON_MULTICAST;
	if (ip->fragment & bpf_htons(0x3fff)) /* offset, or more to come */
		return REASON_FRAGMENT;
	switch (ip->protocol) {
	case PROTO_TCP:
	case PROTO_UDP:
	case PROTO_SCTP:
		return parse_ports(skb, p, IPV4_LEN);
	case PROTO_ICMP:
		return parse_icmp4(skb, p);
	}
	return REASON_UNKNOWN_PROTOCOL;
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
	switch (next) {
	case PROTO_TCP:
	case PROTO_UDP:
	case PROTO_SCTP:
		return parse_ports(skb, p, IPV6_LEN);
	case PROTO_ICMPV6:
		return parse_icmp6(skb, p);
	case PROTO_FRAGMENT:
		return REASON_FRAGMENT;
	case PROTO_HOPOPTS:
	case PROTO_ROUTING:
	case PROTO_AH:
	case PROTO_DSTOPTS:
	case PROTO_MOBILITY:
	case PROTO_HIP:
	case PROTO_SHIM6:
		return REASON_EXTENSION_HEADER;
	}
	return REASON_UNKNOWN_PROTOCOL;
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
