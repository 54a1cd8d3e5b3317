/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Counters and the ring buffer. Every packet that the programs see ends in
 * exactly one count(), or two when it goes straight from one container into
 * another; every drop goes through drop().
 */
#pragma once

#include "ipcache.h"
#include "maps.h"
#include "packet.h"

#define TC_ACT_UNSPEC -1
#define TC_ACT_OK 0
#define TC_ACT_SHOT 2

/* What was found out about a packet on its way to a verdict. */
struct trace {
	__u64 row;
	__u64 table;
	__u64 src_peer;
	__u64 dst_peer;
	__u32 endpoint;
	__u8 direction; /* enum direction: whose policy or check decided */
	__u8 flags;	/* TRACE_* */
	__u8 verdict;	/* enum verdict: of the rows seen so far */
	__u8 audited;	/* enum reason: why it were dropped, but for audit mode; else 0 */
};

#define TRACE_AGAIN (1U << 0)	 /* of a flow admitted before: names do not expire for it */
#define TRACE_BACKWARD (1U << 1) /* the packet goes to the side that opened the flow */
#define TRACE_DNS (1U << 2)	 /* allowed for the DNS proxy, and nobody else */
#define TRACE_AROUND (1U << 3)	 /* the same of the far side's policy: this is around the proxy */
#define TRACE_AUDITED (1U << 4)	 /* row is that of a deny in audit mode, or of a deny */
#define TRACE_NAMED (1U << 5)	 /* allowed by a name, which expires */

static __always_inline void count(__u32 index, __u64 bytes)
{
	struct counter_value *c = bpf_map_lookup_elem(&counters, &index);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
}

static __noinline void emit(struct __sk_buff *skb, const struct packet *p, const struct trace *t,
			    enum event_type type, enum reason reason)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count(COUNTER_LOST_EVENTS, skb->len);
		return;
	}
	e->time_ns = bpf_ktime_get_boot_ns();
	e->row = t->row;
	e->table = t->table;
	e->src_peer = t->src_peer;
	e->dst_peer = t->dst_peer;
	__builtin_memcpy(e->src, p->src.b, sizeof(e->src));
	__builtin_memcpy(e->dst, p->dst.b, sizeof(e->dst));
	e->src_port = p->src_port;
	e->dst_port = p->dst_port;
	e->protocol = p->protocol;
	if (is_icmp(p) || (p->flags & PKT_RELATED)) {
		e->src_port = bpf_htons(p->icmp_type);
		e->dst_port = bpf_htons(p->icmp_code);
		e->protocol = p->ethertype == bpf_htons(ETHERTYPE_IPV4) ? PROTO_ICMP : PROTO_ICMPV6;
	}
	e->length = skb->len;
	e->endpoint = t->endpoint;
	e->ifindex = p->ifindex;
	e->type = type;
	e->direction = t->direction;
	e->reason = reason;
	e->ethertype = p->ethertype;
	e->pad = 0;
	bpf_ringbuf_submit(e, 0);
}

/* Tells what would have dropped p, were nothing in audit mode. */
static __always_inline void tell_audited(struct __sk_buff *skb, const struct packet *p,
					 const struct trace *t)
{
	if (!t->audited)
		return;
	count(COUNTER_AUDITED((__u32)t->audited, (__u32)t->direction), skb->len);
	emit(skb, p, t, EVENT_AUDITED, t->audited);
}

/* What every interface does on its own, or is no drop yet, is counted but is no event. */
static __always_inline bool is_noise(enum reason reason)
{
	return reason == REASON_MULTICAST || reason == REASON_NEIGHBOUR ||
	       reason == REASON_FRAGMENT_HELD;
}

/*
 * The one way out for a packet that goes no further. While programs of an older
 * layout stand behind these, they have the last word: their flows may not be known
 * here yet. Global: verified once.
 */
__noinline int drop(struct __sk_buff *skb, const struct packet *p, const struct trace *t,
		    enum reason reason)
{
	const struct config *cfg = config_get();

	if (!p || !t)
		return TC_ACT_SHOT;
	if (cfg && cfg->handover)
		return TC_ACT_UNSPEC;
	count(COUNTER_INDEX((__u32)reason, (__u32)t->direction), skb->len);
	if (!is_noise(reason))
		emit(skb, p, t, EVENT_DROP, reason);
	return TC_ACT_SHOT;
}
