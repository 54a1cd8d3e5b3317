/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What judging the first packet of a flow came to, kept for the next flow of the
 * same two addresses, protocol and port: a client that connects again and again is
 * judged once. It holds for as long as the sum of the generations stands, as what an
 * entry of conntrack says does, and for the same reason. Only admissions that have no
 * other condition are kept: none by a name, which expires, for the DNS proxy, or by
 * audit mode.
 */
#pragma once

#include "policy.h"

struct admitted {
	union addr src;
	union addr dst;
	__u32 ifindex; /* 0: nothing is kept here */
	__be16 port;   /* policy_port of the packet */
	__u8 protocol;
	__u8 direction; /* enum direction: which hook */
	struct admission admission;
};

#define ADMITTED_BITS 9

/*
 * Of each CPU its own, so that nobody else reads or writes it meanwhile. Not pinned:
 * programs that are loaded anew begin without.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << ADMITTED_BITS);
	__type(key, __u32);
	__type(value, struct admitted);
} admitted SEC(".maps");

/* Not inline: open_flow() has no room on its stack for the key. */
static __noinline struct admitted *admitted_slot(const struct packet *p)
{
	__u64 src = p->src.d[0] ^ p->src.d[1], dst = p->dst.d[0] ^ p->dst.d[1];
	__u64 mixed = (src + (dst << 1 | dst >> 63)) ^ (__u64)p->policy_port << 16 ^ p->protocol;
	__u32 slot = mixed * 0x9E3779B97F4A7C15ULL >> (64 - ADMITTED_BITS);

	return bpf_map_lookup_elem(&admitted, &slot);
}

static __always_inline bool admitted_is_of(const struct admitted *kept, const struct packet *p)
{
	return kept->ifindex == p->ifindex && addr_equal(&kept->src, &p->src) &&
	       addr_equal(&kept->dst, &p->dst) && kept->port == p->policy_port &&
	       kept->protocol == p->protocol && kept->direction == p->direction;
}

static __always_inline void admitted_keep(struct admitted *kept, const struct packet *p,
					  const struct admission *a)
{
	kept->src = p->src;
	kept->dst = p->dst;
	kept->ifindex = p->ifindex;
	kept->port = p->policy_port;
	kept->protocol = p->protocol;
	kept->direction = p->direction;
	kept->admission = *a;
}

/* judge() of a packet that opens a flow. */
static __always_inline int judge_first(const struct packet *p, const struct endpoint_value *own,
				       struct admission *a)
{
	struct admitted *kept = admitted_slot(p);
	int reason;

	if (!kept)
		return judge(p, own, true, a);
	if (admitted_is_of(kept, p) && kept->admission.judged.generation == a->judged.generation) {
		*a = kept->admission;
		/* The owner of p was asked of own, which may be another's by now. */
		return endpoint_is(own, p->ifindex) ? 0 : JUDGE_AGAIN;
	}
	reason = judge(p, own, true, a);
	if (!reason && !a->t.flags && !a->t.audited)
		admitted_keep(kept, p, a);
	return reason;
}
