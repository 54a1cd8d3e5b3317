/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The DNS proxy's side of a packet. A container's question is handed to a socket of
 * the proxy as if it were the server; the proxy asks the server with the container's
 * address, and what the server answers is handed to the socket that asked. A socket
 * is the proxy's if it has MARK_FROM_PROXY, which no container can set.
 */
#pragma once

#include "event.h"
#include "ipcache.h"
#include "maps.h"
#include "packet.h"

enum { /* of bpf_sock.state */
	SOCKET_TIME_WAIT = 6,
	SOCKET_LISTEN = 10,
};

#define LOOPBACK 1 /* the interface's index, in every network namespace */

static __always_inline bool from_proxy(const struct __sk_buff *skb)
{
	return (skb->mark & MARK_MASK) == MARK_FROM_PROXY;
}

static __always_inline void mark_to_proxy(struct __sk_buff *skb)
{
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
}

/* Whether the proxy made the socket. */
static __always_inline bool is_proxys(const struct bpf_sock *sk)
{
	return (sk->mark & MARK_MASK) == MARK_FROM_PROXY;
}

/* Fills the addresses and ports of p, and returns how much of tuple counts. */
static __always_inline __u32 tuple_of(struct bpf_sock_tuple *tuple, const struct packet *p)
{
	if (p->ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		tuple->ipv4.saddr = p->src.w[3];
		tuple->ipv4.daddr = p->dst.w[3];
		tuple->ipv4.sport = p->src_port;
		tuple->ipv4.dport = p->dst_port;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, p->src.b, 16);
	__builtin_memcpy(tuple->ipv6.daddr, p->dst.b, 16);
	tuple->ipv6.sport = p->src_port;
	tuple->ipv6.dport = p->dst_port;
	return sizeof(tuple->ipv6);
}

/* Gives the packet to sk, whose hold it takes. false: it cannot have it. */
static __always_inline bool assign(struct __sk_buff *skb, struct bpf_sock *sk)
{
	long err = bpf_sk_assign(skb, sk, 0);

	bpf_sk_release(sk);
	if (err)
		return false;
	mark_to_proxy(skb);
	return true;
}

/*
 * To the socket of a connection that the proxy has taken already. One that is but
 * opening or closing has no mark, but then its addresses tell enough.
 */
static __noinline bool assign_connected(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = tuple_of(&tuple, p);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	struct bpf_sock *full;

	if (!sk)
		return false;
	full = bpf_sk_fullsock(sk);
	/* A server on this host may listen there. A SYN begins anew what has ended. */
	if (sk->state == SOCKET_LISTEN ||
	    (sk->state == SOCKET_TIME_WAIT && (p->flags & PKT_OPENS)) ||
	    (full && !is_proxys(full))) {
		bpf_sk_release(sk);
		return false;
	}
	return assign(skb, sk);
}

/* To the socket that waits for questions. */
static __noinline bool assign_listener(struct __sk_buff *skb, const struct packet *p)
{
	bool ipv4 = p->ethertype == bpf_htons(ETHERTYPE_IPV4);
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 zero = 0, size;
	struct proxy *at = bpf_map_lookup_elem(&proxy, &zero);

	if (!at || !at->port)
		return false;
	if (ipv4)
		tuple.ipv4.dport = at->port;
	else
		tuple.ipv6.dport = at->port;
	size = ipv4 ? sizeof(tuple.ipv4) : sizeof(tuple.ipv6);
	if (p->protocol == PROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	/* While the proxy is away, anybody may have its port. */
	if ((p->protocol == PROTO_TCP && sk->state != SOCKET_LISTEN) || !is_proxys(sk)) {
		bpf_sk_release(sk);
		return false;
	}
	return assign(skb, sk);
}

/*
 * Hands a container's question to the proxy: false if the proxy is not there. What
 * concerns it otherwise, such as an ICMP error, goes to the host.
 */
static __noinline bool to_proxy(struct __sk_buff *skb, const struct packet *p)
{
	if (p->flags & PKT_RELATED) {
		mark_to_proxy(skb);
		return true;
	}
	if (p->protocol == PROTO_TCP && assign_connected(skb, p))
		return true;
	if (p->protocol != PROTO_TCP && p->protocol != PROTO_UDP)
		return false;
	return assign_listener(skb, p);
}

/* Whether sk is connected to the sender of p, from the address and port p is for. */
static __always_inline bool awaits(struct bpf_sock *sk, const struct packet *p)
{
	if (sk->src_port != bpf_ntohs(p->dst_port) || sk->dst_port != p->src_port)
		return false;
	if (p->ethertype == bpf_htons(ETHERTYPE_IPV4))
		return sk->src_ip4 == p->dst.w[3] && sk->dst_ip4 == p->src.w[3];
	return sk->src_ip6[0] == p->dst.w[0] && sk->src_ip6[1] == p->dst.w[1] &&
	       sk->src_ip6[2] == p->dst.w[2] && sk->src_ip6[3] == p->dst.w[3] &&
	       sk->dst_ip6[0] == p->src.w[0] && sk->dst_ip6[1] == p->src.w[1] &&
	       sk->dst_ip6[2] == p->src.w[2] && sk->dst_ip6[3] == p->src.w[3];
}

/* The proxy's socket that asked what p, which seems to be for a container, answers. */
static __always_inline struct bpf_sock *asker(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = tuple_of(&tuple, p);
	struct bpf_sock *sk;

	if (p->protocol == PROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	if (sk->state == SOCKET_LISTEN || !is_proxys(sk) || !awaits(sk, p)) {
		bpf_sk_release(sk);
		return 0;
	}
	return sk;
}

/*
 * Puts a packet on its way into a container back to where it came into the node, or
 * to the loopback if it is of the node itself, so that routing meets its mark.
 */
static __noinline int turn_back(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ingress_ifindex;
	struct device none = {}, *to = &none;
	struct ethernet *eth;

	if (ifindex && !endpoint_find(ifindex))
		to = bpf_map_lookup_elem(&devices, &ifindex);
	else
		ifindex = LOOPBACK;
	if (!to) {
		ifindex = LOOPBACK;
		to = &none;
	}
	eth = packet_start(skb);
	if ((void *)(eth + 1) > packet_end(skb))
		return TC_ACT_SHOT;
	__builtin_memcpy(eth->dst, to->mac, 6);
	mark_to_proxy(skb);
	count(COUNTER_INDEX(REASON_FORWARDED, DIR_INGRESS), skb->len);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

#define NO_ANSWER (-3) /* no TC_ACT_*, and not JUDGE_AGAIN */

/*
 * If p is what a server answers the proxy, sends it there; else NO_ANSWER. It needs
 * no policy: the proxy asked.
 */
static __noinline int answer(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock *sk;

	if (p->flags & (PKT_RELATED | PKT_NO_FLOW))
		return NO_ANSWER;
	if (p->protocol != PROTO_TCP && p->protocol != PROTO_UDP)
		return NO_ANSWER;
	sk = asker(skb, p);
	if (!sk)
		return NO_ANSWER;
	if (p->direction == DIR_EGRESS) {
		if (!assign(skb, sk))
			return TC_ACT_SHOT;
		count(COUNTER_INDEX(REASON_FORWARDED, DIR_EGRESS), skb->len);
		return TC_ACT_OK;
	}
	bpf_sk_release(sk);
	return turn_back(skb);
}
