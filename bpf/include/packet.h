/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Headers as they are on the wire, and what parsing makes of them. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "layouts are written for little endian");

#define ETH_LEN 14
#define IPV4_LEN 20
#define IPV6_LEN 40
#define L4_MIN 8 /* UDP and ICMP headers; what an ICMP error cites at least */
#define TCP_LEN 20
#define SCTP_LEN 16 /* header, and that of the first chunk */

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

/* An SCTP packet up to its first chunk: RFC 9260. */
struct sctp {
	struct ports ports;
	__be32 tag;
	__be32 checksum;
	__u8 chunk;
	__u8 chunk_flags;
	__be16 chunk_length;
};

enum {
	SCTP_INIT = 1,
	SCTP_ABORT = 6,
	SCTP_SHUTDOWN = 7,
	SCTP_SHUTDOWN_ACK = 8,
	SCTP_SHUTDOWN_COMPLETE = 14,
};

union addr {
	__u8 b[16];
	__u32 w[4];
	__u64 d[2];
};

#define V4_MAPPED bpf_htonl(0xffff) /* w[2] of an IPv4 address */

#define PKT_OPENS (1U << 0)   /* only ever the first of a flow: SYN, INIT, echo request */
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
	union {
		__u32 fragment_id; /* of a fragment */
		__u32 cited;	   /* ICMP error: where the packet that it cites begins */
	};
};

/* Results of parse() beside 0 (a flow) and enum reason (drop). */
#define PARSED_ARP (-1)
#define PARSED_ND (-2)
#define PARSED_HOLD (-3)    /* a fragment whose first is not known yet */
#define PARSED_RELEASE (-4) /* a first fragment for which others are held */

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

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	return *(const __u32 *)a == *(const __u32 *)b &&
	       *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

static __always_inline bool addr_equal(const union addr *a, const union addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

/* Bits of struct ct_side.tcp for the flags of a TCP header: 1 FIN, 2 SYN, 4 RST, 16 ACK. */
static __always_inline __u8 tcp_state(__u8 f)
{
	return (f & 2 ? CT_TCP_SYN : CT_TCP_DATA) | (f & 1 ? CT_TCP_FIN : 0) |
	       (f & 4 ? CT_TCP_RST : 0);
}

static __always_inline bool tcp_opens(__u8 f)
{
	return (f & 18) == 2;
}
