//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * sendmsg4, sendmsg6: a datagram with a destination of its own, on a UDP socket
 * that is not connected there. The socket keeps the endpoint that it was given
 * for a VIP until that endpoint may no longer be chosen.
 */
#include "udp.h"

static __always_inline enum decision send_to(struct bpf_sock_addr *ctx, struct frontend_key *dst,
					     struct choice *c)
{
	struct pod *pod = this_pod(ctx);
	struct udp_peers *peers;
	struct udp_peer *p;
	enum decision d;

	dst->proto = IPPROTO_UDP;
	dst->scope = pod ? pod->scope : 0;
	peers = bpf_sk_storage_get(&km_udp_peers, ctx->sk, NULL, 0);
	if (peers) {
		p = peer_by_vip(peers, dst);
		/* The service must still be the one that was asked for. */
		if (p && bpf_map_lookup_elem(&km_endpoints, &p->endpoint) &&
		    find_service(dst) == p->service) {
			__builtin_memcpy(c->addr, p->peer, sizeof(c->addr));
			c->port = p->peer_port;
			return DECISION_REWRITE;
		}
	}
	d = decide(dst, pod, c);
	if (d != DECISION_REWRITE)
		return d;
	count_flow(c);
	if (!peers)
		peers = bpf_sk_storage_get(&km_udp_peers, ctx->sk, NULL,
					   BPF_SK_STORAGE_GET_F_CREATE);
	if (peers)
		remember_peer(peers, dst, c);
	return d;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct frontend_key dst = {};
	struct choice c = {};

	load_addr4(ctx, &dst);
	switch (send_to(ctx, &dst, &c)) {
	case DECISION_REFUSE:
		return deny_refused();
	case DECISION_REWRITE:
		store_addr4(ctx, c.addr, c.port);
	default:
		return SOCKADDR_ALLOW;
	}
}

/* A v4-mapped destination never gets here: the kernel runs sendmsg4 for it. */
SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct frontend_key dst = {};
	struct choice c = {};

	load_addr6(ctx, &dst);
	switch (send_to(ctx, &dst, &c)) {
	case DECISION_REFUSE:
		return deny_refused();
	case DECISION_REWRITE:
		store_addr6(ctx, c.addr, c.port, dst.family);
	default:
		return SOCKADDR_ALLOW;
	}
}

char _license[] SEC("license") = "Dual BSD/GPL";
