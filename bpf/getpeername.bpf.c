//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * getpeername4, getpeername6: the application sees the VIP that it connected to.
 * MPTCP sockets do not run this hook (known limit).
 */
#include "older.h"
#include "sockaddr.h"

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct stamp *stamp = bpf_sk_storage_get(&km_stamps, ctx->sk, NULL, 0);

	if (!stamp)
		ASK_OLDER(ctx, getpeername4);
	if (stamp && stamp->family == 4)
		store_addr4(ctx, stamp->addr, stamp->port);
	return SOCKADDR_ALLOW;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct stamp *stamp = bpf_sk_storage_get(&km_stamps, ctx->sk, NULL, 0);

	if (stamp)
		store_addr6(ctx, stamp->addr, stamp->port, stamp->family);
	else
		ASK_OLDER(ctx, getpeername6);
	return SOCKADDR_ALLOW;
}

char _license[] SEC("license") = "Dual BSD/GPL";
