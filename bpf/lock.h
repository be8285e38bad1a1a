/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * lock.h: a flow is found and locked. Flows lie in an array and are named by element and
 * generation, so that a lock is never freed under its holder.
 */
#ifndef KM_LOCK_H
#define KM_LOCK_H

#include "maps_http.h"

/*
 * Two CPUs meet in a flow for the time that a packet takes. The holder is not
 * preempted, so waiting ends; the bound is for a kernel where that is not so.
 */
#define KM_SPINS 20000

static __always_inline void count_event(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&km_events, &event);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline struct flow *flow_at(__u32 slot)
{
	return bpf_map_lookup_elem(&km_flows, &slot);
}

static __always_inline struct leg *leg_at(struct flow *f, __u32 leg)
{
	return &f->legs[leg & (KM_LEGS - 1)];
}

static long spin(__u32 i, struct flow **f)
{
	return __sync_val_compare_and_swap(&(*f)->busy, 0, 1) == 0;
}

static __noinline bool wait_for(struct flow *f)
{
	if (bpf_loop(KM_SPINS, spin, &f, 0) < KM_SPINS)
		return true;
	count_event(KM_EVENT_BUSY);
	return false;
}

static __always_inline bool lock_flow(struct flow *f)
{
	return __sync_val_compare_and_swap(&f->busy, 0, 1) == 0 || wait_for(f);
}

static __always_inline void unlock_flow(struct flow *f)
{
	__sync_lock_test_and_set(&f->busy, 0);
}

/* Whether a reference still leads to its flow: that it cannot be locked is for now. */
static __always_inline bool is_there(__u32 slot, __u32 generation)
{
	struct flow *f = flow_at(slot);

	return f && generation && f->generation == generation;
}

static __always_inline struct flow *lock_slot(__u32 slot)
{
	struct flow *f = flow_at(slot);

	return f && lock_flow(f) ? f : NULL;
}

/* The flow of a reference, locked; NULL if it is another one by now, or busy. */
static __always_inline struct flow *lock_ref(__u32 slot, __u32 generation)
{
	struct flow *f = flow_at(slot);

	if (!f || !generation || f->generation != generation || !lock_flow(f))
		return NULL;
	if (f->generation == generation)
		return f;
	unlock_flow(f);
	return NULL;
}

#endif
