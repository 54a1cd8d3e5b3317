/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The verdict of one direction of one endpoint's policy: (scope, peer) -> class,
 * then (table, class, protocol, port prefix) -> row, once for the peer's class, if
 * the map has one, once for its base class and once for CLASS_ANY. A deny in any
 * wins, else an allow in any, else the direction's default.
 */
#pragma once

#include "conntrack.h"
#include "event.h"
#include "ipcache.h"

/* Class of a peer that has no row in the class map. */
static __always_inline __u64 base_class(__u64 peer, __be16 ethertype)
{
	__u32 identity = (__u32)peer;

	if ((peer & PEER_CIDR) || identity == ID_WORLD || identity == ID_WORLD_IPV4 ||
	    identity == ID_WORLD_IPV6)
		return ethertype == bpf_htons(ETHERTYPE_IPV4) ? ID_WORLD_IPV4 : ID_WORLD_IPV6;
	if (identity >= ID_FIRST_DYNAMIC)
		return CLASS_POD;
	/* A reserved number that we do not know matches no more than everyone does. */
	return identity < CLASS_POD ? identity : CLASS_ANY;
}

/* The base class that a class is part of: one that is no scope's is its own. */
static __always_inline __u64 base_of(__u64 class)
{
	return class & CLASS_OWN ? class >> CLASS_BASE_SHIFT & CLASS_BASE_MASK : class;
}

static __always_inline __u64 class_of(__u64 scope, __u64 peer, __be16 ethertype)
{
	struct class_key key = { .scope = scope, .peer = peer };
	struct class_value *v = bpf_map_lookup_elem(&classes, &key);

	return v ? v->class : base_class(peer, ethertype);
}

/*
 * The row of the longest port prefix, else that of protocol 0. key has table and
 * class; lens says which lengths exist.
 */
static __noinline int probe(struct policy_key *key, __u32 lens, __be16 port, __u8 protocol,
			    __u64 *row)
{
	struct policy_value *v;

	key->protocol = protocol;
	for (int bits = 16; bits >= 0; bits--) {
		if (!(lens & (1U << bits)))
			continue;
		key->port = port & bpf_htons((__u16)(0xffff0000U >> bits));
		key->port_bits = bits;
		v = bpf_map_lookup_elem(&policy, key);
		if (v) {
			*row = v->row;
			return v->verdict;
		}
	}
	if (!(lens & LENS_ALL_PROTOCOLS))
		return VERDICT_NONE;
	key->port = 0;
	key->port_bits = 0;
	key->protocol = 0;
	v = bpf_map_lookup_elem(&policy, key);
	if (!v)
		return VERDICT_NONE;
	*row = v->row;
	return v->verdict;
}

/*
 * What the rows of one class say, after those of others said before. Sets t->row to
 * that of a deny, and to that of the first allow.
 */
static __always_inline int add_verdict(struct policy_key *key, __u32 lens, __be16 port,
				       __u8 protocol, int before, struct trace *t)
{
	__u64 row = 0;
	int verdict;

	if (!lens)
		return before;
	verdict = probe(key, lens, port, protocol, &row);
	if (verdict == VERDICT_DENY || (verdict == VERDICT_ALLOW && before == VERDICT_NONE)) {
		t->row = row;
		return verdict;
	}
	return before;
}

/* 0 or the reason to drop; sets row and table of t. Global: verified once. */
__noinline int decide(const struct policy_ref *ref, __u64 peer, const struct packet *p, __be16 port,
		      struct trace *t)
{
	struct policy_key key = {};
	int verdict = VERDICT_NONE;

	if (!ref || !p || !t)
		return REASON_POLICY_DEFAULT_DENY;
	key.table = ref->table;
	t->table = ref->table;
	t->row = 0;
	if (ref->class_lens | ref->base_lens) {
		key.class = class_of(ref->scope, peer, p->ethertype);
		if (key.class & CLASS_OWN)
			verdict = add_verdict(&key, ref->class_lens, port, p->protocol, verdict, t);
		key.class = base_of(key.class);
		if (verdict != VERDICT_DENY && key.class != CLASS_ANY)
			verdict = add_verdict(&key, ref->base_lens, port, p->protocol, verdict, t);
	}
	if (verdict != VERDICT_DENY) {
		key.class = CLASS_ANY;
		verdict = add_verdict(&key, ref->any_lens, port, p->protocol, verdict, t);
	}
	if (verdict == VERDICT_DENY)
		return REASON_POLICY_DENIED;
	if (verdict == VERDICT_ALLOW)
		return 0;
	return ref->flags & POLICY_ENFORCED ? REASON_POLICY_DEFAULT_DENY : 0;
}

/* An ingress rule never asks for the peer's named ports. */
static __always_inline __u64 ingress_peer(__u64 peer)
{
	return peer & PEER_CIDR ? peer : (__u32)peer;
}

#define JUDGE_AGAIN (-2) /* no enum reason and no TC_ACT_* */
#define JUDGE_TRIES 4

/* What is found out about a packet that has to be judged. */
struct admission {
	struct trace t;
	struct ct_side other; /* the far side, ifindex 0: not local */
	struct judged judged; /* generation of the rows; flags of the flow's entry, if it has one */
};

/* judge() without its last question. far: the row of the far side, NULL if it is not local. */
static __always_inline int judge_rows(const struct packet *p, const struct endpoint_value *own,
				      bool forward, struct admission *a,
				      const struct endpoint_value **far)
{
	struct trace *t = &a->t;
	struct ct_side *other = &a->other;
	bool egress = p->direction == DIR_EGRESS;
	const union addr *own_addr = egress ? &p->src : &p->dst;
	const union addr *far_addr = egress ? &p->dst : &p->src;
	__u64 own_peer, far_peer;
	__u32 ifindex, unused;
	__be16 port;
	int reason;

	if (addr_equal(own_addr, far_addr)) {
		other->ifindex = p->ifindex;
		__builtin_memcpy(other->mac, own->mac, sizeof(other->mac));
		return 0;
	}
	far_peer = ipcache_peer(far_addr, p->ethertype, &ifindex);
	own_peer = own->identity;
	if (egress) {
		t->src_peer = own_peer;
		t->dst_peer = far_peer;
	} else {
		t->src_peer = far_peer;
		t->dst_peer = own_peer;
	}
	if (ifindex) {
		*far = endpoint_find(ifindex);
		if (!*far)
			return REASON_NO_ENDPOINT;
		other->ifindex = ifindex;
		__builtin_memcpy(other->mac, (*far)->mac, sizeof(other->mac));
	}
	port = forward ? p->policy_port : is_icmp(p) ? echo_request(p) : p->src_port;

	if (forward == egress) { /* own opened it */
		t->direction = DIR_EGRESS;
		t->endpoint = own->id;
		reason = decide(&own->egress, far_peer, p, port, t);
		if (reason || !*far)
			return reason;
		t->direction = DIR_INGRESS;
		t->endpoint = (*far)->id;
		return decide(&(*far)->ingress, own_peer, p, port, t);
	}
	if (*far) {
		t->direction = DIR_EGRESS;
		t->endpoint = (*far)->id;
		own_peer = ipcache_peer(own_addr, p->ethertype, &unused);
		reason = decide(&(*far)->egress, own_peer, p, port, t);
		if (reason)
			return reason;
	}
	t->direction = DIR_INGRESS;
	t->endpoint = own->id;
	return decide(&own->ingress, ingress_peer(far_peer), p, port, t);
}

/*
 * Judges the flow of p in the direction in which it was opened (forward: as p
 * goes): egress policy of the opener if it is local, then ingress policy of the
 * other side if that is local. own is the endpoint of this hook's interface, found
 * after a->judged.generation was read. Sets a->t, and
 * a->other to the far side, zero if it is not local. Returns 0, the reason to drop, or
 * JUDGE_AGAIN if a row of the two endpoints was replaced meanwhile: then the caller
 * begins anew, with its own reading of own. That a row is in its place again is not
 * enough, since it could have been another's in between; but no row is written twice
 * without a new generation.
 */
static __noinline int judge(const struct packet *p, const struct endpoint_value *own, bool forward,
			    struct admission *a)
{
	const struct endpoint_value *far = 0;
	int reason = judge_rows(p, own, forward, a, &far);

	if (generation_sum_acquire(p) != a->judged.generation || !endpoint_is(own, p->ifindex) ||
	    (far && !endpoint_is(far, a->other.ifindex)))
		return JUDGE_AGAIN;
	return reason;
}
