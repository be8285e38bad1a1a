//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Iterators over the kernel's own socket lists, run by the helper.
 *   sockets   every stamped socket of the node: one record each, and the bytes of
 *             live connections are added to the counters
 *   sockets_tcp, sockets_udp   the same in one pod's netns, for kernels that do not
 *             permit iterators over a map's elements (lockdown, hardening patches)
 *   udp_reap  in one pod's netns: ends connected UDP sockets whose endpoint may no
 *             longer be chosen; the application gets an error (ECONNABORTED from
 *             recv, EDESTADDRREQ from send) and connects anew
 */
#include "stats.h"

#include <stdbool.h>

/* What is read of the kernel's types; offsets are relocated at load (CO-RE). */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct seq_file;
struct net {
	__u64 net_cookie;
};
struct possible_net {
	struct net *net;
};
typedef struct possible_net possible_net_t;
struct sock_common {
	volatile unsigned char skc_state;
	possible_net_t skc_net;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
struct inet_sock {
	struct sock sk;
};
struct udp_sock {
	struct inet_sock inet;
};
struct tcp_sock {
	__u64 bytes_received;
	__u64 bytes_acked;
};
struct bpf_iter_meta {
	struct seq_file *seq;
};
struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
};
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};
struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

#pragma clang attribute pop

extern int bpf_sock_destroy(struct sock_common *sock) __ksym;

#define IPPROTO_TCP 6
#define STATE_ESTABLISHED 1

/*
 * Bytes of an established connection. Others are left to sock_ops, which knows
 * whether a FIN is among the bytes.
 */
static __always_inline void settle_live(struct sock *sk, struct stamp *stamp)
{
	struct stats_key key = {.service = stamp->service, .cluster = stamp->cluster};
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct stats *st = bpf_map_lookup_elem(&km_stats, &key);

	if (!tp || !st || !(stamp->flags & KM_STAMP_OPEN))
		return;
	settle(&st->sent, &stamp->settled_sent, tp->bytes_acked);
	settle(&st->received, &stamp->settled_received, tp->bytes_received);
}

/* Writes the record of a socket that has a stamp. state is 0 where it is not TCP. */
static __always_inline int record_socket(struct seq_file *seq, struct sock *sk, __u8 state)
{
	struct socket_record rec = {.state = state};
	struct stamp *stamp = bpf_sk_storage_get(&km_stamps, sk, NULL, 0);

	if (!stamp)
		return 0;
	rec.pod = sk->__sk_common.skc_net.net->net_cookie;
	rec.service = stamp->service;
	rec.cluster = stamp->cluster;
	rec.endpoint = stamp->endpoint;
	rec.flags = stamp->flags;
	if (state == STATE_ESTABLISHED)
		settle_live(sk, stamp);
	bpf_seq_write(seq, &rec, sizeof(rec));
	return 0;
}

SEC("iter/bpf_sk_storage_map")
int sockets(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	bool tcp;

	if (!sk || !ctx->value)
		return 0;
	tcp = sk->sk_protocol == IPPROTO_TCP;
	return record_socket(ctx->meta->seq, sk, tcp ? sk->__sk_common.skc_state : 0);
}

SEC("iter/tcp")
int sockets_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;

	if (!skc)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc); /* not a request or a TIME_WAIT: those have no stamp */
	return tp ? record_socket(ctx->meta->seq, (struct sock *)tp, skc->skc_state) : 0;
}

SEC("iter/udp")
int sockets_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *us = ctx->udp_sk;

	return us ? record_socket(ctx->meta->seq, &us->inet.sk, 0) : 0;
}

SEC("iter/udp")
int udp_reap(struct bpf_iter__udp *ctx)
{
	struct udp_sock *us = ctx->udp_sk;
	struct socket_record rec = {};
	struct stamp *stamp;
	struct sock *sk;

	if (!us)
		return 0;
	sk = &us->inet.sk;
	stamp = bpf_sk_storage_get(&km_stamps, sk, NULL, 0);
	/* A socket that was disconnected since (connect to AF_UNSPEC) keeps its stamp. */
	if (!stamp || sk->__sk_common.skc_state != STATE_ESTABLISHED ||
	    bpf_map_lookup_elem(&km_endpoints, &stamp->endpoint))
		return 0;
	rec.service = stamp->service;
	rec.cluster = stamp->cluster;
	rec.endpoint = stamp->endpoint;
	if (bpf_sock_destroy((struct sock_common *)us))
		return 0;
	bpf_seq_write(ctx->meta->seq, &rec, sizeof(rec));
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
