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

#define JUDGE_AGAIN (-2) /* no enum reason and no TC_ACT_* */
#define JUDGE_TRIES 4

/* What a row says, after those that t has seen. */
static __always_inline int note(const struct policy_value *v, struct trace *t)
{
	if (v->verdict == VERDICT_DENY) {
		t->row = v->row;
		t->verdict = VERDICT_DENY;
		return 0;
	}
	if ((v->flags & POLICY_AUDITED) && !(t->flags & TRACE_AUDITED)) {
		t->row = v->row;
		t->flags |= TRACE_AUDITED;
	}
	if (v->verdict != VERDICT_ALLOW)
		return 0;
	if (v->flags & POLICY_DNS)
		t->flags |= TRACE_DNS;
	if (t->verdict == VERDICT_NONE && !(t->flags & TRACE_AUDITED))
		t->row = v->row;
	t->verdict = VERDICT_ALLOW;
	return 0;
}

/*
 * Notes the row of the longest port prefix, else that of protocol 0. of has table
 * and class; lens says which lengths exist. Global: verified once. Looks up by a copy
 * of the key, since before Linux 6.2 the memory that a global function is handed is
 * no key.
 */
__noinline int probe(const struct policy_key *of, __u32 lens, const struct packet *p, __be16 port,
		     struct trace *t)
{
	struct policy_key key = {};
	struct policy_value *v;

	if (!of || !p || !t || !lens)
		return 0;
	key.table = of->table;
	key.class = of->class;
	key.protocol = p->protocol;
	for (int bits = 16; bits >= 0; bits--) {
		if (!(lens & (1U << bits)))
			continue;
		key.port = port & bpf_htons((__u16)(0xffff0000U >> bits));
		key.port_bits = bits;
		v = bpf_map_lookup_elem(&policy, &key);
		if (v)
			return note(v, t);
	}
	if (!(lens & LENS_ALL_PROTOCOLS))
		return 0;
	key.port = 0;
	key.port_bits = 0;
	key.protocol = 0;
	v = bpf_map_lookup_elem(&policy, &key);
	return v ? note(v, t) : 0;
}

/*
 * 0 or the reason to drop, audit mode of the endpoint aside; sets row, table, verdict,
 * TRACE_AUDITED and TRACE_DNS of t. Global: verified once.
 */
__noinline int decide(const struct policy_ref *ref, __u64 peer, const struct packet *p, __be16 port,
		      struct trace *t)
{
	struct policy_key key = {};

	if (!ref || !p || !t)
		return REASON_POLICY_DEFAULT_DENY;
	key.table = ref->table;
	t->table = ref->table;
	t->row = 0;
	t->audited = 0;
	t->verdict = VERDICT_NONE;
	t->flags &= ~(TRACE_DNS | TRACE_AUDITED);
	if (ref->class_lens | ref->base_lens) {
		key.class = class_of(ref->scope, peer, p->ethertype);
		if (key.class & CLASS_OWN)
			probe(&key, ref->class_lens, p, port, t);
		key.class = base_of(key.class);
		if (t->verdict != VERDICT_DENY && key.class != CLASS_ANY)
			probe(&key, ref->base_lens, p, port, t);
	}
	if (t->verdict != VERDICT_DENY) {
		key.class = CLASS_ANY;
		probe(&key, ref->any_lens, p, port, t);
	}
	if (t->verdict == VERDICT_DENY)
		return REASON_POLICY_DENIED;
	if (t->verdict == VERDICT_ALLOW)
		return 0;
	return ref->flags & POLICY_ENFORCED ? REASON_POLICY_DEFAULT_DENY : 0;
}

/*
 * What decide() leaves to the default, asked of the names by which endpoint
 * t->endpoint knows the address in the world that p is for. Returns and sets the
 * same, or returns JUDGE_AGAIN if what is known was replaced meanwhile, as of
 * endpoint_is(). Global: verified once.
 */
__noinline int decide_by_name(const struct policy_ref *ref, const struct packet *p, __be16 port,
			      struct trace *t)
{
	struct fqdn_key name = {};
	struct policy_key key = {};
	struct fqdn_value *v;

	if (!ref || !p || !t)
		return REASON_POLICY_DEFAULT_DENY;
	name.endpoint = t->endpoint;
	__builtin_memcpy(name.addr, t->flags & TRACE_BACKWARD ? p->src.b : p->dst.b, 16);
	v = bpf_map_lookup_elem(&fqdn, &name);
	if (!v)
		return REASON_POLICY_DEFAULT_DENY;
	key.table = ref->table;
	for (int i = 0; i < FQDN_PAIRS; i++) {
		key.class = v->class[i];
		if (!key.class)
			continue;
		if (!(t->flags & TRACE_AGAIN) && (__s32)(v->expires[i] - now_seconds()) <= 0)
			continue;
		probe(&key, ref->class_lens, p, port, t);
	}
	if (bpf_map_lookup_elem(&fqdn, &name) != v)
		return JUDGE_AGAIN;
	return t->verdict == VERDICT_ALLOW ? 0 : REASON_POLICY_DEFAULT_DENY;
}

/*
 * What audit mode makes of the verdict: 0 for what it lets pass. Then t says why, and
 * by what row if any, it would be dropped.
 */
static __always_inline int audit(const struct policy_ref *ref, struct trace *t, int reason)
{
	if (reason == REASON_POLICY_DEFAULT_DENY)
		t->row = 0;
	if (reason && (reason == JUDGE_AGAIN || !(ref->flags & POLICY_AUDIT)))
		return reason;
	if (reason) {
		t->audited = reason;
	} else if (t->flags & TRACE_AUDITED) {
		t->audited = REASON_POLICY_DENIED;
	} else if (t->verdict == VERDICT_NONE && (ref->flags & POLICY_AUDIT_DEFAULT)) {
		t->audited = REASON_POLICY_DEFAULT_DENY;
	}
	return 0;
}

/* The verdict of an endpoint's egress policy, as of decide() and audit(). */
static __always_inline int decide_egress(const struct policy_ref *ref, __u64 peer,
					 const struct packet *p, __be16 port, struct trace *t)
{
	int reason = decide(ref, peer, p, port, t);
	int named;
	__u64 base = base_class(peer, p->ethertype);

	/* Names matter where they can allow what is denied, or would be. */
	if (t->verdict == VERDICT_NONE && (ref->flags & POLICY_FQDN) &&
	    (ref->flags & (POLICY_ENFORCED | POLICY_AUDIT_DEFAULT)) &&
	    (base == ID_WORLD_IPV4 || base == ID_WORLD_IPV6)) {
		named = decide_by_name(ref, p, port, t);
		if (!named)
			t->flags |= TRACE_NAMED;
		if (!named || named == JUDGE_AGAIN)
			reason = named;
	}
	return audit(ref, t, reason);
}

/*
 * The same of ingress policy, after the egress policy of from, unless that is NULL. What
 * audit mode let pass there is what t tells of, unless the packet is dropped here.
 */
static __always_inline int decide_ingress(const struct endpoint_value *of,
					  const struct endpoint_value *from, __u64 peer,
					  const struct packet *p, __be16 port, struct trace *t)
{
	__u64 row = t->row;
	__u8 audited = t->audited;
	int reason;

	t->direction = DIR_INGRESS;
	t->endpoint = of->id;
	reason = audit(&of->ingress, t, decide(&of->ingress, peer, p, port, t));
	if (reason || !audited || !from)
		return reason;
	t->row = row;
	t->table = from->egress.table;
	t->endpoint = from->id;
	t->direction = DIR_EGRESS;
	t->audited = audited;
	return 0;
}

/* An ingress rule never asks for the peer's named ports. */
static __always_inline __u64 ingress_peer(__u64 peer)
{
	return peer & PEER_CIDR ? peer : (__u32)peer;
}

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
	__u32 ifindex;
	__be16 port;
	int reason;

	if (!forward)
		t->flags |= TRACE_BACKWARD;
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
		reason = decide_egress(&own->egress, far_peer, p, port, t);
		if (reason || !*far || (t->flags & TRACE_DNS))
			return reason;
		return decide_ingress(*far, own, own_peer, p, port, t);
	}
	if (*far) {
		t->direction = DIR_EGRESS;
		t->endpoint = (*far)->id;
		own_peer = ipcache_peer(own_addr, p->ethertype, &ifindex);
		reason = decide_egress(&(*far)->egress, own_peer, p, port, t);
		if (reason)
			return reason;
		if (t->flags & TRACE_DNS)
			t->flags |= TRACE_AROUND;
	}
	return decide_ingress(own, *far, ingress_peer(far_peer), p, port, t);
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
 *
 * If the opener's egress policy allows the flow for the DNS proxy only, TRACE_DNS is
 * set where own is the opener, and the proxy is the other side; else TRACE_AROUND.
 */
static __noinline int judge(const struct packet *p, const struct endpoint_value *own, bool forward,
			    struct admission *a)
{
	const struct endpoint_value *far = 0;
	int reason = judge_rows(p, own, forward, a, &far);

	if (generation_sum_acquire(p) != a->judged.generation || !endpoint_is(own, p->ifindex) ||
	    (far && !endpoint_is(far, a->other.ifindex)))
		return JUDGE_AGAIN;
	if (a->t.flags & TRACE_DNS)
		a->other = (struct ct_side){};
	return reason;
}
