/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * request.h: what the client sends. Each head is matched when it is whole, and only
 * then goes on, is answered, or turns the connection into L4.
 */
#ifndef KM_REQUEST_H
#define KM_REQUEST_H

#include "bind.h"
#include "route.h"

/* What is read of a packet at first: most heads are shorter, most bodies are not. */
#define KM_FIRST_BYTES 1024

/* A head that has not come whole by then is answered 408. */
#define KM_SLOW_HEAD_NS 5000000000ULL

/* Prepares the answer to a request. */
__noinline int answer(struct __sk_buff *skb, struct packet *p, struct flow *f,
		      struct decision_of *d)
{
	struct answer *a;
	struct work *w;
	__u32 end;

	if (!p || !f || !d)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	a = &w->answer;
	__builtin_memset(a, 0, sizeof(*a));
	end = p->seq + p->len;
	if (f->pending || !can_leave(f))
		return GO_PREFIX;
	if (d->kind == KM_HEAD_REJECT)
		count_event(d->reply == 503 ? KM_EVENT_NO_ENDPOINT : KM_EVENT_REJECTED);
	else if (d->reply == 404)
		count_event(KM_EVENT_NO_ROUTE);
	a->id = d->reply;
	a->is_head = d->is_head;
	a->route = d->route;
	a->repeated = f->flags & KM_FLOW_REPLY && !(f->flags & KM_FLOW_CHOSEN) &&
		      f->chosen == d->head;
	f->flags &= ~KM_FLOW_CHOSEN;
	f->chosen = d->head;
	if (!f->started || !a->repeated)
		f->started = bpf_ktime_get_ns();
	if (d->kind == KM_HEAD_REJECT && d->reply != 503) {
		/* What follows cannot be told from it. */
		a->fin = 1;
		f->request.pos = end;
	} else {
		begin_body(&f->request, d->head + d->head_len, d);
		if (follow_body(skb, p, &f->request, p->seq, end))
			return GO_KILL;
		if (d->close)
			a->fin = 1;
	}
	/* A body that goes on is taken as it comes. */
	a->ack = f->request.kind == KM_FRAME_HEAD ? f->request.pos : end;
	park_leg(f);
	free_hold(f);
	if (has_leg(f) && !(leg_at(f, f->leg)->flags & KM_LEG_SERVED))
		reset_leg(skb, p, f, f->leg);
	f->flags &= ~KM_FLOW_FIRST;
	return GO_REPLY;
}

/* What is not HTTP/1 stays with its leg, as L4. */
__noinline int pin_flow(struct packet *p, struct flow *f, struct decision_of *d)
{
	struct choice_of *to;
	struct service *svc;
	__u32 service;
	struct work *w;

	if (!p || !f || !d)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	to = &w->choice;
	if (f->pending)
		return GO_PREFIX;
	if (!has_leg(f)) {
		/* The program answered the SYN: now there is something to go by. */
		service = f->service;
		svc = bpf_map_lookup_elem(&km_services, &service);
		if (!svc || !svc->n)
			return GO_KILL;
		f->cluster = draw_cluster(svc);
		if (!pick_endpoint(f, to, f->cluster, hash_addr(f->key.client, f->key.family)))
			return GO_KILL;
		if (to->limited && !claim_leg(f, to)) {
			count_refusal(f->service, KM_REASON_OVERFLOW);
			return GO_KILL;
		}
		f->pin = d->rule <= KM_RULE_CONNECT ? d->rule : KM_PIN_OPAQUE;
		d->head_len = d->have;
		d->length = 0;
		d->chunked = 0;
		return GO_OPEN;
	}
	f->pin = d->rule <= KM_RULE_CONNECT ? d->rule : KM_PIN_OPAQUE;
	count_event(KM_EVENT_PIN_TLS - 1 + f->pin);
	f->flags &= ~KM_FLOW_FIRST;
	leg_at(f, f->leg)->flags |= KM_LEG_SERVED;
	f->request.pos = d->head + d->have;
	if (f->hold) {
		keep_bytes(f, w, d->head, d->have);
		return GO_HELD;
	}
	return GO_FORWARD;
}

/* A head that is not whole waits in the hold, and is acknowledged. */
__noinline int hold_head(struct __sk_buff *skb, struct packet *p, struct flow *f,
			 struct decision_of *d)
{
	struct work *w;

	if (!p || !f || !d)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	if (before(p->seq, d->head) && !f->hold)
		return GO_PREFIX;
	/* The ACK is for all that comes before, too: the endpoint has to have it. */
	if (has_leg(f) && before(leg_at(f, f->leg)->una, leg_at(f, f->leg)->sent))
		return swallow();
	if (!f->hold)
		f->held_since = bpf_ktime_get_ns();
	if (!keep_bytes(f, w, d->head, d->have))
		return swallow();
	f->request.pos = d->head + d->have;
	if (!f->requests && !d->method_done)
		return swallow(); /* repeated alone, it will be taken for something else than HTTP */
	f->flags |= KM_FLOW_HELD;
	return bounce(skb, p, f, TCP_ACK, f->server_end, f->request.pos);
}

/* Reads n bytes of the packet into scratch, behind those that are there. */
static __always_inline bool read_bytes_at(struct __sk_buff *skb, struct work *w, __u32 at,
					  __u32 have, __u32 n)
{
	asm volatile("" : "+r"(have));
	if (!is_between(&n, 1, KM_MAX_HEAD) || have > KM_MAX_HEAD)
		return false;
	return !bpf_skb_load_bytes(skb, at, w->bytes + have, n);
}

/* The head that begins, or goes on, at request.pos, which is in the packet. */
__noinline int take_head(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	__u32 pos, n, at, some, have = 0;
	struct decision_of *d;
	bool late = false;
	struct work *w;
	int verdict;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	d = &w->decision;
	__builtin_memset(d, 0, sizeof(*d));
	pos = f->request.pos;
	if (f->flags & (KM_FLOW_SENT | KM_FLOW_RESPONSE)) {
		free_hold(f);
		f->flags &= ~(KM_FLOW_SENT | KM_FLOW_RESPONSE);
	}
	d->head = pos;
	if (f->hold) {
		have = held_bytes(f, w);
		d->head = f->hold_base;
		/* One that came whole in time may wait for a response as long as it takes. */
		late = bpf_ktime_get_ns() - f->held_since > KM_SLOW_HEAD_NS &&
		       !(f->flags & KM_FLOW_CHOSEN && f->chosen == d->head);
	}
	n = p->seq + p->len - pos;
	if (n > KM_MAX_HEAD)
		n = KM_MAX_HEAD;
	at = p->l4 + p->tcp_len + (pos - p->seq);
	some = !have && n > KM_FIRST_BYTES ? KM_FIRST_BYTES : n;
	if (!read_bytes_at(skb, w, at, have, some))
		return swallow();
	match_head(f, p, have + some);
	if (some < n && d->kind == KM_HEAD_INCOMPLETE) {
		if (!read_bytes_at(skb, w, at, have, n))
			return swallow();
		some = n;
		match_head(f, p, have + n);
	}
	d->have = have + n > KM_MAX_HEAD ? KM_MAX_HEAD : have + n;
	if (late && d->kind != KM_HEAD_PIN) {
		d->kind = KM_HEAD_REJECT;
		d->reply = 408;
		return answer(skb, p, f, d);
	}
	switch (d->kind) {
	case KM_HEAD_INCOMPLETE:
		return hold_head(skb, p, f, d);
	case KM_HEAD_PIN:
		if (!f->requests || d->rule == KM_RULE_CONNECT)
			goto pin;
		d->kind = KM_HEAD_REJECT; /* only a connection can begin so, not a request */
		d->reply = 400;
	}
	if (f->flags & KM_FLOW_REPLY && !(f->flags & KM_FLOW_CHOSEN) && f->chosen == d->head &&
	    f->reply)
		d->reply = f->reply; /* it was answered: the same again */
	if (d->reply)
		return answer(skb, p, f, d);
	verdict = bind_request(skb, p, f, d);
	goto out;
pin:
	verdict = pin_flow(p, f, d);
out:
	/* What waits for a leg is all that came. */
	if (verdict == GO_OPEN && some < n && !read_bytes_at(skb, w, at, have, n)) {
		drop_claim(f, &w->choice);
		return swallow();
	}
	return verdict == GO_ANSWER ? answer(skb, p, f, d) : verdict;
}

#endif
