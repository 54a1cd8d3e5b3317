/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Layout of every key and value that user space and the programs share.
 * bpf/abi holds the same types in Go; a test compares the two through BTF.
 * A change of any layout here raises Layout in bpf/abi, which names the pins.
 *
 * Ids of 64 bits (table, scope, class, peer of a CIDR, row) are content hashes
 * computed by package projections: equal content has equal ids on every node
 * and after every restart, so no number needs to be remembered anywhere.
 */
#pragma once

#include <linux/types.h>

#define PEER_CIDR (1ULL << 63) /* peer is a CIDR prefix: hash with the top bit set */

/* Reserved identities, as in Cilium. */
enum identity {
	ID_UNKNOWN = 0,
	ID_HOST = 1,
	ID_WORLD = 2,
	ID_UNMANAGED = 3,
	ID_HEALTH = 4,
	ID_INIT = 5,
	ID_REMOTE_NODE = 6,
	ID_KUBE_APISERVER = 7,
	ID_INGRESS = 8,
	ID_WORLD_IPV4 = 9,
	ID_WORLD_IPV6 = 10,
	ID_FIRST_DYNAMIC = 256,
};

/*
 * Class of a peer that has no row in the class map: what can be told from its
 * number alone. Reserved identities are their own class; these are the rest.
 */
enum base_class {
	CLASS_ANY = 0,	/* rows for every peer */
	CLASS_POD = 16, /* a managed endpoint of this cluster */
};

/*
 * A class of the class map is CLASS_OWN | its base class << CLASS_BASE_SHIFT | hash.
 * It does not repeat the rows of its base class.
 */
#define CLASS_OWN (1ULL << 63)
#define CLASS_BASE_SHIFT 58
#define CLASS_BASE_MASK 31ULL

struct ipcache_key {
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
};

struct ipcache_lpm_key {
	__u32 prefixlen; /* 96 + n for IPv4 */
	__u8 addr[16];
};

struct ipcache_value {
	__u64 peer;    /* identity | named-port hash << 32, or PEER_CIDR | hash */
	__u32 ifindex; /* host side of a local endpoint, else 0; local to this boot */
	__u32 flags;
};

/* One direction of an endpoint's policy. */
struct policy_ref {
	__u64 table;
	__u64 scope;
	__u32 class_lens; /* bit n: rows of n port bits exist for classes of the scope */
	__u32 any_lens;	  /* the same for CLASS_ANY */
	__u32 flags;	  /* POLICY_* */
	__u32 base_lens;  /* the same as class_lens for base classes */
};

#define LENS_ALL_PROTOCOLS (1U << 17)  /* a row with protocol 0 exists */
#define POLICY_ENFORCED (1U << 0)      /* what no row decides is denied */
#define POLICY_FQDN (1U << 1)	       /* rows exist for classes of the map `fqdn` */
#define POLICY_ASKS (1U << 2)	       /* rows with POLICY_DNS exist */
#define POLICY_AUDIT (1U << 3)	       /* what would be dropped passes, and is told */
#define POLICY_AUDIT_DEFAULT (1U << 4) /* policy in audit mode would deny what no row decides */

struct endpoint_key {
	__u32 ifindex;
};

struct endpoint_value {
	__u32 id;
	__u32 identity;
	struct policy_ref egress;
	struct policy_ref ingress;
	__be32 ipv4; /* 0: none */
	__u8 mac[6]; /* the container's side */
	__u16 flags;
	__u8 ipv6[16]; /* all zero: none */
	__u32 pad;
};

struct class_key {
	__u64 scope;
	__u64 peer;
};

struct class_value {
	__u64 class;
};

struct policy_key {
	__u64 table;
	__u64 class;
	__be16 port;	/* the upper port_bits bits; the rest zero */
	__u8 protocol;	/* 0: every protocol (then port_bits is 0) */
	__u8 port_bits; /* 0 to 16 */
	__u32 pad;
};

enum verdict {
	VERDICT_NONE = 0, /* no row */
	VERDICT_ALLOW = 1,
	VERDICT_DENY = 2, /* beats every allow */
};

struct policy_value {
	__u64 row; /* id of the row, for provenance */
	__u8 verdict;
	__u8 flags; /* POLICY_DNS, POLICY_AUDITED */
	__u8 pad[6];
};

#define POLICY_DNS (1U << 0)	 /* allows, and hands over to the DNS proxy */
#define POLICY_AUDITED (1U << 1) /* does not deny, but a deny of a policy in audit mode would */

/*
 * Addresses that an endpoint learned by asking for a name. The DNS proxy writes
 * this map and the next, and nobody else does.
 */
#define FQDN_PAIRS 8

struct fqdn_key {
	__u32 endpoint; /* id */
	__u8 addr[16];
};

/* Rows of these classes hold for the address; a new flow may use each until it expires. */
struct fqdn_value {
	__u64 class[FQDN_PAIRS];   /* 0: none */
	__u32 expires[FQDN_PAIRS]; /* seconds of CLOCK_MONOTONIC */
};

/* The only element of the map `proxy`: where the DNS proxy listens. */
struct proxy {
	__be16 port; /* UDP and TCP, the wildcard address of both families; 0: nowhere */
	__u8 pad[6];
};

#define MARK_MASK 0xf00U
#define MARK_TO_PROXY 0x200U   /* of packets; a routing rule takes them to the local host */
#define MARK_FROM_PROXY 0xb00U /* of the proxy's sockets, and so of what they send */

/* An interface of the node, by its index. */
struct device {
	__u8 mac[6];
	__u8 pad[2];
};

/*
 * Conntrack. One entry a flow: the endpoint (address, port) that compares lower
 * (as unsigned bytes in network order, address before port) is side 0. For ICMP
 * echo both ports are the identifier.
 */
struct ct4_key {
	__be32 addr[2];
	__be16 port[2];
	__u8 protocol;
	__u8 pad[3];
};

struct ct6_key {
	__u8 addr[2][16];
	__be16 port[2];
	__u8 protocol;
	__u8 pad[3];
};

struct ct_side {
	__u32 ifindex; /* host veth of a local endpoint, 0: not local; local to this boot */
	__u8 mac[6];
	__u8 tcp; /* seen from this side: CT_TCP_*; SCTP: INIT, SHUTDOWN, ABORT likewise */
	__u8 pad;
};

#define CT_TCP_SYN 1
#define CT_TCP_FIN 2
#define CT_TCP_RST 4
#define CT_TCP_DATA 8

#define CT_ORIGIN 1U /* flags bit 0: the side that opened the flow */
#define CT_DENIED 2U /* judged again and denied: dropped both ways until judged anew */
#define CT_SEEN_REPLY 4U
#define CT_PROXY 8U /* the DNS proxy is the other end, whatever the address says */

struct ct_value {
#ifndef VARVE_LAYOUT_0
	__u64 row; /* policy row that admitted it, 0: no policy enforced */
#endif
	__u32 generation; /* sum of both addresses' generations when judged; shares */
	__u32 flags;	  /* an aligned 8-byte word with CT_*, read and written as one */
	__u32 expires;	  /* seconds of CLOCK_MONOTONIC */
	__u32 src_identity;
	struct ct_side side[2];
#ifdef VARVE_LAYOUT_0 /* a made-up older layout, to test upgrades with */
	__u64 row;
#endif
};

/*
 * Policy generations. An address owns slot generation_slot(addr); whatever may
 * change a verdict that involves the address adds 1 there, after the rows that
 * change it are in place. A change of a CIDR row adds 1 to every slot.
 */
#define GENERATION_SLOTS 4096

/* The only element of the map `generations`; user space maps it into memory. */
struct generations {
	__u32 slot[GENERATION_SLOTS];
};

/*
 * The only element of the map `config`. Zero (a new map) has both families off
 * and so lets nothing through.
 */
struct config {
	__u8 gateway_mac[6]; /* of the host side of every veth pair */
	__u8 enable_ipv4;
	__u8 enable_ipv6;
	__u8 new_flow_events; /* EVENT_NEW_FLOW for each flow admitted */
	__u8 handover;	      /* what would be dropped goes on to the hook's next program */
	__u8 pad[2];
	__u32 tcp_established_seconds; /* lifetimes of an idle flow; tcp_*: also SCTP's */
	__u32 tcp_syn_seconds;	       /* nothing has come back yet */
	__u32 tcp_closing_seconds;     /* RST, or FIN from both sides */
	__u32 other_seconds;
};

/*
 * What the first fragment of a datagram said, for those that follow. A datagram
 * whose first has not come, but others have, has a row with known 0.
 */
struct fragment_key {
	__u8 src[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 dst[16];
	__u32 id;	/* bytes as on the wire */
	__u32 ifindex;	/* where it was seen, and at which hook */
	__u8 protocol;	/* IPv4 only: of IPv6, fragments need not agree on it */
	__u8 direction; /* enum direction */
	__u16 pad;
};

struct fragment_value {
	__u32 expires; /* seconds of CLOCK_MONOTONIC */
	__be16 src_port;
	__be16 dst_port;
	__be16 policy_port;
	__u8 protocol;
	__u8 flags; /* as the parser's */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 known;
	__u8 pad;
};

/* Fragments that came before their first, in no order. */
#define HELD_SLOTS 256
#define HELD_BYTES 9216

enum held_state {
	HELD_FREE = 0,
	HELD_BUSY = 1, /* one CPU reads or writes it */
	HELD_FULL = 2,
};

struct held_value {
	__u32 state; /* enum held_state, changed atomically */
	__u32 expires;
	__u32 length;
	__u32 pad;
	struct fragment_key key;
	__u32 pad2;
	__u8 frame[HELD_BYTES];
};

/* The only element of the map `clock`: written and read as one. */
struct clock {
	__u32 monotonic_seconds;
	__u32 jiffy; /* when they were read */
};

/* The map `counters` is indexed by reason * 2 + direction. */
#define COUNTER_INDEX(reason, direction) ((reason) * 2U + (direction))
#define COUNTER_SLOTS 512
/* First packets that audit mode let pass; reason: REASON_POLICY_DEFAULT_DENY or _DENIED. */
#define COUNTER_AUDITED(reason, direction) (496U + COUNTER_INDEX(reason, direction))
#define COUNTER_LOST_EVENTS 510U /* packets: events the ring buffer had no room for */

struct counter_value {
	__u64 packets;
	__u64 bytes;
};

enum direction {
	DIR_EGRESS = 0,	 /* leaving a container */
	DIR_INGRESS = 1, /* entering a container */
};

/* Why a packet was dropped. Numbers are stable: add, never renumber. */
enum reason {
	REASON_FORWARDED = 0,
	REASON_POLICY_DEFAULT_DENY = 1, /* no rule allows it */
	REASON_POLICY_DENIED = 2,	/* a deny rule matches */
	REASON_POLICY_REVOKED = 3,	/* an established flow that policy no longer allows */
	REASON_SPOOFED_MAC = 4,
	REASON_SPOOFED_ADDRESS = 5,
	REASON_UNKNOWN_ETHERTYPE = 6,
	REASON_MALFORMED = 7,
	REASON_FRAGMENT = 8, /* its first was not seen, and it could not be held */
	REASON_EXTENSION_HEADER = 9,
	REASON_UNKNOWN_PROTOCOL = 10,
	REASON_NO_ENDPOINT = 11, /* the interface has no row */
	REASON_CT_FULL = 12,
	REASON_ICMP_UNSOLICITED = 13,
	REASON_MULTICAST = 14,
	REASON_IPV4_OPTIONS = 15,
	REASON_DISABLED_FAMILY = 16,
	REASON_NEIGHBOUR = 17,	    /* ARP or ND that asks for nothing we answer */
	REASON_FRAGMENT_TINY = 18,  /* cuts or overwrites a transport header */
	REASON_FRAGMENT_HELD = 19,  /* before its first: put aside, comes again after it */
	REASON_PROXY_MISSING = 20,  /* for the DNS proxy, which does not listen */
	REASON_PROXY_BYPASSED = 21, /* to or from a server around the DNS proxy */
	REASON_MAX,
};

enum event_type {
	EVENT_DROP = 1,
	EVENT_NEW_FLOW = 2, /* first packet of a flow, allowed */
	EVENT_CLOSED = 3,
	EVENT_AUDITED = 4, /* let pass by audit mode; reason: why it would have been dropped */
};

struct event {
	__u64 time_ns; /* boot clock */
	__u64 row;     /* deciding policy row, 0: none */
	__u64 table;   /* its table or, for a default deny, the table that has no row */
	__u64 src_peer;
	__u64 dst_peer;
	__u8 src[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 dst[16];
	__be16 src_port; /* ICMP: type */
	__be16 dst_port; /* ICMP: code */
	__u32 length;
	__u32 endpoint; /* id of the endpoint whose policy or check decided */
	__u32 ifindex;
	__u8 type;	/* enum event_type */
	__u8 direction; /* enum direction */
	__u8 protocol;
	__u8 reason; /* enum reason */
	__be16 ethertype;
	__u16 pad;
};
