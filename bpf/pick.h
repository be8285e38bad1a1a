/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* pick.h: the endpoint for a connection or a request, among those that seem to be well. */
#ifndef KM_PICK_H
#define KM_PICK_H

#include "decide.h"
#include "work.h"

/* Draws for an endpoint that has not been tried and is not marked. */
#define KM_DRAWS 8

/* Endpoints tried for one request (Istio's default: 2 retries). */
#define KM_TRIES 3

/* A refused or silent endpoint is chosen last for so long. */
#define KM_MARK_NS 5000000000ULL

static __always_inline bool was_tried(const struct flow *f, __u32 endpoint)
{
	return f->tried[0] == endpoint || f->tried[1] == endpoint || f->tried[2] == endpoint;
}

static __always_inline bool is_marked(__u32 endpoint)
{
	struct limits *l = limits();
	__u64 *until;

	/* Seldom is any endpoint marked. */
	if (!l || !l->marked_until || bpf_ktime_get_coarse_ns() > l->marked_until)
		return false;
	until = bpf_map_lookup_elem(&km_marks, &endpoint);
	return until && bpf_ktime_get_ns() < *until;
}

static __always_inline void mark_endpoint(__u32 endpoint)
{
	__u64 until = bpf_ktime_get_ns() + KM_MARK_NS;

	struct limits *l = limits();

	if (!endpoint || !l)
		return;
	bpf_map_update_elem(&km_marks, &endpoint, &until, BPF_ANY);
	l->marked_until = until;
}

struct draw {
	struct cluster *cluster;
	struct flow *flow;
	struct extent table;
	__u32 hash;
	__u32 endpoint; /* the result */
	__u32 second;   /* marked, but not tried */
};

static long draw_endpoint(__u32 i, struct draw *d)
{
	__u32 e = choose_endpoint(d->cluster, &d->table, d->hash);

	/* Another slot for the next draw of the same key. */
	d->hash = d->hash * 2654435761U + 1;
	if (!e || was_tried(d->flow, e))
		return 0;
	if (is_marked(e)) {
		if (!d->second)
			d->second = e;
		return 0;
	}
	d->endpoint = e;
	return 1;
}

/* Slots that are looked at, one by one, when no draw found an endpoint. */
#define KM_SLOTS_SEEN 256

/*
 * Draws may miss the one endpoint that is left: of two, one in vain, in one of 256
 * times. So they are followed by a look at each slot, from a random one on.
 */
static long look_at_slot(__u32 i, struct draw *d)
{
	__u32 at = d->hash + i;
	struct slot *s;

	if (!d->table.n || i >= d->table.n)
		return 1;
	s = slot_at(&d->table, at % d->table.n);
	if (!s || !s->endpoint || was_tried(d->flow, s->endpoint))
		return 0;
	d->endpoint = s->endpoint;
	return 1;
}

/* What a leg to an endpoint of the cluster counts in. */
static __always_inline void count_choice(struct choice_of *to, const struct cluster *cl)
{
	to->counted = cl->policy == KM_POLICY_LEAST_REQUEST;
	to->limited = cl->max_connections != KM_NO_LIMIT ? KM_LIMIT_COUNT : 0;
}

/*
 * Chooses an endpoint of a cluster by its policy; one that this flow has tried in vain
 * is not chosen again, one that failed lately only if there is no other. false: none.
 */
__noinline int pick_endpoint(struct flow *f, struct choice_of *out, __u32 cluster, __u32 hash)
{
	struct draw d = {.flow = f, .hash = hash, .second = unknown(0)};
	struct endpoint *ep;
	struct cluster *cl;

	if (!f || !out)
		return 0;
	cl = bpf_map_lookup_elem(&km_clusters, &cluster);
	if (!cl)
		return 0;
	if (cl->kind == KM_KIND_PASSTHROUGH) {
		if (f->tried[0])
			return 0;
		__builtin_memcpy(out->addr, f->key.vip, 16);
		out->port = f->key.vip_port;
		out->endpoint = 0;
		out->counted = 0;
		out->limited = 0;
		return 1;
	}
	if (cl->kind != KM_KIND_ENDPOINTS)
		return 0;
	d.cluster = cl;
	d.table = f->key.family == 4 ? cl->v4 : cl->v6;
	if (!d.table.n)
		return 0;
	bpf_loop(KM_DRAWS, draw_endpoint, &d, 0);
	if (!d.endpoint)
		d.endpoint = d.second;
	if (!d.endpoint)
		bpf_loop(KM_SLOTS_SEEN, look_at_slot, &d, 0);
	ep = bpf_map_lookup_elem(&km_endpoints, &d.endpoint);
	if (!ep)
		return 0;
	__builtin_memcpy(out->addr, ep->addr, 16);
	out->port = ep->port;
	out->endpoint = d.endpoint;
	count_choice(out, cl);
	return 1;
}

#endif
