/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * room.h: whether a request may have a leg, where its cluster bounds the connections of a
 * pod (limit.h). One that is refused a leg has had no other one taken away.
 */
#ifndef KM_ROOM_H
#define KM_ROOM_H

#include "legs.h"

static __always_inline bool has_leg(struct flow *f)
{
	return !(f->flags & KM_FLOW_IDLE) && leg_at(f, f->leg)->state == KM_LEG_OPEN;
}

/* A leg number for a new leg: one that is free, else another than the current one. */
static __always_inline __u32 free_leg(struct flow *f)
{
	for (__u32 i = 0; i < KM_LEGS; i++)
		if (f->legs[i].state == KM_LEG_NONE)
			return i;
	for (__u32 i = 0; i < KM_LEGS; i++)
		if (f->legs[i].state == KM_LEG_DEAD && (i != f->leg || f->flags & KM_FLOW_IDLE))
			return i;
	return (f->leg + 1) & (KM_LEGS - 1);
}

/* The leg makes room for another one of its cluster. */
static __always_inline bool give_room(const struct flow *f, struct leg *leg)
{
	if (!(leg->flags & KM_LEG_LIMITED) || leg->cluster != f->cluster)
		return false;
	leg->flags &= ~KM_LEG_LIMITED;
	return true;
}

/*
 * Counts the leg that is to be opened for a choice in a cluster that bounds them, unless
 * open_leg gives up another one for it. false: it is one too many.
 */
static __noinline bool claim_leg(struct flow *f, struct choice_of *to)
{
	struct leg *leg = leg_at(f, f->leg), *next = leg_at(f, free_leg(f));
	bool ends = !(leg->flags & KM_LEG_SERVED) || leg->flags & KM_LEG_WORN;

	if (!(has_leg(f) && ends && give_room(f, leg)) &&
	    !(next->state == KM_LEG_OPEN && give_room(f, next)) && !count_leg(f))
		return false;
	to->limited = KM_LIMIT_COUNTED;
	return true;
}

/* The leg will not be opened. */
static __always_inline void drop_claim(const struct flow *f, const struct choice_of *to)
{
	if (to->limited == KM_LIMIT_COUNTED)
		close_connection(f->key.pod, f->cluster);
}

/* A leg that has served another cluster is the flow's cluster's from now on, if it allows one more. */
static __noinline bool move_leg(struct flow *f, struct leg *leg, const struct choice_of *to)
{
	if (to->limited && !count_leg(f))
		return false;
	uncount_leg(f, leg);
	leg->cluster = f->cluster;
	if (to->limited)
		mark_leg(f, leg);
	return true;
}

/* Whether leg i may serve the flow's cluster; KM_LEGS: whether one may be opened. */
static __always_inline bool has_room(struct flow *f, struct choice_of *to, __u32 i)
{
	struct leg *leg = leg_at(f, i);

	if (i == KM_LEGS)
		return !to->limited || claim_leg(f, to);
	if (leg->cluster == f->cluster || !(to->limited || leg->flags & KM_LEG_LIMITED))
		return true;
	return move_leg(f, leg, to);
}

/* A leg that serves the cluster, wherever it leads; KM_LEGS: none. */
static __noinline __u32 leg_of_cluster(struct flow *f, __u32 cluster)
{
	for (__u32 i = 0; i < KM_LEGS; i++) {
		struct leg *leg = &f->legs[i];

		if (leg->state == KM_LEG_OPEN && leg->cluster == cluster &&
		    !(leg->flags & (KM_LEG_WORN | KM_LEG_CLOSING)))
			return i;
	}
	return KM_LEGS;
}

#endif
