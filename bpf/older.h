/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * older.h: programs of another layout, which finish what they began. What is not of
 * this layout (no stamp, no leg) is theirs, if there are any: the program of each hook
 * hands it on by a tail call. The helper fills the slot while such programs have
 * something left; an empty slot costs nothing. A map per hook, since a tail call joins
 * programs of one kind.
 */
#ifndef KM_OLDER_H
#define KM_OLDER_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct older {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
};

struct older km_older_tc_ingress SEC(".maps");
struct older km_older_tc_egress SEC(".maps");
struct older km_older_getpeername4 SEC(".maps");
struct older km_older_getpeername6 SEC(".maps");
struct older km_older_recvmsg4 SEC(".maps");
struct older km_older_recvmsg6 SEC(".maps");
struct older km_older_sock_ops SEC(".maps");

/* Does not come back where there is one. */
#define ASK_OLDER(ctx, hook) bpf_tail_call_static(ctx, &km_older_##hook, 0)

/* A program on the pod's interface. What it has translated an older one takes for foreign. */
#define TC_PROGRAM(hook, body)                \
	SEC("tc")                             \
	int hook(struct __sk_buff *skb)       \
	{                                     \
		int verdict = body(skb);      \
                                              \
		if (verdict == TCX_NEXT)      \
			ASK_OLDER(skb, hook); \
		return verdict;               \
	}

#endif
