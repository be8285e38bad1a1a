/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * flow.h: a client's connection, and its end. An ended flow keeps its element, and its
 * late packets their translation, until the element is used anew: at once where nothing
 * can be late any more, else the oldest goes first.
 */
#ifndef KM_FLOW_H
#define KM_FLOW_H

#include "kernel.h"
#include "limit.h"
#include "lock.h"
#include "packet.h"
#include "tombstone.h"

/* A client without a request for so long is looked for; a live one has its socket. */
#define KM_IDLE_MS 30000

/* Elements looked at for a client that vanished, when there is no other one. */
#define KM_RECLAIM 1024

/*
 * In units of 2^20 ns, 5 % more than a millisecond, which need no division; and to the
 * timer's tick: what is timed by it takes 150 ms and more.
 */
static __always_inline __u32 now_ms(void)
{
	return bpf_ktime_get_coarse_ns() >> 20;
}

static __always_inline void end_leg(struct flow *f, struct leg *leg)
{
	leg->state = KM_LEG_DEAD;
	uncount_leg(f, leg);
}

/* Requests that run, where the cluster's policy asks for their number. */
static __always_inline void count_running(const struct leg *leg, __s64 by)
{
	__u32 endpoint = leg->endpoint;
	__u64 *n;

	if (!(leg->flags & KM_LEG_COUNTED))
		return;
	n = bpf_map_lookup_elem(&km_active, &endpoint);
	if (n)
		__sync_fetch_and_add(n, by);
}

static __always_inline struct hold *hold_at(__u32 number)
{
	__u32 slot = number - 1;

	return bpf_map_lookup_elem(&km_holds, &slot);
}

static long poison(__u32 i, struct hold **h)
{
	(*h)->bytes[i & (KM_MAX_HEAD - 1)] = 0xdb;
	return 0;
}

/*
 * What is seldom done is not inline where much is: the instructions between those that
 * every packet needs cost the cache.
 */
static __noinline int return_hold(struct flow *f)
{
	struct limits *l = limits();
	__u32 slot = f->hold - 1;
	struct hold *h;

	h = hold_at(f->hold);
	f->hold = 0;
	f->hold_len = 0;
	f->flags &= ~KM_FLOW_HELD;
	if (!h || !l)
		return 0;
	h->owner.generation = 0;
	if (l->poison)
		bpf_loop(KM_MAX_HEAD, poison, &h, 0);
	bpf_map_push_elem(&km_free_holds, &slot, 0);
	return 0;
}

static __always_inline void free_hold(struct flow *f)
{
	if (f->hold)
		return_hold(f);
}

/* The flow's hold, taken if it has none; NULL: all are in use. */
static __noinline struct hold *take_hold(struct flow *f)
{
	struct limits *l = limits();
	struct hold *h;
	__u32 slot;

	if (f->hold) {
		h = hold_at(f->hold);
		if (h && h->owner.generation == f->generation && h->owner.slot == f->slot)
			return h;
		f->hold = 0;
		return NULL;
	}
	if (!l)
		return NULL;
	if (bpf_map_pop_elem(&km_free_holds, &slot)) {
		if (l->next_hold >= l->holds)
			goto full;
		slot = __sync_fetch_and_add(&l->next_hold, 1);
		if (slot >= l->holds)
			goto full;
	}
	h = hold_at(slot + 1);
	if (!h)
		return NULL;
	h->owner.slot = f->slot;
	h->owner.generation = f->generation;
	f->hold = slot + 1;
	f->hold_len = 0;
	return h;
full:
	count_event(KM_EVENT_HOLD_FULL);
	return NULL;
}

__noinline int count_request(struct flow *f, __u32 route, __u32 cluster, bool local);

/*
 * Whether both ends have ended, in words of their own: the element of the flow is listed
 * when the last ACK has passed. Where it does not, reclaim_flow finds it.
 */
static __always_inline bool awaits_ack(struct flow *f)
{
	__u16 both = KM_FLOW_CLIENT_FIN | KM_FLOW_SERVER_FIN;

	return (f->flags & (both | KM_FLOW_IDLE)) == both &&
	       leg_at(f, f->leg)->state == KM_LEG_OPEN;
}

/* Ends a flow that is locked; its packets still pass. */
__noinline int end_flow(struct flow *f)
{
	__u64 *open, pod;
	__u32 slot;

	if (!f || f->state == KM_FLOW_CLOSED || f->state == KM_FLOW_FREE)
		return 0;
	pod = f->key.pod;
	slot = f->slot;
	f->state = KM_FLOW_CLOSED;
	f->seen = now_ms();
	if (f->pending && !(f->flags & KM_FLOW_IDLE)) {
		count_running(leg_at(f, f->leg), -(__s64)f->pending);
		/* Its response ends with the connection, or was broken off. */
		count_request(f, f->route, f->cluster, false);
	}
	f->pending = 0;
	free_hold(f);
	if (f->flags & KM_FLOW_LIMITED)
		uncount_legs(f);
	open = bpf_map_lookup_elem(&km_quotas, &pod);
	if (open)
		__sync_fetch_and_add(open, -1);
	if (!awaits_ack(f)) {
		f->flags |= KM_FLOW_LISTED;
		bpf_map_push_elem(&km_ended, &slot, 0);
	}
	return 0;
}

/* After a packet of an ended flow: whether it was the last one. */
static __noinline int check_over(struct flow *f)
{
	__u32 slot = f->slot;
	struct leg *leg = leg_at(f, f->leg);

	if (f->flags & KM_FLOW_LISTED || !awaits_ack(f) || f->client_ack != f->server_end ||
	    leg->una != leg->sent)
		return 0;
	f->flags |= KM_FLOW_LISTED;
	bpf_map_push_elem(&km_over, &slot, 0);
	return 0;
}

/* Where the search for vanished clients stands. */
struct reclaim {
	struct __sk_buff *skb;
	__u64 pod;
	__u32 now;
	__u32 hand;
	__u32 flows;
};

static __always_inline bool client_is_there(struct __sk_buff *skb, const struct flow_key *k)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	bool there;

	if (k->family == 4) {
		t.ipv4.saddr = k->vip[0];
		t.ipv4.daddr = k->client[0];
		t.ipv4.sport = k->vip_port;
		t.ipv4.dport = k->client_port;
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(t.ipv6.saddr, k->vip, 16);
		__builtin_memcpy(t.ipv6.daddr, k->client, 16);
		t.ipv6.sport = k->vip_port;
		t.ipv6.dport = k->client_port;
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	there = sk && sk->state != 10; /* a listener is no client */
	if (sk)
		bpf_sk_release(sk);
	return there;
}

/* The last ACK did not pass: it was lost, or its sender is gone. */
static __noinline long list_unacked(struct flow *f)
{
	__u32 slot = f->slot;
	bool listed = false;

	if (__sync_val_compare_and_swap(&f->busy, 0, 1))
		return 0;
	if (f->state == KM_FLOW_CLOSED && !(f->flags & KM_FLOW_LISTED)) {
		f->flags |= KM_FLOW_LISTED;
		bpf_map_push_elem(&km_over, &slot, 0);
		listed = true;
	}
	unlock_flow(f);
	return listed;
}

static long look_at(__u32 i, struct reclaim *r)
{
	__u32 slot = r->hand++ % r->flows;
	struct flow *f = flow_at(slot);
	bool gone;

	if (!f)
		return 0;
	if (f->state == KM_FLOW_CLOSED && !(f->flags & KM_FLOW_LISTED))
		return list_unacked(f);
	if ((f->state != KM_FLOW_OPEN && f->state != KM_FLOW_SYN) || r->now - f->seen < KM_IDLE_MS)
		return 0;
	if (f->key.pod == r->pod) {
		struct flow_key k = f->key;

		gone = !client_is_there(r->skb, &k);
	} else {
		__u64 pod = f->key.pod;

		gone = !bpf_map_lookup_elem(&km_pods, &pod);
	}
	if (!gone || __sync_val_compare_and_swap(&f->busy, 0, 1))
		return 0;
	end_flow(f);
	unlock_flow(f);
	count_event(KM_EVENT_RECLAIMED);
	return 1;
}

/* Ends one flow whose client is gone without a word, if one is found soon. */
__noinline int reclaim_flow(struct __sk_buff *skb, __u64 pod)
{
	struct limits *l = limits();
	struct reclaim r = {.skb = skb, .pod = pod, .now = now_ms()};

	if (!l || !l->flows)
		return 0;
	r.flows = l->flows;
	r.hand = l->hand;
	bpf_loop(KM_RECLAIM, look_at, &r, 0);
	l->hand = r.hand;
	return 0;
}

static __always_inline bool same_ref(const struct flow_ref *ref, __u32 slot, __u32 generation)
{
	return ref && ref->slot == slot && ref->generation == generation;
}

/* Removes the look-ups that lead to an element which is used anew, and its legs. */
__noinline int forget_flow(struct flow *f)
{
	struct flow_key key;
	struct flow_ref *ref;

	if (!f)
		return 0;
	key = f->key;
	ref = bpf_map_lookup_elem(&km_tuples, &key);
	if (same_ref(ref, f->slot, f->generation))
		bpf_map_delete_elem(&km_tuples, &key);
	for (int i = 0; i < KM_LEGS; i++) {
		if (!(f->used_legs >> i & 1))
			continue;
		bury_leg(f, &f->legs[i]);
		__builtin_memset(&f->legs[i], 0, sizeof(f->legs[i]));
	}
	return 0;
}

#endif
