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
#include "admitted.h"
#include "conntrack.h"
#include "event.h"
#include "held.h"
#include "ipcache.h"
#include "maps.h"
#include "neighbour.h"
#include "parse.h"
#include "policy.h"
#include "proxy.h"

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

/* The sides of a new entry: self is this interface's, far the other. */
static __always_inline void set_sides(struct ct_side *self, struct ct_side *far,
				      const struct packet *p, const struct endpoint_value *own,
				      const struct ct_side *other)
{
	self->ifindex = p->ifindex;
	__builtin_memcpy(self->mac, own->mac, 6);
	if (p->direction == DIR_EGRESS) {
		self->tcp = p->tcp;
		far->ifindex = other->ifindex;
		__builtin_memcpy(far->mac, other->mac, 6);
	} else {
		/* It came through the host's stack (which may translate addresses), and
		 * so do its replies, even if the sender is local. */
		far->tcp = p->tcp;
	}
}

/*
 * Makes the entry of a flow from its first packet; false if there is no room. closed: its
 * live entry, if any. Not inline: the entry would take the stack that policy needs.
 */
static __noinline bool make_entry(const struct packet *p, const struct endpoint_value *own,
				  const struct admission *a, struct ct_value *closed)
{
	const struct config *cfg = config_get();
	__u32 src = ct_src_side(p);
	struct ct_value ct = { .row = a->t.row, .generation = a->judged.generation, .flags = src };

	if (!cfg)
		return false;
	if (a->t.flags & TRACE_DNS)
		ct.flags |= CT_PROXY;
	ct.src_identity = (__u32)a->t.src_peer;
	ct.expires = now_seconds() + ct_lifetime(cfg, p->protocol, p->tcp, 0, 0);
	/* The source of p is here if it leaves, and there if it enters. */
	if ((p->direction == DIR_EGRESS) == !src)
		set_sides(&ct.side[0], &ct.side[1], p, own, &a->other);
	else
		set_sides(&ct.side[1], &ct.side[0], p, own, &a->other);
	return (closed && ct_reopen(closed, &ct)) || !ct_create(p, src, &ct);
}

/*
 * The first packet of a flow, or one that has no flow. closed: its live entry, if any.
 * Global: verified once.
 */
__noinline int open_flow(struct __sk_buff *skb, const struct packet *p,
			 const struct endpoint_value *own, __u32 generation,
			 struct ct_value *closed)
{
	struct admission a = { .judged.generation = generation };
	const struct config *cfg = config_get();
	int reason;

	if (!cfg || !p || !own)
		return TC_ACT_SHOT;
	a.t.direction = p->direction;
	a.t.endpoint = own->id;
	if (p->flags & PKT_RELATED)
		return drop(skb, p, &a.t, REASON_ICMP_UNSOLICITED);
	reason = judge_first(p, own, &a);
	if (reason == JUDGE_AGAIN)
		return JUDGE_AGAIN;
	if (reason)
		return drop(skb, p, &a.t, reason);
	tell_audited(skb, p, &a.t);
	if (p->direction == DIR_INGRESS && from_proxy(skb)) /* each is judged for itself */
		return deliver(skb, p, cfg, &a.other);
	if (a.t.flags & TRACE_AROUND)
		return drop(skb, p, &a.t, REASON_PROXY_BYPASSED);
	if (p->flags & (PKT_NO_NEW | PKT_NO_FLOW))
		return deliver(skb, p, cfg, &a.other);
	if ((a.t.flags & TRACE_DNS) && !to_proxy(skb, p))
		return drop(skb, p, &a.t, REASON_PROXY_MISSING);
	if (!make_entry(p, own, &a, closed))
		return drop(skb, p, &a.t, REASON_CT_FULL);
	if (cfg->new_flow_events && !a.t.audited)
		emit(skb, p, &a.t, EVENT_NEW_FLOW, REASON_FORWARDED);
	return deliver(skb, p, cfg, &a.other);
}

/* A packet of a flow between this hook's container and the proxy. */
static __noinline int with_proxy(struct __sk_buff *skb, const struct packet *p,
				 const struct trace *t)
{
	if (p->direction == DIR_INGRESS) {
		if (!from_proxy(skb))
			return drop(skb, p, t, REASON_PROXY_BYPASSED);
		return pass(skb, DIR_INGRESS);
	}
	if (!to_proxy(skb, p))
		return drop(skb, p, t, REASON_PROXY_MISSING);
	return pass(skb, DIR_EGRESS);
}

/* Notes in the entry of a flow that its packet was admitted again, and sends that on. */
static __noinline int confirm(struct __sk_buff *skb, const struct packet *p,
			      const struct endpoint_value *own, const struct admission *a,
			      struct ct_value *ct)
{
	const struct config *cfg = config_get();
	__u32 src = ct_src_side(p);
	__u32 mine = p->direction == DIR_EGRESS ? src : src ^ 1;
	struct judged now = { a->judged.generation, a->judged.flags & ~(CT_DENIED | CT_PROXY) };
	struct ct_side *far = &ct->side[(mine & 1) ^ 1];

	if (!cfg)
		return TC_ACT_SHOT;
	if (a->t.flags & TRACE_DNS)
		now.flags |= CT_PROXY;
	tell_audited(skb, p, &a->t);
	ct->row = a->t.row;
	set_side(&ct->side[mine & 1], p->ifindex, own->mac);
	/* What went through the host's stack goes on through it. */
	if (far->ifindex)
		set_side(far, a->other.ifindex, a->other.mac);
	ct_set_judged(ct, now);
	ct_touch(ct, p, cfg, src, now.flags, now_seconds());
	if (now.flags & CT_PROXY)
		return with_proxy(skb, p, &a->t);
	return deliver(skb, p, cfg, far);
}

/*
 * A packet of a live flow whose verdict may be out of date, or whose interface is
 * not the one in the entry. Judged in the direction in which the flow was opened.
 * Global: verified once.
 */
__noinline int judge_again(struct __sk_buff *skb, const struct packet *p,
			   const struct endpoint_value *own, __u32 generation, struct ct_value *ct)
{
	struct admission a = {};
	int reason;

	if (!p || !own || !ct)
		return TC_ACT_SHOT;
	a.t.direction = p->direction;
	a.t.endpoint = own->id;
	a.t.flags = TRACE_AGAIN;
	a.judged = ct_judged(ct);
	if (a.judged.generation == generation && (a.judged.flags & CT_DENIED)) {
		a.t.row = ct->row;
		return drop(skb, p, &a.t, REASON_POLICY_REVOKED);
	}
	a.judged.generation = generation;
	reason = judge(p, own, ct_src_side(p) == (a.judged.flags & CT_ORIGIN), &a);
	if (reason == JUDGE_AGAIN)
		return JUDGE_AGAIN;
	if (!reason && (a.t.flags & TRACE_AROUND))
		return drop(skb, p, &a.t, REASON_PROXY_BYPASSED);
	if (!reason)
		return confirm(skb, p, own, &a, ct);
	ct->row = a.t.row;
	a.judged.flags |= CT_DENIED;
	ct_set_judged(ct, a.judged);
	return drop(skb, p, &a.t, REASON_POLICY_REVOKED);
}

/* The container that p is for, if it is one that asks by the proxy. */
static __always_inline const struct endpoint_value *asking(const struct packet *p,
							   const struct endpoint_value *own)
{
	__u32 ifindex;

	if (p->direction == DIR_EGRESS) {
		ipcache_peer(&p->dst, p->ethertype, &ifindex);
		own = ifindex ? endpoint_find(ifindex) : 0;
	}
	return own && (own->egress.flags & POLICY_ASKS) ? own : 0;
}

/*
 * Whether p, which belongs to no flow, is from a server that its receiver may ask
 * by the proxy only. Were it let in, the receiver could ask around the proxy by
 * answering it.
 */
static __noinline bool is_around(const struct packet *p, const struct endpoint_value *to)
{
	struct trace t = { .endpoint = to->id, .flags = TRACE_BACKWARD };
	__u32 ifindex;
	__u64 peer;

	if (p->protocol != PROTO_UDP || (p->flags & PKT_RELATED))
		return false;
	peer = ipcache_peer(&p->src, p->ethertype, &ifindex);
	return !decide_egress(&to->egress, peer, p, p->src_port, &t) && (t.flags & TRACE_DNS);
}

/*
 * Whether p is of no flow: of none that is known, or only by its addresses of one
 * with the proxy, which it goes around.
 */
static __noinline bool is_alone(const struct packet *p, const struct ct_value *ct)
{
	__u32 src = ct_src_side(p), mine = p->direction == DIR_EGRESS ? src : src ^ 1;

	if (!ct || ct_expired(ct, now_seconds()) || ct_opens_anew(ct, p, src))
		return true;
	return (ct->flags & CT_PROXY) && mine != (ct->flags & CT_ORIGIN);
}

/*
 * Takes care of p if it is for a container that asks by the proxy, and either what
 * the proxy waits for or what must not come around it; else NO_ANSWER.
 */
static __noinline int mind_proxy(struct __sk_buff *skb, const struct packet *p,
				 const struct endpoint_value *own, const struct ct_value *ct)
{
	const struct endpoint_value *to;
	int result;

	if (from_proxy(skb) || (p->flags & PKT_OPENS))
		return NO_ANSWER;
	to = asking(p, own);
	if (!to)
		return NO_ANSWER;
	result = answer(skb, p);
	if (result == NO_ANSWER && is_alone(p, ct) && is_around(p, to))
		return drop_early(skb, p, own->id, REASON_PROXY_BYPASSED);
	return result;
}

/* What slow() does with one reading of the endpoint's row; JUDGE_AGAIN if that went. */
static __always_inline int slow_once(struct __sk_buff *skb, const struct packet *p,
				     struct ct_value *ct)
{
	__u32 generation = generation_sum_acquire(p); /* before any row is read */
	const struct endpoint_value *own = endpoint_find(p->ifindex);
	int reason;

	if (!own)
		return drop_early(skb, p, 0, REASON_NO_ENDPOINT);
	reason = check_owner(skb, p, own);
	if (reason)
		return endpoint_is(own, p->ifindex) ? drop_early(skb, p, own->id, reason) :
						      JUDGE_AGAIN;
	reason = mind_proxy(skb, p, own, ct);
	if (reason != NO_ANSWER)
		return reason;
	if (!ct || ct_expired(ct, now_seconds()))
		return open_flow(skb, p, own, generation, 0);
	if (is_alone(p, ct))
		return open_flow(skb, p, own, generation, ct);
	return judge_again(skb, p, own, generation, ct);
}

/*
 * All that is not the next packet of an established flow. A row that is updated again
 * and again while one packet is judged costs that packet. Global: verified once.
 */
__noinline int slow(struct __sk_buff *skb, const struct packet *p, struct ct_value *ct)
{
	int verdict;

	if (!p)
		return TC_ACT_SHOT;
	for (int i = 0; i < JUDGE_TRIES; i++) {
		verdict = slow_once(skb, p, ct);
		if (verdict != JUDGE_AGAIN)
			return verdict;
	}
	return drop_early(skb, p, 0, REASON_NO_ENDPOINT);
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

/* The next packet of a flow with the proxy. */
static __noinline int established(struct __sk_buff *skb, const struct packet *p,
				  struct ct_value *ct)
{
	struct trace t = { .direction = p->direction, .row = ct->row };
	const struct endpoint_value *own = endpoint_find(p->ifindex);
	const struct config *cfg = config_get();

	if (!cfg)
		return TC_ACT_SHOT;
	if (own)
		t.endpoint = own->id;
	ct_touch(ct, p, cfg, ct_src_side(p), ct->flags, now_seconds());
	return with_proxy(skb, p, &t);
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
	if (judged.flags & CT_PROXY) {
		if (p->direction == DIR_INGRESS && !from_proxy(skb))
			return slow(skb, p, ct);
		return established(skb, p, ct);
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
