//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * sock_ops: the life of a stamped TCP connection: open connections per endpoint (for
 * least request) and per cluster (where they are bounded), opened, failed, closed, bytes.
 */
#include "limit.h"
#include "lock.h"
#include "older.h"
#include "ports.h"
#include "stats.h"

/* TCP states (RFC 9293, section 3.3.2) as the kernel numbers them. */
enum {
	STATE_FIN_WAIT1 = 4,
	STATE_FIN_WAIT2 = 5,
	STATE_CLOSE = 7,
	STATE_LAST_ACK = 9,
	STATE_CLOSING = 11,
};

/* What is read of the kernel's types; offsets are relocated at load (CO-RE). */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sock_common {
	unsigned long skc_flags;
};
struct sock {
	struct sock_common __sk_common;
	__u8 sk_shutdown;
};
struct inet_sock {
	struct sock sk;
};
struct inet_connection_sock {
	struct inet_sock icsk_inet;
};
struct tcp_sock {
	struct inet_connection_sock inet_conn;
};
#pragma clang attribute pop

#define SOCK_DONE 1 /* enum sock_flags: the peer's FIN has come */

static __always_inline bool got_fin(struct bpf_sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	return tp && tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags & (1UL << SOCK_DONE);
}

#define SHUTDOWN_MASK 3 /* include/net/sock.h: for receiving and for sending */

/*
 * Whether a socket whose FIN goes out is no application's any more. What it still sends,
 * and waits for, is the kernel's.
 */
static __always_inline bool is_left(struct bpf_sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	return tp && tp->inet_conn.icsk_inet.sk.sk_shutdown == SHUTDOWN_MASK;
}

static __always_inline void count_active(struct stamp *stamp, __s64 by)
{
	__u64 *n = bpf_map_lookup_elem(&km_active, &stamp->endpoint);

	if (n)
		__sync_fetch_and_add(n, by);
}

static __always_inline void connecting(struct bpf_sock_ops *ctx, struct stamp *stamp)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (stamp->flags & KM_STAMP_COUNTED)
		return;
	stamp->flags |= KM_STAMP_COUNTED;
	count_active(stamp, 1);
	if (stamp->flags & KM_STAMP_CLAIMED) {
		stamp->flags ^= KM_STAMP_CLAIMED | KM_STAMP_LIMITED;
		settle_claim(bpf_get_netns_cookie(ctx), stamp->cluster, stamp->claimed, true);
	}
	/* Made here, so that a failure finds its counters. */
	stats_make(stamp->service, stamp->cluster);
}

static __always_inline void established(struct bpf_sock_ops *ctx, struct stamp *stamp)
{
	struct stats *st = stats_find(stamp->service, stamp->cluster);

	stamp->flags |= KM_STAMP_OPEN;
	/* The kernel counts our SYN as a byte that was acknowledged; data in it counts. */
	stamp->settled_sent = 1;
	if (st)
		__sync_fetch_and_add(&st->opened, 1);
}

/* The application has closed its end: it may have another connection from now on. */
static __always_inline void left(struct bpf_sock_ops *ctx, struct stamp *stamp)
{
	if (!(stamp->flags & KM_STAMP_LIMITED))
		return;
	stamp->flags &= ~KM_STAMP_LIMITED;
	close_connection(bpf_get_netns_cookie(ctx), stamp->cluster);
}

static __always_inline void closed(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
				   struct stamp *stamp)
{
	struct stats *st = stats_find(stamp->service, stamp->cluster);
	__u64 sent = ctx->bytes_acked, received = ctx->bytes_received;
	__u32 was = ctx->args[0];
	bool acked = ctx->snd_una == ctx->snd_nxt;

	if (stamp->flags & KM_STAMP_COUNTED)
		count_active(stamp, -1);
	left(ctx, stamp);
	/* A FIN counts as a byte too, in both directions. */
	if (acked && (was == STATE_FIN_WAIT2 || was == STATE_LAST_ACK || was == STATE_CLOSING))
		sent--;
	if (got_fin(sk) && received)
		received--;
	if (st && (stamp->flags & KM_STAMP_OPEN)) {
		__sync_fetch_and_add(&st->closed, 1);
		settle(&st->sent, &stamp->settled_sent, sent);
		settle(&st->received, &stamp->settled_received, received);
	} else if (st) {
		__sync_fetch_and_add(&st->failed, 1);
	}
	stamp->flags = 0;
}

/*
 * A client whose requests are routed, where connections are bounded. Most of what ends one
 * passes the interface; that the client has closed is known here before, and that it has
 * given up while nobody answers here only.
 */
static __always_inline void routed(struct bpf_sock_ops *ctx, struct stamp *stamp)
{
	struct limits *l;
	struct flow *f;

	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		l = limits();
		if (l && l->limited)
			bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags |
							       BPF_SOCK_OPS_STATE_CB_FLAG);
		return;
	}
	if (ctx->op != BPF_SOCK_OPS_STATE_CB)
		return;
	f = flow_at(stamp->flow.slot);
	if (!f || !(f->flags & KM_FLOW_LIMITED))
		return;
	f = lock_ref(stamp->flow.slot, stamp->flow.generation);
	if (!f)
		return;
	if (f->flags & KM_FLOW_LIMITED)
		uncount_legs(f);
	unlock_flow(f);
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	struct stamp *stamp;
	struct bpf_sock *sk;
	__u32 state = 0;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (is_leg_port(bpf_htons(ctx->local_port)))
			share_ports();
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		break;
	case BPF_SOCK_OPS_STATE_CB:
		state = ctx->args[1];
		if (state != STATE_CLOSE && state != STATE_FIN_WAIT1 && state != STATE_LAST_ACK)
			return 1;
		break;
	default:
		return 1;
	}
	sk = ctx->sk;
	if (!sk)
		return 1;
	stamp = bpf_sk_storage_get(&km_stamps, sk, NULL, 0);
	if (!stamp) {
		ASK_OLDER(ctx, sock_ops);
		return 1;
	}
	if (state && state != STATE_CLOSE && !is_left(sk))
		return 1;
	if (stamp->flags & KM_STAMP_HTTP) {
		routed(ctx, stamp);
		return 1;
	}
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connecting(ctx, stamp);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		established(ctx, stamp);
		break;
	default:
		if (state == STATE_CLOSE)
			closed(ctx, sk, stamp);
		else
			left(ctx, stamp);
	}
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
