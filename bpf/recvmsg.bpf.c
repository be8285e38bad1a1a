//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * recvmsg4, recvmsg6: a datagram from an endpoint is shown as coming from the VIP
 * that this socket sent to.
 */
#include "older.h"
#include "udp.h"

/* Replaces the source in src by the VIP; false if the socket knows of none. */
static __always_inline bool show_vip(struct bpf_sock_addr *ctx, struct frontend_key *src)
{
	struct udp_peers *peers = bpf_sk_storage_get(&km_udp_peers, ctx->sk, NULL, 0);
	struct udp_peer *p;

	if (!peers)
		return false;
	p = peer_by_source(peers, src);
	if (!p)
		return false;
	__builtin_memcpy(src->addr, p->vip, sizeof(src->addr));
	src->port = p->vip_port;
	return true;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct frontend_key src = {};

	load_addr4(ctx, &src);
	if (show_vip(ctx, &src))
		store_addr4(ctx, src.addr, src.port);
	else
		ASK_OLDER(ctx, recvmsg4);
	return SOCKADDR_ALLOW;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct frontend_key src = {};

	load_addr6(ctx, &src);
	if (show_vip(ctx, &src))
		store_addr6(ctx, src.addr, src.port, src.family);
	else
		ASK_OLDER(ctx, recvmsg6);
	return SOCKADDR_ALLOW;
}

char _license[] SEC("license") = "Dual BSD/GPL";
