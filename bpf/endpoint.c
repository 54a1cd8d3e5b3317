//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#define TC_ACT_OK 0
#define TC_ACT_SHOT 2

SEC("tc")
int from_container(struct __sk_buff *skb)
{
	return skb->len ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("tc")
int to_container(struct __sk_buff *skb)
{
	return skb->len ? TC_ACT_SHOT : TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
