/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * limit.h: the connections of a pod to a cluster that bounds them (max_connections).
 *
 * A leg counts from its SYN to its end, a socket that is bound at connect() from there,
 * both until the client has closed at the latest. What is counted bears a mark, and who takes the mark away counts down:
 * once. Where a pod or a cluster is gone the helper deletes the count, and what ends
 * later finds none.
 */
#ifndef KM_LIMIT_H
#define KM_LIMIT_H

#include "maps_http.h"

/*
 * A connect() may fail before the socket's state can be watched: no route, no port. What
 * it has claimed until then is good for one to two periods; it takes microseconds.
 */
#define KM_CLAIM_SHIFT 30 /* ns: 1.07 s */

static __always_inline __u32 claim_period(void)
{
	return bpf_ktime_get_coarse_ns() >> KM_CLAIM_SHIFT;
}

static __always_inline struct connections *connections_of(__u64 pod, __u32 cluster)
{
	struct connections_key key = {.pod = pod, .cluster = cluster};

	return bpf_map_lookup_elem(&km_connections, &key);
}

/* The same, made if absent; NULL: there is no room, and nothing is counted. */
static __always_inline struct connections *make_connections(__u64 pod, __u32 cluster)
{
	struct connections_key key = {.pod = pod, .cluster = cluster};
	struct connections *c = bpf_map_lookup_elem(&km_connections, &key);

	if (!c) {
		struct connections zero = {};

		bpf_map_update_elem(&km_connections, &key, &zero, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&km_connections, &key);
	}
	return c;
}

/* With the lock: those that are open, or claimed. */
static __always_inline __u32 taken(const struct connections *c, __u32 now)
{
	__u32 n = c->open;

	for (int i = 0; i < 2; i++)
		if (now - c->claims[i].at <= 1)
			n += c->claims[i].n;
	return n;
}

/* Whether the pod may have one more connection to the cluster: then it is counted. */
static __always_inline bool open_connection(__u64 pod, __u32 cluster, __u32 limit)
{
	struct connections *c = make_connections(pod, cluster);
	__u32 now = claim_period();
	bool room;

	if (!c)
		return true; /* as one that ends and finds no count */
	bpf_spin_lock(&c->lock);
	room = taken(c, now) < limit;
	if (room)
		c->open++;
	bpf_spin_unlock(&c->lock);
	return room;
}

__noinline int close_connection(__u64 pod, __u32 cluster)
{
	struct connections *c = connections_of(pod, cluster);

	if (!c)
		return 0;
	bpf_spin_lock(&c->lock);
	if (c->open)
		c->open--;
	bpf_spin_unlock(&c->lock);
	return 0;
}

/* The same for a socket that is to connect; at is when, for settle_claim. */
static __always_inline bool claim_connection(__u64 pod, __u32 cluster, __u32 limit, __u32 *at)
{
	struct connections *c = make_connections(pod, cluster);
	__u32 now = claim_period();
	struct claims *claims;
	bool room;

	*at = now;
	if (!c)
		return true;
	claims = &c->claims[now & 1];
	bpf_spin_lock(&c->lock);
	if (claims->at != now) {
		claims->at = now;
		claims->n = 0;
	}
	room = taken(c, now) < limit;
	if (room)
		claims->n++;
	bpf_spin_unlock(&c->lock);
	return room;
}

/* Takes a claim back; if the connection is made, it is open from now on. */
static __always_inline void settle_claim(__u64 pod, __u32 cluster, __u32 at, bool made)
{
	struct connections *c = connections_of(pod, cluster);
	struct claims *claims;

	if (!c)
		return;
	claims = &c->claims[at & 1];
	bpf_spin_lock(&c->lock);
	if (claims->at == at && claims->n)
		claims->n--;
	c->open += made;
	bpf_spin_unlock(&c->lock);
}

/* A leg is no connection any more. */
static __always_inline void uncount_leg(const struct flow *f, struct leg *leg)
{
	if (!(leg->flags & KM_LEG_LIMITED))
		return;
	leg->flags &= ~KM_LEG_LIMITED;
	close_connection(f->key.pod, leg->cluster);
}

__noinline int uncount_legs(struct flow *f)
{
	if (!f)
		return 0;
	f->flags &= ~KM_FLOW_LIMITED;
	for (int i = 0; i < KM_LEGS; i++)
		uncount_leg(f, &f->legs[i]);
	return 0;
}

#endif
