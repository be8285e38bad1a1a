/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * sockaddr.h: between a socket-address program's context and the addresses of
 * abi.h. An IPv6 socket that speaks to a v4-mapped address speaks IPv4: it is
 * looked up as IPv4 and its rewritten address is mapped again.
 */
#ifndef KM_SOCKADDR_H
#define KM_SOCKADDR_H

#include "decide.h"

#include <bpf/bpf_endian.h>

#define ECONNREFUSED 111

/* Verdicts of cgroup socket-address programs. */
#define SOCKADDR_DENY 0
#define SOCKADDR_ALLOW 1

#define MAPPED_PREFIX bpf_htonl(0x0000ffff)

/* The pod that a program runs for; NULL until its record is written. */
static __always_inline struct pod *this_pod(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	return bpf_map_lookup_elem(&km_pods, &cookie);
}

/* The context's address: true if it is IPv4, plain or mapped. */
static __always_inline void load_addr4(struct bpf_sock_addr *ctx, struct frontend_key *key)
{
	key->family = 4;
	key->port = ctx->user_port;
	key->addr[0] = ctx->user_ip4;
}

static __always_inline void load_addr6(struct bpf_sock_addr *ctx, struct frontend_key *key)
{
	__be32 a0 = ctx->user_ip6[0], a1 = ctx->user_ip6[1];
	__be32 a2 = ctx->user_ip6[2], a3 = ctx->user_ip6[3];

	key->port = ctx->user_port;
	if (!a0 && !a1 && a2 == MAPPED_PREFIX) {
		key->family = 4;
		key->addr[0] = a3;
		return;
	}
	key->family = 6;
	key->addr[0] = a0;
	key->addr[1] = a1;
	key->addr[2] = a2;
	key->addr[3] = a3;
}

static __always_inline void store_addr4(struct bpf_sock_addr *ctx, const __be32 *addr, __be16 port)
{
	ctx->user_ip4 = addr[0];
	ctx->user_port = port;
}

/* family is the address's own: 4 is stored mapped. */
static __always_inline void store_addr6(struct bpf_sock_addr *ctx, const __be32 *addr, __be16 port,
					__u8 family)
{
	ctx->user_ip6[0] = family == 4 ? 0 : addr[0];
	ctx->user_ip6[1] = family == 4 ? 0 : addr[1];
	ctx->user_ip6[2] = family == 4 ? MAPPED_PREFIX : addr[2];
	ctx->user_ip6[3] = family == 4 ? addr[0] : addr[3];
	ctx->user_port = port;
}

static __always_inline int deny_refused(void)
{
	bpf_set_retval(-ECONNREFUSED);
	return SOCKADDR_DENY;
}

#endif
