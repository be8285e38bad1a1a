/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * response.h: what the current leg's endpoint sends. Responses are framed, so that it
 * is known when the leg may be left; nothing is changed in them.
 */
#ifndef KM_RESPONSE_H
#define KM_RESPONSE_H

#include "framing.h"
#include "reply.h"

/* Heads and body ends in one packet that are looked at: 1xx, pipelined responses. */
#define KM_RESPONSES 32

static __always_inline void pin_response(struct flow *f, __u8 pin)
{
	f->pin = pin;
	count_event(KM_EVENT_PIN_TLS - 1 + pin);
}

/* One response has come to its end. */
static __always_inline void end_response(struct flow *f)
{
	if (!f->pending)
		return;
	f->pending--;
	f->heads >>= 1;
	count_running(leg_at(f, f->leg)->endpoint, -1);
	count_request(f, f->route, f->cluster, false);
}

struct response_walk {
	struct __sk_buff *skb;
	const struct packet *p;
	struct flow *f;
	struct work *w;
	__u32 begin; /* C */
	__u32 end;
	__u32 drop;
};

static __always_inline long response_head(struct response_walk *r)
{
	struct flow *f = r->f;
	struct frame *frame = &f->response;
	struct decision_of *d = &r->w->decision;
	struct machine *m = &r->w->machine;
	__u32 pos = frame->pos, n, have = 0;

	if (!f->pending) {
		pin_response(f, f->flags & KM_FLOW_FIRST ? KM_PIN_SERVER_FIRST : KM_PIN_LOST);
		f->flags &= ~KM_FLOW_FIRST;
		return 1;
	}
	if (f->hold && !(f->flags & KM_FLOW_RESPONSE)) {
		if (!(f->flags & KM_FLOW_SENT)) {
			pin_response(f, KM_PIN_LOST);
			return 1;
		}
		/* The endpoint answers: it has what was held. */
		free_hold(f);
		f->flags &= ~KM_FLOW_SENT;
	}
	if (f->hold)
		have = held_bytes(f, r->w);
	n = r->end - pos;
	if (n > KM_MAX_HEAD)
		n = KM_MAX_HEAD;
	asm volatile("" : "+r"(n));
	if (!n || n > KM_MAX_HEAD || have > KM_MAX_HEAD)
		return 1;
	if (bpf_skb_load_bytes(r->skb, r->p->l4 + r->p->tcp_len + (pos - r->begin),
			       r->w->bytes + have, n))
		return 1;
	n += have;
	if (!run_machine(r->p, KM_VHOST_RESPONSE, n > KM_MAX_HEAD ? KM_MAX_HEAD : n))
		return 1;
	switch (m->kind) {
	case KM_HEAD_INCOMPLETE:
		if (n >= KM_MAX_HEAD || !keep_bytes(f, r->w, pos - have, n)) {
			pin_response(f, KM_PIN_LOST);
			return 1;
		}
		f->flags |= KM_FLOW_RESPONSE;
		frame->pos = r->end;
		return 1;
	case KM_HEAD_PIN:
		pin_response(f, m->rule == KM_RULE_SWITCHING ? KM_PIN_UPGRADED : KM_PIN_MALFORMED);
		return 1;
	}
	if (f->flags & KM_FLOW_RESPONSE) {
		free_hold(f);
		f->flags &= ~KM_FLOW_RESPONSE;
	}
	frame->pos = pos - have + m->position;
	if (d->status < 200)
		return 0; /* interim: another head follows */
	f->status = d->status;
	if (d->close)
		f->flags |= KM_FLOW_CLOSE;
	if (f->heads & 1 || d->status == 204 || d->status == 304) {
		end_response(f);
		return 0;
	}
	frame->line = 0;
	frame->len = 0;
	frame->left = d->length;
	if (d->chunked) {
		frame->kind = KM_FRAME_CHUNK;
	} else if (!d->has_length) {
		frame->kind = KM_FRAME_CLOSE;
		f->flags |= KM_FLOW_CLOSE;
		pin_response(f, KM_PIN_UNTIL_CLOSE);
		return 1;
	} else if (d->length) {
		frame->kind = KM_FRAME_LENGTH;
	} else {
		end_response(f);
	}
	return 0;
}

static long response_step(__u32 i, struct response_walk *r)
{
	struct frame *frame = &r->f->response;

	if (r->f->pin || frame->kind == KM_FRAME_CLOSE)
		return 1;
	if (frame->kind != KM_FRAME_HEAD) {
		/* A line that must be read has not come yet: in order, please. */
		if (before(frame->pos, r->begin)) {
			r->drop = 1;
			return 1;
		}
		if (follow_body(r->skb, r->p, frame, r->begin, r->end)) {
			pin_response(r->f, KM_PIN_MALFORMED);
			return 1;
		}
		if (frame->kind != KM_FRAME_HEAD)
			return 1;
		end_response(r->f);
	}
	if (!before(frame->pos, r->end))
		return 1;
	if (before(frame->pos, r->begin)) {
		r->drop = 1;
		return 1;
	}
	return response_head(r);
}

/*
 * Follows the responses through a packet of the current leg, whose payload begins at
 * begin (C space). 1: it must be dropped, for a head or a chunk's line is read in
 * order; the endpoint repeats it.
 */
__noinline int follow_response(struct __sk_buff *skb, const struct packet *p, struct flow *f,
			       __u32 begin)
{
	struct response_walk r = {.skb = skb, .p = p, .f = f, .begin = begin};

	if (!p || !f)
		return 0;
	r.w = work_of(p);
	r.end = begin + p->len;
	if (!r.w)
		return 0;
	bpf_loop(KM_RESPONSES, response_step, &r, 0);
	if (r.drop)
		count_event(KM_EVENT_DISORDER);
	return r.drop;
}

#endif
