/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Only the first fragment of a datagram has the transport header. It is parsed
 * like any packet, and what was found is remembered for those that follow; they
 * belong to its flow and get that flow's verdict. One that comes before the first
 * is held and comes back to the hook after the first: nothing is judged by half.
 *
 * The key has the interface and the hook, so a container can only ever mislead
 * itself about its own fragments.
 */
#pragma once

#include "conntrack.h"
#include "maps.h"
#include "packet.h"

/* Of remembered firsts and of held fragments. Long against any reordering, short
 * against the reuse of an identifier. */
#define FRAGMENT_SECONDS 5
#define DATAGRAM_MAX 65535

/* A fragment as its header has it. */
struct fragment {
	__u32 id;
	__u32 offset; /* bytes */
	__u32 at;     /* of its first byte after the fragment's header, in the packet */
	__u32 length; /* bytes from there */
	bool more;
	__u8 protocol; /* IPv4: of all fragments; IPv6: 0, only the first one's counts */
};

static __always_inline void fragment_key_of(struct fragment_key *key, const struct packet *p,
					    __u32 id, __u8 protocol)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->src, p->src.b, 16);
	__builtin_memcpy(key->dst, p->dst.b, 16);
	key->id = id;
	key->ifindex = p->ifindex;
	key->protocol = protocol;
	key->direction = p->direction;
}

/* The first bytes of a datagram that a first fragment must have whole. */
static __always_inline __u32 l4_header(__u8 protocol)
{
	switch (protocol) {
	case PROTO_TCP:
		return TCP_LEN;
	case PROTO_SCTP:
		return SCTP_LEN;
	}
	return L4_MIN;
}

static __always_inline struct fragment_value *fragment_find(const struct fragment_key *key)
{
	struct fragment_value *v = bpf_map_lookup_elem(&fragments, key);

	return v && (__s32)(v->expires - now_seconds()) > 0 ? v : 0;
}

/* Whether f is no fragment that any sender makes: RFC 791, RFC 8200. */
static __always_inline bool fragment_malformed(const struct fragment *f)
{
	return !f->length || f->offset + f->length > DATAGRAM_MAX || (f->more && (f->length & 7));
}

/* Fills p, whose addresses are set, for a fragment that is not the first. */
static __noinline int fragment_later(struct packet *p, const struct fragment *f)
{
	struct fragment_key key;
	struct fragment_value *v;

	if (fragment_malformed(f))
		return REASON_MALFORMED;
	/* Would write over the transport header: RFC 1858, RFC 3128. */
	if (f->protocol && f->offset < l4_header(f->protocol))
		return REASON_FRAGMENT_TINY;
	p->fragment_id = f->id;
	p->protocol = f->protocol;
	fragment_key_of(&key, p, f->id, f->protocol);
	v = fragment_find(&key);
	if (!v || !v->known)
		return PARSED_HOLD;
	if (f->offset < l4_header(v->protocol))
		return REASON_FRAGMENT_TINY;
	p->protocol = v->protocol;
	p->src_port = v->src_port;
	p->dst_port = v->dst_port;
	p->policy_port = v->policy_port;
	p->icmp_type = v->icmp_type;
	p->icmp_code = v->icmp_code;
	p->flags = v->flags;
	return 0;
}

/* Remembers p, a first fragment that is parsed. 0, PARSED_RELEASE or a reason. */
static __noinline int fragment_first(const struct packet *p, const struct fragment *f)
{
	struct fragment_value v = {
		.expires = now_seconds() + FRAGMENT_SECONDS,
		.src_port = p->src_port,
		.dst_port = p->dst_port,
		.policy_port = p->policy_port,
		.protocol = p->protocol,
		.flags = p->flags & ~PKT_OPENS,
		.icmp_type = p->icmp_type,
		.icmp_code = p->icmp_code,
		.known = 1,
	};
	struct fragment_key key;
	struct fragment_value *was;
	bool waiting;

	/* An ICMP error is never so long, and what it cites is all there is to judge. */
	if (p->flags & PKT_RELATED)
		return REASON_FRAGMENT;
	fragment_key_of(&key, p, f->id, f->protocol);
	was = fragment_find(&key);
	waiting = was && !was->known;
	if (bpf_map_update_elem(&fragments, &key, &v, BPF_ANY))
		return REASON_FRAGMENT;
	return waiting ? PARSED_RELEASE : 0;
}
