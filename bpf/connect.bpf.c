//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * connect4, connect6: the service is found and an endpoint chosen once, when the
 * application connects; the socket's storage remembers what the application meant.
 */
#include "limit.h"
#include "ports.h"
#include "udp.h"

/*
 * Whether the pod may have one more connection to the cluster: then the socket has a
 * claim. One of an attempt that failed before is given back.
 */
static __noinline bool claim(struct bpf_sock_addr *ctx, struct choice *c)
{
	struct stamp *stamp = bpf_sk_storage_get(&km_stamps, ctx->sk, NULL, 0);
	__u64 pod = bpf_get_netns_cookie(ctx);

	if (stamp && stamp->flags & KM_STAMP_CLAIMED) {
		stamp->flags &= ~KM_STAMP_CLAIMED;
		settle_claim(pod, stamp->cluster, stamp->claimed, false);
	}
	return claim_connection(pod, c->cluster, c->limit, &c->claimed);
}

/*
 * connect_to decides for dst and stamps the socket. A socket that connects anew
 * (UDP, or TCP after a refusal) must not keep an old stamp.
 */
static __always_inline enum decision connect_to(struct bpf_sock_addr *ctx, struct frontend_key *dst,
						struct choice *c)
{
	struct pod *pod = this_pod(ctx);
	struct udp_peers *peers;
	struct stamp *stamp;
	bool limited;
	enum decision d;

	dst->proto = governed_proto(ctx->protocol);
	dst->scope = pod ? pod->scope : 0;
	d = decide(dst, pod, c);
	if (d == DECISION_REFUSE)
		return d; /* a UDP socket stays connected where it was */
	if (d == DECISION_PASS) {
		bpf_sk_storage_delete(&km_stamps, ctx->sk);
		return d;
	}
	limited = d == DECISION_REWRITE && c->limit != KM_NO_LIMIT && dst->proto == IPPROTO_TCP;
	if (limited && !claim(ctx, c))
		return refuse(c->service, KM_REASON_OVERFLOW);
	stamp = bpf_sk_storage_get(&km_stamps, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (stamp) {
		__builtin_memcpy(stamp->addr, dst->addr, sizeof(stamp->addr));
		stamp->port = dst->port;
		stamp->family = dst->family;
		stamp->flags = d == DECISION_ROUTE ? KM_STAMP_HTTP : limited ? KM_STAMP_CLAIMED : 0;
		stamp->claimed = c->claimed;
		stamp->flow.generation = 0;
		stamp->service = c->service;
		stamp->cluster = c->cluster;
		stamp->endpoint = c->endpoint;
		stamp->settled_sent = 0;
		stamp->settled_received = 0;
		if (d == DECISION_ROUTE && is_leg_port(dst->port))
			send_outward();
	}
	if (dst->proto == IPPROTO_UDP) {
		count_flow(c);
		peers = bpf_sk_storage_get(&km_udp_peers, ctx->sk, NULL,
					   BPF_SK_STORAGE_GET_F_CREATE);
		if (peers)
			remember_peer(peers, dst, c);
	}
	return d;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct frontend_key dst = {};
	struct choice c = {};

	load_addr4(ctx, &dst);
	switch (connect_to(ctx, &dst, &c)) {
	case DECISION_REFUSE:
		return deny_refused();
	case DECISION_REWRITE:
		store_addr4(ctx, c.addr, c.port);
	default:
		return SOCKADDR_ALLOW;
	}
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct frontend_key dst = {};
	struct choice c = {};

	load_addr6(ctx, &dst);
	switch (connect_to(ctx, &dst, &c)) {
	case DECISION_REFUSE:
		return deny_refused();
	case DECISION_REWRITE:
		store_addr6(ctx, c.addr, c.port, dst.family);
	default:
		return SOCKADDR_ALLOW;
	}
}

char _license[] SEC("license") = "Dual BSD/GPL";
