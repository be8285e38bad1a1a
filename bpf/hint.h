/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* hint.h: at ingress, whose leg a packet is of; mostly without a look-up by its tuple. */
#ifndef KM_HINT_H
#define KM_HINT_H

#include "legs.h"

/*
 * Where legs were found last, by a part of their tuple. An entry may be another leg's
 * or half of two: it is a hint, and the flow itself says whether it is right.
 */
#define KM_HINTS 16384

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KM_HINTS);
	__type(key, __u32);
	__type(value, struct leg_ref);
} km_hints SEC(".maps");

static __always_inline struct leg_ref *hint_for(const struct packet *p, __u64 pod)
{
	__u32 at = bpf_ntohs(p->dport) ^ (__u32)pod * 0x9e5 ^ bpf_ntohl(p->src[0] ^ p->src[3]);

	at = (at ^ p->sport) & (KM_HINTS - 1);
	return bpf_map_lookup_elem(&km_hints, &at);
}

/* Whether a packet is of leg number i of f, which is locked. */
static __always_inline bool is_of_leg(struct flow *f, __u32 i, const struct packet *p, __u64 pod)
{
	const struct leg *leg = leg_at(f, i);

	return leg->state != KM_LEG_NONE && leg->leg_port == p->dport && leg->port == p->sport &&
	       f->key.pod == pod && f->key.family == p->family && same_addr(leg->addr, p->src);
}

/*
 * The flow of a packet, locked, and the number of its leg. A leg has its tuple for
 * itself, so a hint that leads to it need not be looked up. NULL: it is none, or its
 * flow is busy.
 */
static __always_inline struct flow *leg_of(struct __sk_buff *skb, const struct packet *p,
					   __u32 *leg, bool *busy)
{
	__u64 pod = pod_of(skb);
	struct leg_key key = {.pod = pod, .family = p->family};
	struct leg_ref *hint = hint_for(p, pod), *ref;
	struct flow *f;

	if (hint && hint->ours) {
		*leg = hint->leg;
		f = lock_slot(hint->slot);
		if (f) {
			if (is_of_leg(f, *leg, p, pod))
				return f;
			unlock_flow(f);
		}
	}
	__builtin_memcpy(key.endpoint, p->src, 16);
	key.port = p->sport;
	key.leg_port = p->dport;
	ref = bpf_map_lookup_elem(&km_legs, &key);
	if (!ref || !ref->ours)
		return NULL;
	*leg = ref->leg;
	f = lock_slot(ref->slot);
	if (!f) {
		*busy = true;
		return NULL;
	}
	if (!is_of_leg(f, *leg, p, pod)) {
		unlock_flow(f);
		return NULL;
	}
	if (hint) {
		hint->slot = f->slot;
		hint->ours = 1;
		hint->leg = *leg;
	}
	return f;
}

#endif
