//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The two programs on the host side of every veth pair. README.md draws the path
 * of a packet.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "conntrack.h"
#include "event.h"
#include "held.h"
#include "ipcache.h"
#include "maps.h"
#include "neighbour.h"
#include "parse.h"
#include "policy.h"

/* Before any policy has been asked. */
static __noinline int drop_early(struct __sk_buff *skb, const struct packet *p, __u32 endpoint,
				 enum reason reason)
{
	struct trace t = { .direction = p->direction, .endpoint = endpoint };

	return drop(skb, p, &t, reason);
}

/* Sends an admitted packet on. to is the far side, ifindex 0: not local. */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *p,
				   const struct config *cfg, const struct ct_side *to)
{
	struct ethernet *eth;

	if (p->direction == DIR_INGRESS)
		return pass(skb, DIR_INGRESS);
	count(COUNTER_INDEX(REASON_FORWARDED, DIR_EGRESS), skb->len);
	if (!to->ifindex)
		return TC_ACT_OK; /* the host's stack routes it */
	eth = packet_start(skb);
	if ((void *)(eth + 1) > packet_end(skb))
		return TC_ACT_SHOT; /* cannot be: parse() has read it */
	__builtin_memcpy(eth->dst, to->mac, 6);
	__builtin_memcpy(eth->src, cfg->gateway_mac, 6);
	count(COUNTER_INDEX(REASON_FORWARDED, DIR_INGRESS), skb->len);
	return bpf_redirect_peer(to->ifindex, 0);
}

/* Whether own may send p, or is who p is for. 0 or the reason to drop. */
static __always_inline int check_owner(struct __sk_buff *skb, const struct packet *p,
				       const struct endpoint_value *own)
{
	bool egress = p->direction == DIR_EGRESS;
	const union addr *addr = egress ? &p->src : &p->dst;
	const union addr *ipv6 = (const union addr *)own->ipv6;
	struct ethernet *eth = packet_start(skb);
	bool match;

	if (egress) {
		if ((void *)(eth + 1) > packet_end(skb))
			return REASON_MALFORMED;
		if (!mac_equal(eth->src, own->mac))
			return REASON_SPOOFED_MAC;
	}
	if (p->ethertype == bpf_htons(ETHERTYPE_IPV4))
		match = own->ipv4 && addr->w[3] == own->ipv4;
	else
		match = (ipv6->d[0] | ipv6->d[1]) && addr->d[0] == ipv6->d[0] &&
			addr->d[1] == ipv6->d[1];
	if (match)
		return 0;
	return egress ? REASON_SPOOFED_ADDRESS : REASON_NO_ENDPOINT;
}

static __always_inline void set_side(struct ct_side *side, __u32 ifindex, const __u8 *mac)
{
	if (side->ifindex == ifindex && mac_equal(side->mac, mac))
		return;
	__builtin_memcpy(side->mac, mac, 6);
	side->ifindex = ifindex;
}

/* The first packet of a flow, or one that has no flow. closed: its live entry, if any. */
static __noinline int open_flow(struct __sk_buff *skb, const struct packet *p,
				const struct endpoint_value *own, struct ct_value *closed)
{
	struct trace t = { .direction = p->direction, .endpoint = own->id };
	const struct config *cfg = config_get();
	__u32 src = ct_src_side(p);
	struct ct_value ct = {};
	struct ct_side other = {};
	struct ct_side self = { .ifindex = p->ifindex };
	int reason;

	if (!cfg)
		return TC_ACT_SHOT;
	if (p->flags & PKT_RELATED)
		return drop(skb, p, &t, REASON_ICMP_UNSOLICITED);
	ct.generation = generation_sum_acquire(p); /* before any row is read */
	reason = judge(p, own, true, &t, &other);
	if (reason)
		return drop(skb, p, &t, reason);
	if (p->flags & (PKT_NO_NEW | PKT_NO_FLOW))
		return deliver(skb, p, cfg, &other);

	ct.row = t.row;
	ct.flags = src;
	ct.src_identity = (__u32)t.src_peer;
	ct.expires = now_seconds() + ct_lifetime(cfg, p->protocol, p->tcp, 0, 0);
	__builtin_memcpy(self.mac, own->mac, 6);
	if (p->direction == DIR_EGRESS) {
		self.tcp = p->tcp;
		ct.side[0] = src ? other : self;
		ct.side[1] = src ? self : other;
	} else {
		/* It came through the host's stack (which may translate addresses), and
		 * so do its replies, even if the sender is local. */
		struct ct_side host = { .tcp = p->tcp };

		ct.side[0] = src ? self : host;
		ct.side[1] = src ? host : self;
	}
	if (!(closed && ct_reopen(closed, &ct)) && ct_create(p, src, &ct))
		return drop(skb, p, &t, REASON_CT_FULL);
	if (cfg->new_flow_events)
		emit(skb, p, &t, EVENT_NEW_FLOW, REASON_FORWARDED);
	return deliver(skb, p, cfg, &other);
}

/*
 * A packet of a live flow whose verdict may be out of date, or whose interface is
 * not the one in the entry. Judged in the direction in which the flow was opened.
 */
static __noinline int judge_again(struct __sk_buff *skb, const struct packet *p,
				  const struct endpoint_value *own, struct ct_value *ct)
{
	struct trace t = { .direction = p->direction, .endpoint = own->id };
	const struct config *cfg = config_get();
	__u32 generation = generation_sum_acquire(p); /* before any row is read */
	struct judged was = ct_judged(ct);
	__u32 src = ct_src_side(p);
	__u32 mine = p->direction == DIR_EGRESS ? src : src ^ 1;
	struct ct_side other = {};
	struct ct_side *far;

	if (!cfg)
		return TC_ACT_SHOT;
	if (was.generation == generation && (was.flags & CT_DENIED)) {
		t.row = ct->row;
		return drop(skb, p, &t, REASON_POLICY_REVOKED);
	}
	if (judge(p, own, src == (was.flags & CT_ORIGIN), &t, &other)) {
		ct->row = t.row;
		ct_set_judged(ct, (struct judged){ generation, was.flags | CT_DENIED });
		return drop(skb, p, &t, REASON_POLICY_REVOKED);
	}
	ct->row = t.row;
	set_side(&ct->side[mine & 1], p->ifindex, own->mac);
	far = &ct->side[(mine & 1) ^ 1];
	/* What went through the host's stack goes on through it. */
	if (far->ifindex)
		set_side(far, other.ifindex, other.mac);
	was.flags &= ~CT_DENIED;
	ct_set_judged(ct, (struct judged){ generation, was.flags });
	ct_touch(ct, p, cfg, src, was.flags, now_seconds());
	return deliver(skb, p, cfg, far);
}

/* All that is not the next packet of an established flow. Global: verified once. */
__noinline int slow(struct __sk_buff *skb, const struct packet *p, struct ct_value *ct)
{
	const struct endpoint_value *own;
	int reason;

	if (!p)
		return TC_ACT_SHOT;
	own = endpoint_find(p->ifindex);
	if (!own)
		return drop_early(skb, p, 0, REASON_NO_ENDPOINT);
	reason = check_owner(skb, p, own);
	if (reason)
		return drop_early(skb, p, own->id, reason);
	if (!ct || ct_expired(ct, now_seconds()))
		return open_flow(skb, p, own, 0);
	if (ct_opens_anew(ct, p, ct_src_side(p)))
		return open_flow(skb, p, own, ct);
	return judge_again(skb, p, own, ct);
}

/* A fragment whose first has not come. */
static __noinline int hold(struct __sk_buff *skb, const struct packet *p)
{
	const struct endpoint_value *own = endpoint_find(p->ifindex);
	int reason;

	if (!own)
		return drop_early(skb, p, 0, REASON_NO_ENDPOINT);
	reason = check_owner(skb, p, own);
	if (!reason)
		reason = held_put(skb, p) ? REASON_FRAGMENT_HELD : REASON_FRAGMENT;
	return drop_early(skb, p, own->id, reason);
}

/* A first fragment that others wait for: all come again, in order. */
static __noinline int release(struct __sk_buff *skb, const struct packet *p)
{
	int held = drop_early(skb, p, 0, REASON_FRAGMENT_HELD);

	held_release(skb, p);
	return held;
}

/* What is no flow: an answer of the parser other than 0. */
static __noinline int not_a_flow(struct __sk_buff *skb, struct packet *p, int parsed)
{
	bool egress = p->direction == DIR_EGRESS;

	switch (parsed) {
	case PARSED_ARP:
		return egress ? arp_from_container(skb, p) : pass(skb, DIR_INGRESS);
	case PARSED_ND:
		return egress ? nd_from_container(skb, p) : nd_to_container(skb, p);
	case PARSED_HOLD:
		return hold(skb, p);
	case PARSED_RELEASE:
		return release(skb, p);
	}
	return drop_early(skb, p, 0, parsed);
}

/* An established packet costs one hash lookup: the entry knows both ends. */
static __always_inline int flow(struct __sk_buff *skb, struct packet *p, const struct config *cfg)
{
	struct ct_value *ct;
	struct ct_side *mine;
	struct judged judged;
	__u32 src, now;

	if (p->flags & PKT_NO_FLOW)
		return slow(skb, p, 0);
	src = ct_src_side(p);
	ct = ct_find(p, src);
	if (!ct)
		return slow(skb, p, 0);
	judged = ct_judged(ct);
	now = now_seconds();
	mine = &ct->side[(p->direction == DIR_EGRESS ? src : src ^ 1) & 1];
	if (judged.generation != generation_sum(p) || (judged.flags & CT_DENIED) ||
	    ct_expired(ct, now) || mine->ifindex != p->ifindex || ct_opens_anew(ct, p, src))
		return slow(skb, p, ct);
	if (p->direction == DIR_EGRESS) {
		struct ethernet *eth = packet_start(skb);

		if ((void *)(eth + 1) > packet_end(skb) || !mac_equal(eth->src, mine->mac))
			return slow(skb, p, ct);
	}
	ct_touch(ct, p, cfg, src, judged.flags, now);
	return deliver(skb, p, cfg, &ct->side[(src ^ 1) & 1]);
}

/* The path of a packet at either hook. */
static __always_inline int judge_packet(struct __sk_buff *skb, enum direction direction)
{
	struct packet p = { .direction = direction, .ifindex = skb->ifindex };
	const struct config *cfg = config_get();
	int parsed;

	if (!cfg)
		return TC_ACT_SHOT;
	parsed = parse(skb, &p, cfg);
	return parsed ? not_a_flow(skb, &p, parsed) : flow(skb, &p, cfg);
}

SEC("tc") int from_container(struct __sk_buff *skb)
{
	return judge_packet(skb, DIR_EGRESS);
}

SEC("tc") int to_container(struct __sk_buff *skb)
{
	return judge_packet(skb, DIR_INGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
