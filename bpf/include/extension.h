/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What may stand between an IP header and the transport header. */
#pragma once

#include "fragment.h"
#include "packet.h"

#define IPV4_OPTIONS_MAX 40
#define EXTENSIONS_MAX 8

enum {
	OPTION_END = 0,
	OPTION_NOP = 1,
	OPTION_LSRR = 131, /* loose source route */
	OPTION_SSRR = 137, /* strict source route */
};

/*
 * Options of length bytes at offset at: all but source routes, which name another
 * destination than the one that is judged. 0 or the reason to drop. Global:
 * verified once.
 */
__noinline int check_options(struct __sk_buff *skb, __u32 at, __u32 length)
{
	__u32 i = 0;

	for (int n = 0; n < IPV4_OPTIONS_MAX && i < length; n++) {
		struct {
			__u8 type;
			__u8 length; /* unless type has none: the next option's type, or payload */
		} option;

		if (bpf_skb_load_bytes(skb, at + i, &option, sizeof(option)))
			return REASON_MALFORMED;
		if (option.type == OPTION_END)
			return 0;
		if (option.type == OPTION_NOP) {
			i++;
			continue;
		}
		if (option.type == OPTION_LSRR || option.type == OPTION_SSRR)
			return REASON_IPV4_OPTIONS;
		i += option.length;
		if (option.length < 2 || i > length)
			return REASON_MALFORMED;
	}
	return 0;
}

/* Where a walk along IPv6 headers is. */
struct chain {
	__u32 at;	 /* of the header that next names */
	__u8 next;	 /* protocol of it */
	bool fragmented; /* a fragment header was met; for a later fragment, the last one met */
	struct fragment fragment;
};

/*
 * Walks to the transport header, or to the end of the headers that a later
 * fragment has. Hop-by-hop (also that of a jumbogram, which BIG TCP uses between
 * interfaces), destination options, fragment, and routing headers that are used
 * up: one that is not names another destination than the one that is judged, and
 * type 0 is dead (RFC 5095). An authentication header ends the walk: nobody here
 * can check it. 0 or the reason to drop. Global: verified once.
 */
__noinline int walk(struct __sk_buff *skb, struct chain *c)
{
	struct {
		__u8 next;
		__u8 length;
		union {
			__be16 offset; /* fragment: and its flags */
			struct {
				__u8 type;
				__u8 segments_left;
			} routing;
		};
		__be32 id;
	} h;

	if (!c)
		return REASON_MALFORMED;
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		switch (c->next) {
		case PROTO_HOPOPTS:
			if (i)
				return REASON_EXTENSION_HEADER;
			break;
		case PROTO_ROUTING:
		case PROTO_DSTOPTS:
			break;
		case PROTO_FRAGMENT:
			if (c->fragmented)
				return REASON_EXTENSION_HEADER;
			break;
		case PROTO_AH:
		case PROTO_MOBILITY:
		case PROTO_HIP:
		case PROTO_SHIM6:
			return REASON_EXTENSION_HEADER;
		default:
			return 0;
		}
		if (bpf_skb_load_bytes(skb, c->at, &h, sizeof(h)))
			return REASON_MALFORMED;
		if (c->next == PROTO_FRAGMENT) {
			c->fragmented = true;
			c->at += 8;
			c->next = h.next;
			c->fragment.id = h.id;
			c->fragment.offset = bpf_ntohs(h.offset) & 0xfff8;
			c->fragment.more = bpf_ntohs(h.offset) & 1;
			c->fragment.at = c->at;
			if (c->fragment.offset)
				return 0;
			continue;
		}
		if (c->next == PROTO_ROUTING && (!h.routing.type || h.routing.segments_left))
			return REASON_EXTENSION_HEADER;
		c->at += (h.length + 1) * 8;
		c->next = h.next;
	}
	return REASON_EXTENSION_HEADER;
}
