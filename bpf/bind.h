/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * bind.h: which leg a request goes to. A leg is left only when request and response
 * are framed to their ends and everything is acknowledged; a request that cannot go
 * yet is dropped, and the client's own timer brings it back.
 */
#ifndef KM_BIND_H
#define KM_BIND_H

#include "bounce.h"
#include "framing.h"
#include "reply.h"
#include "room.h"

/* What is to become of a packet; other values are TC's own verdicts. */
#define GO_FORWARD 100 /* to the current leg */
#define GO_PREFIX 101  /* only what is before request.pos */
#define GO_ON 102      /* there is another head in it */
#define GO_ANSWER 103  /* answer it as the decision says */
#define GO_REPLY 104   /* the answer is ready to be sent */
#define GO_HELD 105    /* what is held goes to the current leg */
#define GO_OPEN 106    /* open a leg to the choice */
#define GO_KILL 107    /* reset both ends; not done at once, where the stack is deep already */

/* Pipelined requests that may wait for responses: bits of flow.heads. */
#define KM_MAX_PENDING 30

/* A leg whose endpoint has ended takes no request any more. */
static __always_inline void drop_closing(struct flow *f)
{
	struct leg *leg = leg_at(f, f->leg);

	if (has_leg(f) && leg->flags & KM_LEG_CLOSING && !f->pending) {
		end_leg(f, leg); /* its next packet is answered by RST */
		f->flags |= KM_FLOW_IDLE;
		count_event(KM_EVENT_HIDDEN_END);
	}
}

/* Whether the current leg can be left: nothing is on its way in either direction. */
static __always_inline bool can_leave(struct flow *f)
{
	struct leg *leg = leg_at(f, f->leg);

	if (f->pending || f->response.kind != KM_FRAME_HEAD || f->client_ack != f->server_end)
		return false;
	return f->flags & KM_FLOW_IDLE || leg->state != KM_LEG_OPEN || leg->una == leg->sent;
}

/* The current leg rests: everything that it sent has come. */
static __always_inline void park_leg(struct flow *f)
{
	struct leg *leg = leg_at(f, f->leg);

	if (has_leg(f))
		leg->nxt = f->server_end - leg->ds;
}

/* Goes on with a leg whose last request is over: the client's sequence space continues. */
static __always_inline void resume_leg(struct flow *f, __u32 i, __u32 head)
{
	struct leg *leg = leg_at(f, i);

	park_leg(f);
	leg->dc = leg->sent - head;
	leg->ds = f->server_end - leg->nxt;
	f->leg = i;
	f->flags &= ~KM_FLOW_IDLE;
	if (leg->dc || leg->ds)
		f->flags |= KM_FLOW_REBOUND;
}

/* The request of d, whose head begins at head, goes to the current leg. */
static __always_inline void begin_request(struct flow *f, struct leg *leg, __u32 head,
					  const struct decision_of *d)
{
	__u32 bit = f->pending < KM_MAX_PENDING ? f->pending : KM_MAX_PENDING;

	leg->flags |= KM_LEG_SERVED;
	leg->requests++;
	leg->cluster = f->cluster;
	f->requests++;
	f->heads &= ~(1U << bit);
	f->heads |= (__u32)d->is_head << bit;
	if (!f->pending) {
		f->started = bpf_ktime_get_ns();
		f->seen = f->started >> 20;
	}
	f->pending++;
	count_running(leg, 1);
	f->running = head;
	f->flags &= ~(KM_FLOW_FIRST | KM_FLOW_CHOSEN | KM_FLOW_REPLY);
	f->tries = 0;
	f->tried[0] = f->tried[1] = f->tried[2] = 0;
	f->response.pos = f->pending == 1 ? f->server_end : f->response.pos;
}

/* Behind a head that was matched: its body, then the next head. */
static __always_inline void begin_body(struct frame *frame, __u32 end_of_head,
				       const struct decision_of *d)
{
	frame->pos = end_of_head;
	frame->line = 0;
	frame->len = 0;
	frame->left = d->length;
	frame->kind = d->chunked ? KM_FRAME_CHUNK : d->length ? KM_FRAME_LENGTH : KM_FRAME_HEAD;
}

/* Nothing of this flow can be trusted any more: both ends are reset. */
__noinline int kill_flow(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	__u32 seq, ack;

	if (!p || !f)
		return TCX_DROP;
	seq = f->server_end;
	ack = f->client_end;
	reset_legs(skb, p, f, 1);
	end_flow(f);
	f->flags |= KM_FLOW_IDLE;
	return bounce(skb, p, f, TCP_RST | TCP_ACK, seq, ack);
}

/*
 * Opens a leg for the request of d: what there is of it (len bytes from head on, in
 * scratch) waits in the hold, if one is free; else the client will repeat it.
 */
__noinline int open_leg(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct decision_of *d;
	struct choice_of *to;
	__u32 i, head, end, len;
	struct leg *leg;
	struct work *w;
	bool kept;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	d = &w->decision;
	to = &w->choice;
	head = d->head;
	len = d->have;
	park_leg(f);
	i = free_leg(f);
	leg = leg_at(f, i);
	kept = keep_bytes(f, w, head, len);
	end = head + len;
	if (kept) {
		begin_body(&f->request, head + d->head_len, d);
		if (follow_body(skb, p, &f->request, p->seq, end)) {
			drop_claim(f, to);
			return GO_KILL;
		}
		/* What is behind the request is not held: it is repeated. */
		if (f->request.kind == KM_FRAME_HEAD && before(f->request.pos, end)) {
			end = f->request.pos;
			f->hold_len = end - head;
		}
	}
	/* A guess that was wrong has served nothing: it is reset, not parked. */
	if (has_leg(f) && !(leg_at(f, f->leg)->flags & KM_LEG_SERVED)) {
		count_event(KM_EVENT_REBOUND);
		reset_leg(skb, p, f, f->leg);
	} else if (has_leg(f) && leg_at(f, f->leg)->flags & KM_LEG_WORN) {
		reset_leg(skb, p, f, f->leg);
	}
	if (leg->state == KM_LEG_OPEN)
		reset_leg(skb, p, f, i);
	if (!new_leg(skb, f, to, i, head - 1, 0)) {
		free_hold(f);
		f->request.kind = KM_FRAME_HEAD;
		f->request.pos = head;
		return swallow();
	}
	f->endpoint = to->endpoint;
	f->next_leg = i;
	f->flags |= KM_FLOW_IDLE | KM_FLOW_REBOUND | KM_FLOW_CHOSEN;
	f->flags &= ~KM_FLOW_FIRST;
	f->chosen = f->running = head;
	f->next_cluster = f->cluster;
	f->next_route = f->route;
	f->opening_head = d->is_head;
	f->opening_close = d->close;
	f->started = bpf_ktime_get_ns();
	f->rebinds++;
	count_event(KM_EVENT_SWITCH_NEW);
	return send_syn(skb, p, f, i, head - 1);
}

/* The leg that leads to an endpoint, and may serve; KM_LEGS: none. */
static __noinline __u32 leg_to(struct flow *f, const struct choice_of *to)
{
	for (__u32 i = 0; i < KM_LEGS; i++) {
		struct leg *leg = &f->legs[i];

		if (leg->state == KM_LEG_OPEN && !(leg->flags & KM_LEG_WORN) &&
		    leg->port == to->port && leg->addr[0] == to->addr[0] &&
		    leg->addr[1] == to->addr[1] && leg->addr[2] == to->addr[2] &&
		    leg->addr[3] == to->addr[3])
			return i;
	}
	return KM_LEGS;
}

static __always_inline bool is_worn(const struct leg *leg, const struct cluster *cl)
{
	return cl && cl->max_requests && leg->requests >= cl->max_requests;
}

/* cl is the cluster that the next request is for. */
static __always_inline void wear_leg(struct flow *f, const struct cluster *cl, __u32 next)
{
	struct leg *leg = leg_at(f, f->leg);
	__u32 cluster = leg->cluster;

	if (!has_leg(f) || f->pending)
		return;
	if (cluster != next)
		cl = bpf_map_lookup_elem(&km_clusters, &cluster);
	if (is_worn(leg, cl))
		leg->flags |= KM_LEG_WORN;
}

/*
 * Whether the current leg may serve another request of the cluster without a new
 * choice: the guess that turns out right (it was drawn by the same policy).
 */
static __always_inline bool is_confirmed(struct flow *f, const struct cluster *cl, __u32 cluster)
{
	struct leg *leg = leg_at(f, f->leg);
	__u32 endpoint = leg->endpoint;

	if (!has_leg(f) || leg->cluster != cluster || !cl)
		return false;
	if (cl->kind == KM_KIND_ENDPOINTS) {
		/* Where there is one endpoint, every policy chooses it. */
		struct extent table = f->key.family == 4 ? cl->v4 : cl->v6;
		struct slot *s = table.n == 1 ? slot_at(&table, 0) : NULL;

		if (s && s->endpoint == endpoint && !(leg->flags & KM_LEG_WORN)) {
			f->memo.cluster = cl->max_requests ? 0 : cluster;
			f->memo.endpoint = endpoint;
			return true;
		}
	}
	if (!(f->flags & KM_FLOW_FIRST) || cl->policy == KM_POLICY_MAGLEV)
		return false;
	return !endpoint || bpf_map_lookup_elem(&km_endpoints, &endpoint);
}

/* Whether nothing but the current leg can come out of a choice for the cluster. */
static __always_inline bool is_sole(struct flow *f, __u32 cluster)
{
	struct leg *leg = leg_at(f, f->leg);

	return f->memo.cluster == cluster && has_leg(f) && leg->cluster == cluster &&
	       leg->endpoint == f->memo.endpoint && !(leg->flags & KM_LEG_WORN);
}

/* The request of d goes to the current leg, with what is held of it, if anything is. */
static __always_inline int forward_request(struct __sk_buff *skb, struct packet *p, struct flow *f,
					   struct work *w, struct decision_of *d)
{
	__u32 end = p->seq + p->len;

	begin_request(f, leg_at(f, f->leg), d->head, d);
	begin_body(&f->request, d->head + d->head_len, d);
	if (f->hold) {
		__u32 until = d->head + d->have;

		if (follow_body(skb, p, &f->request, p->seq, until))
			return GO_KILL;
		keep_bytes(f, w, d->head, d->have);
		if (f->request.kind == KM_FRAME_HEAD && before(f->request.pos, until))
			f->hold_len = f->request.pos - d->head;
		return GO_HELD;
	}
	if (!follow_length(&f->request, end) && follow_body(skb, p, &f->request, p->seq, end))
		return GO_KILL;
	if (f->request.kind == KM_FRAME_HEAD && before(f->request.pos, end))
		return GO_ON;
	return GO_FORWARD;
}

/* A request for a cluster: to which leg? */
__noinline int bind_request(struct __sk_buff *skb, struct packet *p, struct flow *f,
			    struct decision_of *d)
{
	struct choice_of *to;
	struct cluster *cl = NULL;
	__u32 cluster, i;
	struct leg *leg;
	struct work *w;
	bool sole, stays;

	if (!p || !f || !d)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	to = &w->choice;
	if (f->flags & KM_FLOW_CHOSEN && f->chosen == d->head) {
		d->cluster = f->next_cluster; /* drawn once: waiting must not bend the weights */
		d->route = f->next_route;
	}
	cluster = d->cluster;
	drop_closing(f);
	sole = is_sole(f, cluster);
	if (!sole) {
		cl = bpf_map_lookup_elem(&km_clusters, &cluster);
		wear_leg(f, cl, cluster);
	}
	leg = leg_at(f, f->leg);
	if (f->pending) {
		if (has_leg(f) && leg->cluster == cluster && f->cluster == cluster &&
		    f->pending < KM_MAX_PENDING && !(f->flags & KM_FLOW_CLOSE)) {
			f->route = d->route;
			goto forward;
		}
		f->endpoint = 0; /* it will be chosen when the request can go */
		goto wait;
	}
	if (sole || is_confirmed(f, cl, cluster))
		goto confirmed;
	i = KM_LEGS;
	if (f->flags & KM_FLOW_CHOSEN && f->chosen == d->head && f->endpoint) {
		__u32 endpoint = f->endpoint;
		struct endpoint *ep = bpf_map_lookup_elem(&km_endpoints, &endpoint);

		if (ep) {
			__builtin_memcpy(to->addr, ep->addr, 16);
			to->port = ep->port;
			to->endpoint = endpoint;
			if (cl)
				count_choice(to, cl);
			i = leg_to(f, to);
		}
	}
	if (i == KM_LEGS) {
		if (!pick_endpoint(f, to, cluster, d->hashed ? d->hash : bpf_get_prandom_u32())) {
			d->reply = 503;
			count_event(KM_EVENT_NO_ENDPOINT);
			return GO_ANSWER;
		}
		i = leg_to(f, to);
	}
	stays = has_leg(f) && i == f->leg;
	if (!stays) {
		f->endpoint = to->endpoint;
		if (!can_leave(f))
			goto wait;
	}
	f->cluster = cluster;
	f->route = d->route;
	/* Bytes before the head belong to the leg that is left. */
	if (!stays && before(p->seq, d->head) && !f->hold)
		return GO_PREFIX;
	if (!has_room(f, to, i)) {
		/* What the connection has of the cluster serves, whatever was drawn. */
		i = stays ? KM_LEGS : leg_of_cluster(f, cluster);
		if (i == KM_LEGS) {
			count_refusal(f->service, KM_REASON_OVERFLOW);
			d->reply = KM_REPLY_OVERFLOW;
			return GO_ANSWER;
		}
		stays = has_leg(f) && i == f->leg;
	}
	if (i == KM_LEGS)
		return GO_OPEN;
	if (!stays) {
		count_event(KM_EVENT_SWITCH_PARKED);
		f->rebinds++;
		resume_leg(f, i, d->head);
		goto forward;
	}
confirmed:
	if (f->flags & KM_FLOW_FIRST)
		count_event(KM_EVENT_CONFIRMED);
	f->cluster = cluster;
	f->route = d->route;
forward:
	return forward_request(skb, p, f, w, d);
wait:
	f->chosen = d->head;
	f->next_cluster = cluster;
	f->next_route = d->route;
	f->flags |= KM_FLOW_CHOSEN;
	count_event(KM_EVENT_HELD);
	return GO_PREFIX;
}

#endif
