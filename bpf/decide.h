/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * decide.h: kmesh-orchestration for L4. From a destination to a service, from a
 * service to a cluster by weight, from a cluster to an endpoint by its policy.
 *
 * The caller runs under rcu_read_lock, as all cgroup socket programs do. The
 * helper deletes an endpoint or re-uses an extent only after a grace period that
 * follows the cluster's change, so what one decision reads belongs together.
 */
#ifndef KM_DECIDE_H
#define KM_DECIDE_H

#include "stats.h"

#include <bpf/bpf_endian.h>
#include <linux/in.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

enum decision {
	DECISION_PASS,    /* not ours, or meant to pass: leave it alone */
	DECISION_REWRITE, /* to the chosen endpoint */
	DECISION_REFUSE,  /* counted; answer ECONNREFUSED */
	DECISION_ROUTE,   /* by request, on the pod's interface */
};

struct choice {
	__u32 service;
	__u32 cluster;
	__u32 endpoint;
	__be32 addr[4];
	__be16 port;
	__u32 limit;   /* of the cluster's connections */
	__u32 claimed; /* when: limit.h */
};

static __always_inline bool same_addr(const __be32 *a, const __be32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* MPTCP sockets show their own protocol number; what they carry is TCP. */
static __always_inline __u8 governed_proto(__u32 protocol)
{
	return protocol == IPPROTO_MPTCP ? IPPROTO_TCP : protocol;
}

/* The id of the service at a destination, 0 if there is none. */
static __always_inline __u32 find_service(const struct frontend_key *dst)
{
	struct prefix_key prefix = {
		.prefixlen = KM_PREFIX_FIXED_BITS + (dst->family == 4 ? 32 : 128),
		.scope = dst->scope,
		.proto = dst->proto,
		.family = dst->family,
		.port = dst->port,
	};
	__u32 *id = bpf_map_lookup_elem(&km_frontends, dst);

	if (id)
		return *id;
	__builtin_memcpy(prefix.addr, dst->addr, sizeof(prefix.addr));
	id = bpf_map_lookup_elem(&km_prefixes, &prefix);
	if (id)
		return *id;
	prefix.port = 0;
	id = bpf_map_lookup_elem(&km_prefixes, &prefix);
	return id ? *id : 0;
}

/* A uniform number in [0, n). */
static __always_inline __u32 draw(__u32 n)
{
	return ((__u64)bpf_get_prandom_u32() * n) >> 32;
}

/* The cluster that a draw by weight gives; 0 if the service has no weight. */
static __always_inline __u32 draw_cluster(const struct service *svc)
{
	__u32 left = draw(svc->total);

	for (int i = 0; i < KM_MAX_WEIGHTED; i++) {
		if (i >= svc->n)
			break;
		if (left < svc->shares[i].weight)
			return svc->shares[i].cluster;
		left -= svc->shares[i].weight;
	}
	return 0;
}

static __always_inline struct slot *slot_at(const struct extent *table, __u32 i)
{
	__u32 at = table->offset + i;

	return bpf_map_lookup_elem(&km_slots, &at);
}

/* One draw from an alias table. */
static __always_inline struct slot *draw_slot(const struct extent *table)
{
	struct slot *s = slot_at(table, draw(table->n));

	if (s && bpf_get_prandom_u32() >= s->cut)
		s = slot_at(table, s->alias);
	return s;
}

static __always_inline __u64 active_of(__u32 endpoint)
{
	__u64 *n = bpf_map_lookup_elem(&km_active, &endpoint);

	return n ? *n : 0;
}

/*
 * Power of two choices: two draws by weight, the one with fewer open connections
 * for its weight wins, the first one if they are even. Idle endpoints are thus
 * chosen exactly by weight.
 */
static __always_inline struct slot *least_loaded(const struct extent *table)
{
	struct slot *a = draw_slot(table), *b = draw_slot(table);

	if (!a || !b || a->endpoint == b->endpoint)
		return a;
	return active_of(b->endpoint) * a->weight < active_of(a->endpoint) * b->weight ? b : a;
}

/* Bob Jenkins' one-at-a-time, byte by byte. */
static __always_inline __u32 hash_byte(__u32 h, __u8 byte)
{
	h += byte;
	h += h << 10;
	return h ^ h >> 6;
}

static __always_inline __u32 hash_end(__u32 h)
{
	h += h << 3;
	h ^= h >> 11;
	return h + (h << 15);
}

static __always_inline __u32 hash_addr(const __be32 *addr, __u8 family)
{
	__u32 h = 0;

	for (int i = 0; i < 4; i++) {
		__u32 w = family == 4 && i ? 0 : addr[i];

		for (int k = 0; k < 4; k++)
			h = hash_byte(h, w >> (8 * k));
	}
	return hash_end(h);
}

/* hash is the key of maglev. */
static __always_inline __u32 choose_endpoint(struct cluster *cl, const struct extent *table,
					     __u32 hash)
{
	struct slot *s = NULL;

	switch (cl->policy) {
	case KM_POLICY_ROUND_ROBIN:
		s = slot_at(table, __sync_fetch_and_add(&cl->turn, 1) % table->n);
		break;
	case KM_POLICY_LEAST_REQUEST:
		s = least_loaded(table);
		break;
	case KM_POLICY_MAGLEV:
		s = slot_at(table, hash % table->n);
		break;
	default:
		s = draw_slot(table);
	}
	return s ? s->endpoint : 0;
}

/* What maglev indexes for a connection: the pod's address, or by chance as Envoy does. */
static __always_inline __u32 hash_source(const struct service *svc, const struct pod *pod,
					 __u8 family)
{
	if (!pod || !(svc->flags & KM_SERVICE_HASH_SOURCE))
		return bpf_get_prandom_u32();
	if (family == 4) {
		__be32 addr[4] = {pod->ip4};

		return hash_addr(addr, 4);
	}
	return hash_addr(pod->ip6, 6);
}

static __always_inline enum decision refuse(__u32 service, __u32 reason)
{
	count_refusal(service, reason);
	return DECISION_REFUSE;
}

/*
 * Whether a pod speaks to itself: by a loopback address, which the address of no one is
 * also, or by its own. No rule about what a pod may reach is about that, and no sidecar
 * sees it.
 */
static __always_inline bool to_itself(const struct frontend_key *dst, const struct pod *pod)
{
	const __be32 *a = dst->addr;

	if (dst->family == 4)
		return !a[0] || bpf_ntohl(a[0]) >> 24 == 127 || (pod && a[0] == pod->ip4);
	if (!a[0] && !a[1] && !a[2] && bpf_ntohl(a[3]) <= 1)
		return true;
	return pod && same_addr(a, pod->ip6);
}

/* decide finds the endpoint for a destination. out is written on REWRITE only. */
static __always_inline enum decision decide(struct frontend_key *dst, const struct pod *pod,
					    struct choice *out)
{
	struct extent table, other;
	struct endpoint *ep;
	struct service *svc;
	struct cluster *cl;
	struct stats *st;

	out->service = find_service(dst);
	if (!out->service)
		return DECISION_PASS;
	svc = bpf_map_lookup_elem(&km_services, &out->service);
	if (!svc)
		return refuse(out->service, KM_REASON_INCOMPLETE);
	if (svc->flags & KM_SERVICE_HTTP && dst->proto == IPPROTO_TCP)
		return DECISION_ROUTE;
	out->cluster = draw_cluster(svc);
	cl = bpf_map_lookup_elem(&km_clusters, &out->cluster);
	if (!cl)
		return refuse(out->service, KM_REASON_INCOMPLETE);
	switch (cl->kind) {
	case KM_KIND_ENDPOINTS:
		break;
	case KM_KIND_PASSTHROUGH:
		st = stats_make(out->service, out->cluster);
		if (st)
			__sync_fetch_and_add(&st->passed, 1);
		return DECISION_PASS;
	case KM_KIND_BLACKHOLE:
		if (to_itself(dst, pod))
			return DECISION_PASS;
		return refuse(out->service, KM_REASON_BLACKHOLE);
	default:
		return refuse(out->service, KM_REASON_TLS);
	}
	table = dst->family == 4 ? cl->v4 : cl->v6;
	other = dst->family == 4 ? cl->v6 : cl->v4;
	if (!table.n)
		return refuse(out->service, other.n ? KM_REASON_NO_FAMILY : KM_REASON_NO_ENDPOINT);
	out->endpoint = choose_endpoint(cl, &table, hash_source(svc, pod, dst->family));
	ep = bpf_map_lookup_elem(&km_endpoints, &out->endpoint);
	if (!ep)
		return refuse(out->service, KM_REASON_INCOMPLETE);
	__builtin_memcpy(out->addr, ep->addr, sizeof(out->addr));
	out->port = ep->port;
	out->limit = cl->max_connections;
	return DECISION_REWRITE;
}

#endif
