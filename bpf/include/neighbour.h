/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ARP and IPv6 neighbour discovery. A container asks, and gets the gateway's MAC
 * for every address but its own: so it needs no neighbour entries and learns
 * nothing about others. The answer is the question, rewritten and sent back out
 * of the interface it came from (the egress hook sees it).
 */
#pragma once

#include "event.h"
#include "ipcache.h"

#define ARP_LEN 28
#define ARP_REQUEST 1
#define ARP_REPLY 2
#define ND_LEN 24	/* solicitation and advertisement without options */
#define ND_OPTION_LEN 8 /* one link-layer address */
#define ND_ANSWER_LEN (ETH_LEN + IPV6_LEN + ND_LEN + ND_OPTION_LEN)

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 op;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

struct nd {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 flags;
	union addr target;
};

struct nd_answer {
	struct nd nd;
	__u8 option;
	__u8 option_len; /* in 8 bytes */
	__u8 mac[6];
};

/* What an ICMPv6 checksum covers. */
struct nd_checksummed {
	union addr src;
	union addr dst;
	__be32 length;
	__be32 next;
	struct nd_answer answer;
};

static __always_inline bool is_link_local(const union addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

static __always_inline int pass(struct __sk_buff *skb, enum direction direction)
{
	count(COUNTER_INDEX(REASON_FORWARDED, (__u32)direction), skb->len);
	return TC_ACT_OK;
}

static __always_inline int send_back(struct __sk_buff *skb)
{
	count(COUNTER_INDEX(REASON_FORWARDED, DIR_EGRESS), skb->len);
	return bpf_redirect(skb->ifindex, 0);
}

static __noinline int arp_from_container(struct __sk_buff *skb, struct packet *p)
{
	struct trace t = { .direction = DIR_EGRESS };
	const struct config *cfg = config_get();
	struct endpoint_value *own = endpoint_find(p->ifindex);
	struct ethernet *eth = header(skb, ETH_LEN + ARP_LEN);
	struct arp *arp;
	__be32 target;

	if (!eth || !cfg)
		return drop(skb, p, &t, REASON_MALFORMED);
	arp = (void *)eth + ETH_LEN;
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETHERTYPE_IPV4) ||
	    arp->hardware_len != 6 || arp->protocol_len != 4)
		return drop(skb, p, &t, REASON_MALFORMED);
	p->src.w[2] = p->dst.w[2] = V4_MAPPED;
	p->src.w[3] = arp->sender;
	p->dst.w[3] = target = arp->target;
	if (!own)
		return drop(skb, p, &t, REASON_NO_ENDPOINT);
	t.endpoint = own->id;
	if (!mac_equal(eth->src, own->mac) || !mac_equal(arp->sender_mac, own->mac))
		return drop(skb, p, &t, REASON_SPOOFED_MAC);
	if (!arp->sender) /* a probe: is this address taken? */
		return drop(skb, p, &t, REASON_NEIGHBOUR);
	if (arp->sender != own->ipv4)
		return drop(skb, p, &t, REASON_SPOOFED_ADDRESS);
	if (arp->op == bpf_htons(ARP_REPLY)) /* the host asked */
		return pass(skb, DIR_EGRESS);
	if (arp->op != bpf_htons(ARP_REQUEST) || target == own->ipv4)
		return drop(skb, p, &t, REASON_NEIGHBOUR);

	__builtin_memcpy(eth->dst, own->mac, 6);
	__builtin_memcpy(eth->src, cfg->gateway_mac, 6);
	arp->op = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->target_mac, own->mac, 6);
	arp->target = own->ipv4;
	__builtin_memcpy(arp->sender_mac, cfg->gateway_mac, 6);
	arp->sender = target;
	return send_back(skb);
}

static __always_inline __sum16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Turns a solicitation for target into the gateway's answer. */
static __noinline int nd_answer(struct __sk_buff *skb, struct packet *p, const union addr *target)
{
	struct nd_checksummed c = {
		.length = bpf_htonl(ND_LEN + ND_OPTION_LEN),
		.next = bpf_htonl(PROTO_ICMPV6),
		.answer.nd.type = ICMPV6_NEIGHBOUR_ADVERT,
		.answer.nd.flags = bpf_htonl(0xe0000000), /* router, solicited, override */
		.answer.option = 2,			  /* target's link-layer address */
		.answer.option_len = 1,
	};
	struct trace t = { .direction = DIR_EGRESS };
	const struct config *cfg = config_get();
	struct endpoint_value *own = endpoint_find(p->ifindex);
	struct ethernet *eth;
	struct ipv6 *ip;
	long sum;

	if (!cfg || !own)
		return drop(skb, p, &t, REASON_NO_ENDPOINT);
	t.endpoint = own->id;
	if (skb->len != ND_ANSWER_LEN && bpf_skb_change_tail(skb, ND_ANSWER_LEN, 0))
		return drop(skb, p, &t, REASON_MALFORMED);
	c.src = c.answer.nd.target = *target;
	c.dst = p->src;
	__builtin_memcpy(c.answer.mac, cfg->gateway_mac, 6);
	sum = bpf_csum_diff(0, 0, (void *)&c, sizeof(c), 0);
	if (sum < 0)
		return drop(skb, p, &t, REASON_MALFORMED);
	c.answer.nd.checksum = fold(sum);

	eth = header(skb, ND_ANSWER_LEN);
	if (!eth)
		return drop(skb, p, &t, REASON_MALFORMED);
	__builtin_memcpy(eth->dst, own->mac, 6);
	__builtin_memcpy(eth->src, cfg->gateway_mac, 6);
	ip = (void *)eth + ETH_LEN;
	ip->length = bpf_htons(ND_LEN + ND_OPTION_LEN);
	ip->hops = 255;
	__builtin_memcpy(ip->src, c.src.b, 16);
	__builtin_memcpy(ip->dst, c.dst.b, 16);
	__builtin_memcpy((void *)ip + IPV6_LEN, &c.answer, sizeof(c.answer));
	return send_back(skb);
}

static __noinline int nd_from_container(struct __sk_buff *skb, struct packet *p)
{
	struct trace t = { .direction = DIR_EGRESS };
	struct endpoint_value *own = endpoint_find(p->ifindex);
	struct ethernet *eth;
	union addr *own_addr;
	union addr target;
	struct ipv6 *ip;
	struct nd *nd;
	bool own_target;

	/* Containers have no business with routers, nor are they one. */
	if (p->icmp_type != ICMPV6_NEIGHBOUR_SOLICIT && p->icmp_type != ICMPV6_NEIGHBOUR_ADVERT)
		return drop(skb, p, &t, REASON_NEIGHBOUR);
	eth = header(skb, ETH_LEN + IPV6_LEN + ND_LEN);
	if (!eth)
		return drop(skb, p, &t, REASON_MALFORMED);
	ip = (void *)eth + ETH_LEN;
	nd = (void *)ip + IPV6_LEN;
	p->icmp_code = nd->code;
	target = nd->target;
	if (ip->hops != 255 || nd->code || target.b[0] == 0xff)
		return drop(skb, p, &t, REASON_MALFORMED);
	if (!own)
		return drop(skb, p, &t, REASON_NO_ENDPOINT);
	t.endpoint = own->id;
	if (!mac_equal(eth->src, own->mac))
		return drop(skb, p, &t, REASON_SPOOFED_MAC);
	if (!(p->src.d[0] | p->src.d[1])) /* duplicate address detection */
		return drop(skb, p, &t, REASON_NEIGHBOUR);
	own_addr = (union addr *)own->ipv6;
	if (!is_link_local(&p->src) &&
	    (p->src.d[0] != own_addr->d[0] || p->src.d[1] != own_addr->d[1]))
		return drop(skb, p, &t, REASON_SPOOFED_ADDRESS);
	own_target = (target.d[0] == p->src.d[0] && target.d[1] == p->src.d[1]) ||
		     (target.d[0] == own_addr->d[0] && target.d[1] == own_addr->d[1]);
	if (p->icmp_type == ICMPV6_NEIGHBOUR_ADVERT) {
		if (p->dst.b[0] == 0xff)
			return drop(skb, p, &t, REASON_NEIGHBOUR);
		if (!own_target && !is_link_local(&target))
			return drop(skb, p, &t, REASON_SPOOFED_ADDRESS);
		return pass(skb, DIR_EGRESS); /* the host asked */
	}
	if (own_target)
		return drop(skb, p, &t, REASON_NEIGHBOUR);
	return nd_answer(skb, p, &target);
}

/*
 * Into a container: what we answered it, and the host's own questions. Hop limit
 * 255 says that it comes from this link, that is from the host.
 */
static __noinline int nd_to_container(struct __sk_buff *skb, struct packet *p)
{
	struct trace t = { .direction = DIR_INGRESS };
	struct ethernet *eth = header(skb, ETH_LEN + IPV6_LEN + ND_LEN);
	struct ipv6 *ip;

	if (p->icmp_type != ICMPV6_NEIGHBOUR_SOLICIT && p->icmp_type != ICMPV6_NEIGHBOUR_ADVERT)
		return drop(skb, p, &t, REASON_NEIGHBOUR);
	if (!eth)
		return drop(skb, p, &t, REASON_MALFORMED);
	ip = (void *)eth + ETH_LEN;
	if (ip->hops != 255)
		return drop(skb, p, &t, REASON_MALFORMED);
	return pass(skb, DIR_INGRESS);
}
