/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* count.h: requests served, by pod, service, cluster, route and status. */
#ifndef KM_COUNT_H
#define KM_COUNT_H

#include "flow.h"

/* Counters that stand at 0, too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct request_stats);
} km_none SEC(".maps");

#define KM_MS 1000000ULL /* ns */

/* The bucket of a duration: the bounds are Istio's. */
static __always_inline __u32 bucket_of(__u64 ns)
{
	if (ns <= 25 * KM_MS) {
		if (ns <= KM_MS)
			return ns <= KM_MS / 2 ? 0 : 1;
		if (ns <= 5 * KM_MS)
			return 2;
		return ns <= 10 * KM_MS ? 3 : 4;
	}
	if (ns <= 1000 * KM_MS) {
		if (ns <= 100 * KM_MS)
			return ns <= 50 * KM_MS ? 5 : 6;
		if (ns <= 250 * KM_MS)
			return 7;
		return ns <= 500 * KM_MS ? 8 : 9;
	}
	if (ns <= 30000 * KM_MS) {
		if (ns <= 5000 * KM_MS)
			return ns <= 2500 * KM_MS ? 10 : 11;
		return ns <= 10000 * KM_MS ? 12 : 13;
	}
	if (ns <= 600000 * KM_MS) {
		if (ns <= 60000 * KM_MS)
			return 14;
		return ns <= 300000 * KM_MS ? 15 : 16;
	}
	if (ns <= 1800000 * KM_MS)
		return 17;
	return ns <= 3600000 * KM_MS ? 18 : 19;
}

/* Counts the request that has just been answered with the flow's status. */
__noinline int count_request(struct flow *f, __u32 route, __u32 cluster, bool local)
{
	struct request_key key = {};
	struct request_stats *s;
	__u64 took;

	if (!f)
		return 0;
	key.pod = f->key.pod;
	key.service = f->service;
	key.cluster = cluster;
	key.route = route;
	key.status = f->status;
	key.flags = local ? KM_REQUEST_LOCAL : 0;
	s = bpf_map_lookup_elem(&km_requests, &key);
	if (!s) {
		__u32 zero = 0;
		struct request_stats *none = bpf_map_lookup_elem(&km_none, &zero);

		if (!none)
			return 0;
		bpf_map_update_elem(&km_requests, &key, none, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&km_requests, &key);
		if (!s)
			return 0;
	}
	took = f->started ? bpf_ktime_get_ns() - f->started : 0;
	__sync_fetch_and_add(&s->count, 1);
	__sync_fetch_and_add(&s->duration, took);
	__sync_fetch_and_add(&s->buckets[bucket_of(took) % KM_BUCKETS], 1);
	return 0;
}

#endif
