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
	count_running(leg_at(f, f->leg), -1);
	count_request(f, f->route, f->cluster, false);
	f->status = 0;
}

/*
 * Reads the head in scratch, of which end bytes are there, if it is plain. Its length;
 * 0: it is for the table.
 */
__noinline int plain_response(const struct packet *p, __u32 end)
{
	struct decision_of *d;
	struct plain *f;
	struct work *w;
	__u32 len;

	if (!p)
		return 0;
	w = work_of(p);
	if (!w)
		return 0;
	d = &w->decision;
	f = &w->plain;
	len = read_plain(f, w->bytes, end);
	if (!len)
		return 0;
	d->status = f->status;
	d->has_length = f->has_length;
	d->length = f->body;
	d->chunked = f->chunked;
	d->close = f->close;
	return len;
}

/*
 * Reads the head of a response, of which n bytes are at an offset of the packet and
 * have bytes before them in scratch. Its length, or 0: see the machine.
 */
static __always_inline __u32 read_response(struct __sk_buff *skb, const struct packet *p,
					   struct work *w, __u32 at, __u32 have, __u32 n)
{
	__u32 some = n < KM_PLAIN_BYTES ? n : KM_PLAIN_BYTES, grammar = KM_VHOST_RESPONSE, len;
	struct vhost *v;

	w->machine.kind = KM_HEAD_REJECT; /* which no response is */
	if (!have) {
		if (!is_between(&some, 1, KM_PLAIN_BYTES) ||
		    bpf_skb_load_bytes(skb, at, w->bytes, some))
			return 0;
		len = plain_response(p, some);
		if (len)
			return len;
	}
	if (!is_between(&n, 1, KM_MAX_HEAD) || have > KM_MAX_HEAD)
		return 0;
	if (bpf_skb_load_bytes(skb, at, w->bytes + have, n))
		return 0;
	n += have;
	v = bpf_map_lookup_elem(&km_vhosts, &grammar);
	if (!v)
		return 0;
	w->vhost = *v;
	run_machine(p, n > KM_MAX_HEAD ? KM_MAX_HEAD : n);
	return w->machine.kind == KM_HEAD_ROUTE ? w->machine.position : 0;
}

/*
 * The head that begins, or goes on, at response.pos, in a packet whose payload is
 * [begin, end) in C space. 1: nothing more is read in it.
 */
__noinline int response_head(struct __sk_buff *skb, const struct packet *p, struct flow *f,
			     __u32 begin, __u32 end)
{
	struct frame *frame;
	struct decision_of *d;
	__u32 pos, n, have = 0, len;
	struct work *w;
	bool taken;

	if (!p || !f)
		return 1;
	w = work_of(p);
	if (!w)
		return 1;
	frame = &f->response;
	d = &w->decision;
	pos = frame->pos;
	if (!f->pending) {
		pin_response(f, f->flags & KM_FLOW_FIRST ? KM_PIN_SERVER_FIRST : KM_PIN_LOST);
		f->flags &= ~KM_FLOW_FIRST;
		return 1;
	}
	if (f->flags & KM_FLOW_SENT && !(f->flags & KM_FLOW_RESPONSE)) {
		/* The endpoint answers: it has what was held. */
		free_hold(f);
		f->flags &= ~KM_FLOW_SENT;
	}
	/* The hold may have the beginning of the client's next head: that stays. */
	taken = f->hold && !(f->flags & KM_FLOW_RESPONSE);
	if (f->hold && !taken)
		have = held_bytes(f, w);
	n = end - pos;
	if (n > KM_MAX_HEAD)
		n = KM_MAX_HEAD;
	len = read_response(skb, p, w, p->l4 + p->tcp_len + (pos - begin), have, n);
	if (!len && w->machine.kind == KM_HEAD_REJECT)
		return 1; /* the packet is shorter than it says */
	if (!len && w->machine.kind == KM_HEAD_PIN) {
		if (w->machine.rule == KM_RULE_SWITCHING) {
			f->status = 101;
			end_response(f);
		}
		pin_response(f, w->machine.rule == KM_RULE_SWITCHING ? KM_PIN_UPGRADED
								     : KM_PIN_MALFORMED);
		return 1;
	}
	if (!len) {
		n += have;
		if (taken || n >= KM_MAX_HEAD || !keep_bytes(f, w, pos - have, n)) {
			pin_response(f, KM_PIN_LOST);
			return 1;
		}
		f->flags |= KM_FLOW_RESPONSE;
		frame->pos = end;
		return 1;
	}
	if (f->flags & KM_FLOW_RESPONSE) {
		free_hold(f);
		f->flags &= ~KM_FLOW_RESPONSE;
	}
	frame->pos = pos - have + len;
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

struct response_walk {
	struct __sk_buff *skb;
	const struct packet *p;
	struct flow *f;
	__u32 begin; /* C */
	__u32 end;
	__u32 drop;
};

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
		if (!follow_length(frame, r->end) &&
		    follow_body(r->skb, r->p, frame, r->begin, r->end)) {
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
	if (!response_head(r->skb, r->p, r->f, r->begin, r->end))
		return 0;
	asm volatile(""); /* a branch, which the verifier follows: 0 or 1 */
	return 1;
}

/*
 * Follows the responses through a packet of the current leg, whose payload begins at
 * begin (C space). 1: it must be dropped, for a head or a chunk's line is read in
 * order; the endpoint repeats it.
 */
static __always_inline int follow_response(struct __sk_buff *skb, const struct packet *p,
					   struct flow *f, __u32 begin)
{
	struct response_walk r = {.skb = skb, .p = p, .f = f, .begin = begin};

	r.end = begin + p->len;
	/* One head and one end are the rule: a loop would call for each. */
	if (!response_step(0, &r) && !response_step(1, &r))
		bpf_loop(KM_RESPONSES, response_step, &r, 0);
	if (r.drop)
		count_event(KM_EVENT_DISORDER);
	return r.drop;
}

#endif
