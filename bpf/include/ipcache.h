/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who owns an address. */
#pragma once

#include "maps.h"
#include "packet.h"

static __always_inline const struct config *config_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline struct endpoint_value *endpoint_find(__u32 ifindex)
{
	struct endpoint_key key = { .ifindex = ifindex };

	return bpf_map_lookup_elem(&endpoints, &key);
}

/*
 * Whether row is still that of ifindex. The kernel uses the memory of a replaced row
 * again at once, also for the row of another endpoint, so whoever has read a row and
 * acts on it asks this after the last read (an atomic that returns a value keeps the
 * order).
 */
static __always_inline bool endpoint_is(const struct endpoint_value *row, __u32 ifindex)
{
	return endpoint_find(ifindex) == row;
}

/*
 * The peer that owns addr: exact row, else longest prefix, else the world of its
 * family. *ifindex is the host side if it is a local endpoint, else 0.
 */
static __noinline __u64 ipcache_peer(const union addr *addr, __be16 ethertype, __u32 *ifindex)
{
	struct ipcache_lpm_key prefix = { .prefixlen = 128 };
	struct ipcache_value *v;

	__builtin_memcpy(prefix.addr, addr->b, sizeof(prefix.addr));
	v = bpf_map_lookup_elem(&ipcache, prefix.addr);
	if (!v)
		v = bpf_map_lookup_elem(&ipcache_lpm, &prefix);
	*ifindex = v ? v->ifindex : 0;
	if (v)
		return v->peer;
	return ethertype == bpf_htons(ETHERTYPE_IPV4) ? ID_WORLD_IPV4 : ID_WORLD_IPV6;
}
