/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One entry a flow, found by one lookup whichever way a packet goes.
 *
 * A verdict in an entry is the pair (generation, CT_DENIED) in one aligned word.
 * It is written and read at once, so no CPU ever sees a new generation together
 * with an old verdict.
 */
#pragma once

#include "maps.h"
#include "packet.h"

#define NS_PER_SECOND 1000000000ULL

/* Of CLOCK_MONOTONIC, late by a jiffy at most. */
static __always_inline __u32 now_seconds(void)
{
	__u32 zero = 0, jiffy = bpf_jiffies64(), seconds;
	struct clock *c = bpf_map_lookup_elem(&clock, &zero);
	__u64 word;

	if (!c)
		return 0;
	word = *(volatile __u64 *)c;
	if (word >> 32 == jiffy && (__u32)word)
		return (__u32)word;
	seconds = bpf_ktime_get_coarse_ns() / NS_PER_SECOND;
	*(volatile __u64 *)c = seconds | (__u64)jiffy << 32;
	return seconds;
}

/* abi.Addr.GenerationSlot */
static __always_inline __u32 generation_slot(const union addr *a)
{
	return ((a->w[0] ^ a->w[1] ^ a->w[2] ^ a->w[3]) * 0x9E3779B1U) >> 20;
}

/* Sum of the generations of both addresses. */
static __always_inline __u32 generation_sum(const struct packet *p)
{
	__u32 zero = 0;
	struct generations *g = bpf_map_lookup_elem(&generations, &zero);

	if (!g)
		return 0;
	return *(volatile __u32 *)&g->slot[generation_slot(&p->src)] +
	       *(volatile __u32 *)&g->slot[generation_slot(&p->dst)];
}

/*
 * The same, and no later load of this CPU is done before it (an atomic that
 * returns a value acquires): policy rows must not be older than the generation
 * under which they are read.
 */
static __always_inline __u32 generation_sum_acquire(const struct packet *p)
{
	__u32 zero = 0;
	struct generations *g = bpf_map_lookup_elem(&generations, &zero);

	if (!g)
		return 0;
	return __sync_fetch_and_add(&g->slot[generation_slot(&p->src)], 0) +
	       __sync_fetch_and_add(&g->slot[generation_slot(&p->dst)], 0);
}

struct judged {
	__u32 generation;
	__u32 flags;
};

static __always_inline struct judged ct_judged(const struct ct_value *ct)
{
	__u64 word = *(const volatile __u64 *)&ct->generation;

	return (struct judged){ .generation = (__u32)word, .flags = word >> 32 };
}

static __always_inline void ct_set_judged(struct ct_value *ct, struct judged j)
{
	*(volatile __u64 *)&ct->generation = j.generation | (__u64)j.flags << 32;
}

static __always_inline bool ct_expired(const struct ct_value *ct, __u32 now)
{
	return (__s32)(ct->expires - now) <= 0;
}

/* The side of p's source in an entry. */
static __always_inline __u32 ct_src_side(const struct packet *p)
{
	__u64 src, dst;

	if (p->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		src = bpf_ntohl(p->src.w[3]);
		dst = bpf_ntohl(p->dst.w[3]);
	} else {
		src = bpf_be64_to_cpu(p->src.d[0]);
		dst = bpf_be64_to_cpu(p->dst.d[0]);
		if (src == dst) {
			src = bpf_be64_to_cpu(p->src.d[1]);
			dst = bpf_be64_to_cpu(p->dst.d[1]);
		}
	}
	if (src == dst) {
		src = bpf_ntohs(p->src_port);
		dst = bpf_ntohs(p->dst_port);
	}
	return src > dst;
}

static __always_inline struct ct4_key ct4_key_of(const struct packet *p, __u32 side)
{
	struct ct4_key key = { .protocol = p->protocol };

	key.addr[0] = side ? p->dst.w[3] : p->src.w[3];
	key.addr[1] = side ? p->src.w[3] : p->dst.w[3];
	key.port[0] = side ? p->dst_port : p->src_port;
	key.port[1] = side ? p->src_port : p->dst_port;
	return key;
}

static __always_inline struct ct6_key ct6_key_of(const struct packet *p, __u32 side)
{
	struct ct6_key key = { .protocol = p->protocol };

	if (side) {
		__builtin_memcpy(key.addr[0], p->dst.b, 16);
		__builtin_memcpy(key.addr[1], p->src.b, 16);
	} else {
		__builtin_memcpy(key.addr[0], p->src.b, 16);
		__builtin_memcpy(key.addr[1], p->dst.b, 16);
	}
	key.port[0] = side ? p->dst_port : p->src_port;
	key.port[1] = side ? p->src_port : p->dst_port;
	return key;
}

/* Not inline: its key would take the stack that the slow path needs. */
static __noinline struct ct_value *ct6_find(const struct packet *p, __u32 side)
{
	struct ct6_key key = ct6_key_of(p, side);

	return bpf_map_lookup_elem(&ct6, &key);
}

static __always_inline struct ct_value *ct_find(const struct packet *p, __u32 side)
{
	if (p->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		struct ct4_key key = ct4_key_of(p, side);

		return bpf_map_lookup_elem(&ct4, &key);
	}
	return ct6_find(p, side);
}

/* A packet that can only be the first of a flow, where the entry is of another. */
static __always_inline bool ct_opens_anew(const struct ct_value *ct, const struct packet *p,
					  __u32 side)
{
	if (!(p->flags & PKT_OPENS))
		return false;
	return side != (ct->flags & CT_ORIGIN) ||
	       ((ct->side[0].tcp | ct->side[1].tcp) & (CT_TCP_FIN | CT_TCP_RST));
}

static __always_inline __u32 ct_lifetime(const struct config *cfg, __u8 protocol, __u8 tcp0,
					 __u8 tcp1, __u32 flags)
{
	if (protocol != PROTO_TCP && protocol != PROTO_SCTP)
		return cfg->other_seconds;
	if (((tcp0 | tcp1) & CT_TCP_RST) || (tcp0 & tcp1 & CT_TCP_FIN))
		return cfg->tcp_closing_seconds;
	return flags & CT_SEEN_REPLY ? cfg->tcp_established_seconds : cfg->tcp_syn_seconds;
}

/*
 * Notes a packet of the flow. Writes only what changes: a busy flow dirties its
 * cache line once a second.
 */
static __always_inline void ct_touch(struct ct_value *ct, const struct packet *p,
				     const struct config *cfg, __u32 side, __u32 flags, __u32 now)
{
	struct ct_side *from = &ct->side[side & 1];
	__u32 expires;

	if (p->flags & PKT_RELATED)
		return;
	if (side != (flags & CT_ORIGIN) && !(flags & CT_SEEN_REPLY)) {
		flags |= CT_SEEN_REPLY;
		/* Atomic, or it could wipe out a CT_DENIED that another CPU sets. */
		__sync_fetch_and_or(&ct->flags, CT_SEEN_REPLY);
	}
	if (p->tcp & ~from->tcp)
		from->tcp |= p->tcp;
	expires = now + ct_lifetime(cfg, p->protocol, ct->side[0].tcp, ct->side[1].tcp, flags);
	if (ct->expires != expires)
		ct->expires = expires;
}

static __always_inline bool ct_same_place(const struct ct_side *a, const struct ct_side *b)
{
	return a->ifindex == b->ifindex && mac_equal(a->mac, b->mac);
}

/*
 * Opens the live entry old anew with v, if a connection between the same two places
 * stood in it and the same side opened that. Ports come again soon where connections
 * are many, and to replace an entry costs the LRU map as much as half the path of the
 * packet. Every store is one word, the verdict's last.
 */
static __noinline bool ct_reopen(struct ct_value *old, const struct ct_value *v)
{
	if ((old->flags & CT_ORIGIN) != (v->flags & CT_ORIGIN) ||
	    !ct_same_place(&old->side[0], &v->side[0]) ||
	    !ct_same_place(&old->side[1], &v->side[1]))
		return false;
	old->row = v->row;
	old->src_identity = v->src_identity;
	old->side[0].tcp = v->side[0].tcp;
	old->side[1].tcp = v->side[1].tcp;
	old->expires = v->expires;
	ct_set_judged(old, (struct judged){ v->generation, v->flags });
	return true;
}

/* Opens a flow from p. 0, or an error if the map takes no more. */
static __noinline int ct_create(const struct packet *p, __u32 side, const struct ct_value *v)
{
	if (p->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		struct ct4_key key = ct4_key_of(p, side);

		return bpf_map_update_elem(&ct4, &key, v, BPF_ANY);
	}
	struct ct6_key key = ct6_key_of(p, side);

	return bpf_map_update_elem(&ct6, &key, v, BPF_ANY);
}
