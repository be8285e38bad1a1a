/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* legs.h: the pod's connections to endpoints: given a port, opened, parked, ended. */
#ifndef KM_LEGS_H
#define KM_LEGS_H

#include "pick.h"

/* Ports tried for a leg before it goes without timestamps (then any will do). */
#define KM_PORT_TRIES 12

/* How long an endpoint remembers a connection that it closed first (Linux). */
#define KM_TIME_WAIT_MS 60000

struct port_search {
	struct __sk_buff *skb;
	struct flow *flow;
	struct leg_key key;
	__u32 leg;
	__u32 tsval;
	__u32 isn; /* S */
	__u8 timestamps;
	__u8 found;
	__u8 pad[2];
	struct limits *limits;
	__u32 offset;
	__u32 pad2;
};

/*
 * Whether an endpoint in TIME_WAIT takes the new SYN: for a newer timestamp, or a
 * higher sequence number, which is then provided (RFC 6191). Otherwise another port is
 * taken.
 */
static __always_inline bool is_taken_over(struct port_search *s, __u32 seq, __u32 tsval)
{
	if (s->timestamps && tsval)
		return (__s32)(s->tsval - tsval) > 0;
	if (!before(seq + 1, s->isn))
		s->isn = seq + 1000000;
	return true;
}

static __always_inline __u32 last_timestamp(const struct leg *leg)
{
	return leg->flags & KM_LEG_TIMESTAMPS ? leg->tsval : 0;
}

static __always_inline bool leads_to(const struct leg *leg, const struct port_search *s)
{
	return leg->port == s->key.port && same_addr(leg->addr, s->key.endpoint);
}

/* Whether nothing is known of the port's last use that an endpoint minds. */
static __always_inline bool is_at_rest(struct port_search *s)
{
	struct tombstone *t;
	__u32 tag;

	t = tombstone_of(&s->key, &tag);
	return !t || t->tag != tag || now_ms() - t->at > KM_TIME_WAIT_MS ||
	       is_taken_over(s, t->seq, t->tsval);
}

/* Whether the leg that had this port before lets it go: then it has it no more. */
static __noinline bool lets_go(struct port_search *s)
{
	struct leg_ref *ref = bpf_map_lookup_elem(&km_legs, &s->key);
	bool mine, over;
	struct flow *old;
	struct leg *leg;

	if (!ref || !ref->ours)
		return false; /* another layout's (older.h) */
	old = flow_at(ref->slot);
	if (!old)
		return true;
	mine = old == s->flow;
	if (!mine && __sync_val_compare_and_swap(&old->busy, 0, 1))
		return false;
	leg = leg_at(old, ref->leg);
	if (leg->state == KM_LEG_NONE || old->key.pod != s->key.pod || !leads_to(leg, s) ||
	    leg->leg_port != s->key.leg_port)
		over = true; /* it is another leg by now */
	else if ((over = (old->state == KM_FLOW_CLOSED || leg->state == KM_LEG_DEAD) &&
			 is_taken_over(s, leg->sent, last_timestamp(leg))))
		leg->state = KM_LEG_NONE;
	if (!mine)
		unlock_flow(old);
	return over;
}

static __noinline bool tuple_is_taken(struct port_search *s)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	bool taken;

	if (s->key.family == 4) {
		t.ipv4.saddr = s->key.endpoint[0];
		t.ipv4.daddr = s->flow->key.client[0];
		t.ipv4.sport = s->key.port;
		t.ipv4.dport = s->key.leg_port;
		sk = bpf_skc_lookup_tcp(s->skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(t.ipv6.saddr, s->key.endpoint, 16);
		__builtin_memcpy(t.ipv6.daddr, s->flow->key.client, 16);
		t.ipv6.sport = s->key.port;
		t.ipv6.dport = s->key.leg_port;
		sk = bpf_skc_lookup_tcp(s->skb, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return false;
	taken = sk->state != 10; /* a listener has no such tuple */
	bpf_sk_release(sk);
	return taken;
}

/*
 * Ports go round, which leaves each its longest rest, and from an offset of the
 * endpoint's (RFC 6056, section 3.3.3).
 */
static long try_port(__u32 i, struct port_search *s)
{
	struct leg_ref ref = {
		.slot = s->flow->slot,
		.ours = 1,
		.leg = s->leg,
	};
	__u32 at = s->offset + __sync_fetch_and_add(&s->limits->next_port, 1);
	__u16 mask = s->limits->port_mask;

	at *= mask + 1;
	s->key.leg_port =
		bpf_htons(KM_LEG_PORT_BASE | (at & (__u16)~KM_LEG_PORT_MASK & (__u16)~mask) |
			  (__u16)s->limits->port_value);
	if (i == KM_PORT_TRIES)
		s->timestamps = 0;
	if (s->limits->shared && tuple_is_taken(s))
		return 0;
	if (!bpf_map_update_elem(&km_legs, &s->key, &ref, BPF_NOEXIST)) {
		if (is_at_rest(s)) {
			s->found = 1;
			return 1;
		}
		bpf_map_delete_elem(&km_legs, &s->key);
		return 0;
	}
	if (!lets_go(s))
		return 0;
	s->found = !bpf_map_update_elem(&km_legs, &s->key, &ref, BPF_ANY);
	return 1;
}

static __always_inline void forget_leg(struct flow *f, struct leg *leg)
{
	struct leg_key key = {.pod = f->key.pod, .family = f->key.family};

	__builtin_memcpy(key.endpoint, leg->addr, 16);
	key.port = leg->port;
	key.leg_port = leg->leg_port;
	bpf_map_delete_elem(&km_legs, &key);
	leg->state = KM_LEG_NONE;
	uncount_leg(f, leg);
}

/* Counts a leg to the flow's cluster, which bounds them. false: it is one too many. */
static __noinline bool count_leg(struct flow *f)
{
	__u32 cluster = f->cluster;
	struct cluster *cl = bpf_map_lookup_elem(&km_clusters, &cluster);

	return open_connection(f->key.pod, cluster, cl ? cl->max_connections : KM_NO_LIMIT);
}

static __always_inline void mark_leg(struct flow *f, struct leg *leg)
{
	leg->flags |= KM_LEG_LIMITED;
	f->flags |= KM_FLOW_LIMITED;
}

/* What the leg counts in, the one that takes its place will. */
static __always_inline void hand_on(struct leg *leg, struct choice_of *to)
{
	if (!(leg->flags & KM_LEG_LIMITED))
		return;
	leg->flags &= ~KM_LEG_LIMITED;
	to->limited = KM_LIMIT_COUNTED;
}

static long strip_timestamps(__u32 i, struct flow **to)
{
	struct flow *f = *to;

	if (i + 10 > KM_TCP_OPTIONS)
		return 1;
	if (f->options[i & 63] != OPTION_TIMESTAMPS || f->options[(i + 1) & 63] != 10)
		return 0;
	for (__u32 k = 0; k < 10; k++)
		f->options[(i + k) & 63] = OPTION_NOP;
	return 1;
}

/* The client's SYN goes on without timestamps. */
static __always_inline void send_no_timestamps(struct flow *f)
{
	bpf_loop(KM_TCP_OPTIONS, strip_timestamps, &f, 0);
}

/*
 * Makes leg number i a leg to an endpoint of the flow's cluster: gives it a port. 0: none
 * is free, or the cluster allows no further connection.
 */
__noinline int make_leg(struct __sk_buff *skb, struct flow *f, struct choice_of *to, __u32 i)
{
	struct port_search s = {.skb = skb, .flow = f, .leg = i & (KM_LEGS - 1)};
	struct limits *l = limits();
	__u32 isn, tsval;
	struct leg *leg;

	if (!f || !to || !l)
		return 0;
	if (to->limited == KM_LIMIT_COUNT && !count_leg(f))
		return 0;
	s.limits = l;
	s.offset = hash_addr(to->addr, f->key.family) + to->port;
	isn = s.isn = to->isn;
	tsval = to->tsval;
	leg = leg_at(f, i);
	s.key.pod = f->key.pod;
	s.key.family = f->key.family;
	__builtin_memcpy(s.key.endpoint, to->addr, 16);
	s.key.port = to->port;
	s.tsval = tsval;
	s.timestamps = tsval != 0;
	bpf_loop(2 * KM_PORT_TRIES, try_port, &s, 0);
	if (!s.found) {
		count_event(KM_EVENT_LEG_PORT);
		if (to->limited)
			close_connection(f->key.pod, f->cluster);
		return 0;
	}
	bury_leg(f, leg); /* the one that this one replaces */
	uncount_leg(f, leg);
	__builtin_memset(leg, 0, sizeof(*leg));
	f->used_legs |= 1 << (i & (KM_LEGS - 1));
	__builtin_memcpy(leg->addr, to->addr, 16);
	leg->port = to->port;
	leg->leg_port = s.key.leg_port;
	leg->cluster = f->cluster;
	leg->endpoint = to->endpoint;
	leg->state = KM_LEG_SYN;
	leg->flags = s.timestamps ? KM_LEG_TIMESTAMPS : 0;
	if (to->counted)
		leg->flags |= KM_LEG_COUNTED;
	if (to->limited)
		mark_leg(f, leg);
	if (same_addr(to->addr, f->key.client)) {
		leg->flags |= KM_LEG_SELF;
		send_outward();
	}
	leg->dc = s.isn - isn;
	leg->sent = s.isn + 1;
	leg->una = s.isn;
	leg->tsval = tsval;
	leg->since = now_ms();
	leg->tries = 1;
	return 1;
}

static __always_inline int new_leg(struct __sk_buff *skb, struct flow *f, struct choice_of *to,
				   __u32 i, __u32 isn, __u32 tsval)
{
	to->isn = isn;
	to->tsval = tsval;
	return make_leg(skb, f, to, i);
}

/* The client's window as a leg's endpoint reads it. */
static __always_inline __u16 window_for_leg(const struct flow *f, const struct leg *leg,
					    __u16 window)
{
	__u32 w = window;

	if (!(leg->flags & KM_LEG_UNSCALED) || f->client_scale == 255)
		return window;
	w <<= f->client_scale & 15;
	return w > 65535 ? 65535 : w;
}

/* A craft from the pod to a leg's endpoint; seq and ack are of C space. */
static __always_inline void craft_for_leg(struct craft *c, const struct flow *f,
					  const struct leg *leg, __u8 flags, __u32 seq, __u32 ack)
{
	__builtin_memcpy(c->src, leg->flags & KM_LEG_SELF ? f->key.vip : f->key.client, 16);
	__builtin_memcpy(c->dst, leg->addr, 16);
	c->tcp.sport = leg->leg_port;
	c->tcp.dport = leg->port;
	c->tcp.seq = bpf_htonl(seq + leg->dc);
	c->tcp.ack = flags & TCP_ACK ? bpf_htonl(ack - leg->ds) : 0;
	c->tcp.flags = flags;
	c->tcp.window = bpf_htons(window_for_leg(f, leg, f->client_window));
	c->options_len = 0;
	c->len = 0;
	c->link = LINK_KEEP;
}

/* The window that the client was last told, or a small one before there is any. */
static __always_inline __u16 window_for_client(const struct flow *f, const struct leg *leg)
{
	__u32 w = leg->window;

	if (leg->state == KM_LEG_NONE || !w)
		return KM_MAX_HEAD;
	if (f->scale != 255 && leg->scale != f->scale) {
		w = leg->scale > f->scale ? w << (leg->scale - f->scale & 15)
					  : w >> (f->scale - leg->scale & 15);
		w = w > 65535 ? 65535 : w ? w : 1;
	}
	return w;
}

/* A craft from the VIP to the client. */
static __always_inline void craft_for_client(struct craft *c, struct flow *f, __u8 flags, __u32 seq,
					     __u32 ack)
{
	__builtin_memcpy(c->src, f->key.vip, 16);
	__builtin_memcpy(c->dst, f->key.client, 16);
	c->tcp.sport = f->key.vip_port;
	c->tcp.dport = f->key.client_port;
	c->tcp.seq = bpf_htonl(seq);
	c->tcp.ack = bpf_htonl(ack);
	c->tcp.flags = flags;
	c->tcp.window = bpf_htons(window_for_client(f, leg_at(f, f->leg)));
	c->options_len = 0;
	c->len = 0;
	c->link = LINK_KEEP;
}

/*
 * A leg to the pod itself does not leave it: a packet from the pod's own address would
 * not be taken on the interface, so it comes from the VIP.
 */
static __always_inline __u64 leg_direction(const struct leg *leg)
{
	return leg->flags & KM_LEG_SELF ? BPF_F_INGRESS : 0;
}

/* The Ethernet addresses of a craft for a leg: made of a packet that goes out, or came. */
static __always_inline void link_leg(struct craft *c, const struct packet *p, const struct leg *leg)
{
	bool self = leg->flags & KM_LEG_SELF;

	if (p->egress)
		c->link = self ? LINK_SWAP : LINK_TO;
	else
		c->link = self ? LINK_KEEP : LINK_SWAP;
	__builtin_memcpy(c->mac, leg->mac, 6);
}

/* Makes skb the SYN of a leg; isn is of C space. It still is to be sent. */
__noinline int craft_syn(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 i,
			 __u32 isn)
{
	struct work *w;
	struct craft *c;
	struct leg *leg;
	__u8 *o;

	if (!p || !f)
		return -1;
	w = work_of(p);
	if (!w)
		return -1;
	c = &w->craft;
	leg = leg_at(f, i);
	craft_for_leg(c, f, leg, TCP_SYN, isn, 0);
	if (f->state == KM_FLOW_SYN)
		c->tcp.flags = f->syn_flags;
	o = c->bytes + 20;
	if (f->state == KM_FLOW_SYN) {
		/* Still the client's own handshake: with its own options. */
		c->options_len = f->options_len;
		__builtin_memcpy(o, f->options, KM_TCP_OPTIONS);
	} else {
		c->options_len = 12;
		o[0] = OPTION_MSS;
		o[1] = 4;
		o[2] = f->client_mss >> 8;
		o[3] = f->client_mss;
		__builtin_memset(o + 4, OPTION_NOP, 8);
		if (f->scale != 255) {
			o[5] = OPTION_SCALE;
			o[6] = 3;
			o[7] = f->client_scale;
		}
		if (f->flags & KM_FLOW_SACK) {
			o[10] = OPTION_SACK_OK;
			o[11] = 2;
		}
	}
	c->tcp.window = bpf_htons(65535);
	leg->since = now_ms();
	if (leg->flags & KM_LEG_SELF)
		link_leg(c, p, leg);
	return craft_packet(skb, p, c);
}

static __always_inline int send_syn(struct __sk_buff *skb, struct packet *p, struct flow *f,
				    __u32 i, __u32 isn)
{
	if (craft_syn(skb, p, f, i, isn))
		return p->egress ? swallow() : TCX_DROP;
	if (leg_at(f, i)->flags & KM_LEG_SELF)
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
}

#endif
