/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* stats.h: counters. 64-bit, atomic, made at first use, never reset by a program. */
#ifndef KM_STATS_H
#define KM_STATS_H

#include "maps.h"

/* The counters of (service, cluster), made if absent; NULL when the map is full. */
static __always_inline struct stats *stats_make(__u32 service, __u32 cluster)
{
	struct stats_key key = {.service = service, .cluster = cluster};
	struct stats *s = bpf_map_lookup_elem(&km_stats, &key);

	if (!s) {
		struct stats zero = {};

		/* Two CPUs may race: the loser's element is refused, not lost. */
		bpf_map_update_elem(&km_stats, &key, &zero, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&km_stats, &key);
	}
	return s;
}

/*
 * The counters of (service, cluster) for a socket that is ending: not made anew,
 * since the service may be gone and nobody would delete them.
 */
static __always_inline struct stats *stats_find(__u32 service, __u32 cluster)
{
	struct stats_key key = {.service = service, .cluster = cluster};

	return bpf_map_lookup_elem(&km_stats, &key);
}

/* Only the socket's end and one iterator compete, so a second try is enough. */
#define SETTLE_TRIES 3

/*
 * Adds the part of a socket's byte count that is not in the counters yet. The
 * socket's end and the iterator may settle at the same time; the swap lets only
 * one of them add a given part.
 */
static __always_inline void settle(__u64 *total, __u64 *settled, __u64 now)
{
	for (int i = 0; i < SETTLE_TRIES; i++) {
		__u64 before = *settled;

		if (now <= before)
			return;
		if (__sync_val_compare_and_swap(settled, before, now) == before) {
			__sync_fetch_and_add(total, now - before);
			return;
		}
	}
}

static __always_inline void count_refusal(__u32 service, __u32 reason)
{
	struct refusal_key key = {.service = service, .reason = reason};
	__u64 *n = bpf_map_lookup_elem(&km_refusals, &key);

	if (!n) {
		__u64 zero = 0;

		bpf_map_update_elem(&km_refusals, &key, &zero, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&km_refusals, &key);
		if (!n)
			return;
	}
	__sync_fetch_and_add(n, 1);
}

#endif
