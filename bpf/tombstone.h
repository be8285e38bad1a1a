/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* tombstone.h: what is left of a leg whose flow has been forgotten. */
#ifndef KM_TOMBSTONE_H
#define KM_TOMBSTONE_H

#include "maps_http.h"

#include <bpf/bpf_endian.h>

/*
 * Where the tombstone of a leg is, and its tag. Legs of one pod to one endpoint differ
 * in their port alone, and have places of their own.
 */
static __always_inline struct tombstone *tombstone_of(const struct leg_key *k, __u32 *tag)
{
	__u64 h = ((__u64)k->endpoint[3] << 32 | k->endpoint[0]) * 0x9e3779b97f4a7c15ULL;
	__u32 at;

	h ^= ((__u64)k->endpoint[2] << 32 | k->endpoint[1]) * 0xc2b2ae3d27d4eb4fULL;
	h ^= (k->pod << 16 | k->port) * 0x165667b19e3779f9ULL;
	h ^= h >> 29;
	h *= 0xff51afd7ed558ccdULL;
	at = ((h >> 40) + bpf_ntohs(k->leg_port)) & (KM_TOMBSTONES - 1);
	*tag = (__u32)h ^ k->leg_port;
	return bpf_map_lookup_elem(&km_tombstones, &at);
}

/*
 * Removes the look-up that leads to a leg whose element is used anew. Where the endpoint
 * ended first it is in TIME_WAIT: what it expects then is kept.
 */
static __noinline int bury_leg(const struct flow *f, const struct leg *leg)
{
	struct leg_key lk = {.pod = f->key.pod, .family = f->key.family};
	struct tombstone *t;
	__u32 tag;

	if (leg->state == KM_LEG_NONE)
		return 0;
	__builtin_memcpy(lk.endpoint, leg->addr, 16);
	lk.port = leg->port;
	lk.leg_port = leg->leg_port;
	if (leg->state == KM_LEG_OPEN || leg->state == KM_LEG_DEAD) {
		t = tombstone_of(&lk, &tag);
		if (t) {
			t->tag = tag;
			t->seq = leg->sent;
			t->tsval = leg->flags & KM_LEG_TIMESTAMPS ? leg->tsval : 0;
			t->at = f->seen;
		}
	}
	bpf_map_delete_elem(&km_legs, &lk);
	return 0;
}

#endif
