/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Fragments that come before their first. Each is copied into a slot and dropped;
 * when the first comes, it and they are sent to the hook again, first one first,
 * and are judged as if they had come in order. Slots are few and live for
 * FRAGMENT_SECONDS: a container that fills them makes others lose reordered
 * fragments, nothing else.
 *
 * Two CPUs may have the first and another one at the same time. The one that holds
 * marks its slot full and then asks for the first; the one with the first makes it
 * known and then looks for full slots. So at least one sees the other.
 */
#pragma once

#include "event.h"
#include "fragment.h"

#define HELD_PROBES 64 /* of a datagram of 65535 bytes, 45 fragments at an MTU of 1500 */

static __always_inline __u32 held_start(const struct fragment_key *key)
{
	const union addr *src = (const union addr *)key->src;
	const union addr *dst = (const union addr *)key->dst;

	return ((key->id ^ src->w[3] ^ dst->w[3]) * 0x9E3779B1U) >> 16;
}

static __always_inline bool held_is(const struct held_value *s, const struct fragment_key *key)
{
	const __u32 *a = (const __u32 *)&s->key, *b = (const __u32 *)key;
	__u32 differ = 0;

	for (int i = 0; i < (int)(sizeof(*key) / 4); i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

/* Sends a copy of skb to the hook it is at. */
static __always_inline void send_again(struct __sk_buff *skb, __u8 direction)
{
	bpf_clone_redirect(skb, skb->ifindex, direction == DIR_EGRESS ? BPF_F_INGRESS : 0);
}

/* Takes a slot that is free. Global: verified once, not for every slot. */
__noinline int held_take(__u32 slot, __u32 now)
{
	struct held_value *s = bpf_map_lookup_elem(&held, &slot);
	__u32 state;

	if (!s)
		return false;
	state = *(volatile __u32 *)&s->state;
	if (state == HELD_BUSY || (state == HELD_FULL && (__s32)(s->expires - now) > 0))
		return false;
	return __sync_val_compare_and_swap(&s->state, state, HELD_BUSY) == state;
}

/* A free slot, now busy and ours, or NULL. */
static __noinline struct held_value *held_claim(__u32 start, __u32 now)
{
	for (__u32 i = 0; i < HELD_PROBES; i++) {
		__u32 slot = (start + i) % HELD_SLOTS;

		if (held_take(slot, now))
			return bpf_map_lookup_elem(&held, &slot);
	}
	return 0;
}

/*
 * Whether *length is one of a frame that fits in a slot, told in a way that every
 * verifier follows: right before the call that reads or writes the frame, since
 * those before 6.8 forget the bounds of what went by the stack, and by two
 * comparisons of one register, of which none is with 0.
 */
static __always_inline bool held_fits(__u32 *length)
{
	__u32 n = *length;

	asm volatile("" : "+r"(n));
	if (n < sizeof(struct ethernet))
		return false;
	asm volatile("" : "+r"(n));
	*length = n;
	return n <= HELD_BYTES;
}

/*
 * Puts the fragment of p aside until its first comes. Whether it is in good hands;
 * it is not if there is no room or it is too long. Global: verified once.
 */
__noinline int held_put(struct __sk_buff *skb, const struct packet *p)
{
	struct fragment_value *v, waiting = {};
	struct fragment_key key;
	struct held_value *s;
	__u32 length = skb->len;
	__u32 now = now_seconds();

	if (!p || !length || length > HELD_BYTES)
		return false;
	fragment_key_of(&key, p, p->fragment_id, p->protocol);
	s = held_claim(held_start(&key), now);
	if (!s)
		return false;
	__builtin_memcpy(&s->key, &key, sizeof(key));
	s->length = length;
	s->expires = waiting.expires = now + FRAGMENT_SECONDS;
	if (!held_fits(&length) || bpf_skb_load_bytes(skb, 0, s->frame, length)) {
		*(volatile __u32 *)&s->state = HELD_FREE;
		return false;
	}
	v = bpf_map_lookup_elem(&fragments, &key);
	if (v && (__s32)(v->expires - now) <= 0)
		bpf_map_update_elem(&fragments, &key, &waiting, BPF_ANY);
	else if (!v)
		bpf_map_update_elem(&fragments, &key, &waiting, BPF_NOEXIST);
	__sync_lock_test_and_set(&s->state, HELD_FULL);

	v = bpf_map_lookup_elem(&fragments, &key);
	if (v && v->known &&
	    __sync_val_compare_and_swap(&s->state, HELD_FULL, HELD_FREE) == HELD_FULL)
		send_again(skb, p->direction);
	return true;
}

/* Sends what a slot holds, if it is of the datagram. Global: verified once, not for every slot. */
__noinline int held_release_slot(struct __sk_buff *skb, const struct fragment_key *key, __u32 slot,
				 __u8 direction)
{
	struct held_value *s = bpf_map_lookup_elem(&held, &slot);
	__u32 length;

	if (!s || !key)
		return 0;
	/* Atomic: not to be read before the first was made known. */
	if (__sync_fetch_and_add(&s->state, 0) != HELD_FULL || !held_is(s, key) ||
	    __sync_val_compare_and_swap(&s->state, HELD_FULL, HELD_BUSY) != HELD_FULL)
		return 0;
	if (!held_is(s, key)) { /* another one's by now */
		__sync_lock_test_and_set(&s->state, HELD_FULL);
		return 0;
	}
	length = s->length;
	if (length > 0 && length <= HELD_BYTES && !bpf_skb_change_tail(skb, length, 0) &&
	    held_fits(&length) &&
	    !bpf_skb_store_bytes(skb, 0, s->frame, length, BPF_F_RECOMPUTE_CSUM))
		send_again(skb, direction);
	__sync_lock_test_and_set(&s->state, HELD_FREE);
	return 0;
}

/*
 * Sends the first fragment of p to its hook again, and after it all that were held
 * for it. skb is no longer p afterwards. Global: verified once.
 */
__noinline int held_release(struct __sk_buff *skb, const struct packet *p)
{
	struct fragment_key key;
	__u32 start;

	if (!p)
		return 0;
	/* The parser has found the protocol; the key of IPv6 has none. */
	fragment_key_of(&key, p, p->fragment_id,
			p->ethertype == bpf_htons(ETHERTYPE_IPV4) ? p->protocol : 0);
	send_again(skb, p->direction);
	start = held_start(&key);
	for (__u32 i = 0; i < HELD_PROBES; i++)
		held_release_slot(skb, &key, (start + i) % HELD_SLOTS, p->direction);
	return 0;
}
