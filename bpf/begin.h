/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* begin.h: a flow for a connection that begins, and where its memory comes from. */
#ifndef KM_BEGIN_H
#define KM_BEGIN_H

#include "flow.h"

/*
 * How long an ended flow stays at least, for late packets, while there are others: one
 * timer of TCP's. What comes later is answered by the pod's own TCP, with RST.
 */
#define KM_COOL_MS 250

/*
 * An element for a flow; -1: there is none. One that was used is taken first, since its
 * memory is nearer than that of one that never was.
 */
static __always_inline __s64 free_slot(struct limits *l)
{
	struct flow *f;
	__u32 slot;

	if (!bpf_map_pop_elem(&km_over, &slot))
		return slot;
	if (l->next_flow < l->flows) {
		if (!bpf_map_peek_elem(&km_ended, &slot)) {
			f = flow_at(slot);
			if (f && now_ms() - f->seen > KM_COOL_MS)
				goto ended;
		}
		slot = __sync_fetch_and_add(&l->next_flow, 1);
		if (slot < l->flows)
			return slot;
	}
ended:
	if (bpf_map_pop_elem(&km_ended, &slot))
		return -1;
	return slot;
}

/* All zero but the lock and what names the flow; legs were, when they were forgotten. */
static __always_inline void clear_flow(struct flow *f)
{
	__u32 hot = offsetof(struct flow, state), rest = offsetof(struct flow, key);

	__builtin_memset((void *)f + hot, 0, offsetof(struct flow, legs) - hot);
	__builtin_memset((void *)f + rest, 0, offsetof(struct flow, options) - rest);
	f->syn_flags = 0;
	f->opening_head = f->opening_close = 0;
}

/*
 * Makes a flow for key, locked; NULL: there is no room, which is counted. The pod's
 * share of the table is bounded, so that one pod cannot keep the others out.
 */
static __noinline struct flow *new_flow(struct __sk_buff *skb, const struct flow_key *key)
{
	struct limits *l = limits();
	__u64 *open, zero = 0, pod = key->pod;
	struct flow_ref ref;
	__u32 generation;
	struct flow *f;
	__s64 slot;

	if (!l)
		return NULL;
	open = bpf_map_lookup_elem(&km_quotas, &pod);
	if (!open) {
		bpf_map_update_elem(&km_quotas, &pod, &zero, BPF_NOEXIST);
		open = bpf_map_lookup_elem(&km_quotas, &pod);
		if (!open)
			goto full;
	}
	if (*open >= l->quota) {
		reclaim_flow(skb, pod);
		if (*open >= l->quota) {
			count_event(KM_EVENT_QUOTA);
			return NULL;
		}
	}
	slot = free_slot(l);
	if (slot < 0) {
		reclaim_flow(skb, pod);
		slot = free_slot(l);
		if (slot < 0)
			goto full;
	}
	f = flow_at(slot);
	if (!f)
		return NULL;
	if (!lock_flow(f)) {
		__u32 s = slot;

		bpf_map_push_elem(&km_ended, &s, 0);
		return NULL;
	}
	if (f->state == KM_FLOW_CLOSED)
		forget_flow(f);
	generation = f->generation + 1;
	clear_flow(f);
	f->generation = generation ? generation : 1;
	f->slot = slot;
	f->key = *key;
	ref.slot = slot;
	ref.generation = f->generation;
	if (bpf_map_update_elem(&km_tuples, key, &ref, BPF_ANY)) {
		__u32 s = slot;

		f->state = KM_FLOW_CLOSED;
		f->flags = KM_FLOW_LISTED;
		bpf_map_push_elem(&km_ended, &s, 0);
		unlock_flow(f);
		goto full;
	}
	__sync_fetch_and_add(open, 1);
	count_event(KM_EVENT_FLOW);
	return f;
full:
	count_event(KM_EVENT_FLOW_FULL);
	return NULL;
}

#endif
