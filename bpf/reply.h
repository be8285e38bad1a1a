/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * reply.h: answers that the program writes itself: redirects, direct responses, 4xx
 * and 5xx. One that is out is repeated as long as the client has not acknowledged it.
 */
#ifndef KM_REPLY_H
#define KM_REPLY_H

#include "count.h"
#include "held.h"
#include "message.h"

/* The longest answer: a template, and a request's host, path and query in it. */
#define KM_REPLY_BYTES (2 * KM_MAX_HEAD)

/* Segments of it, for a client whose MSS is the smallest that is honoured. */
#define KM_REPLY_SEGMENTS (KM_REPLY_BYTES / KM_REPLY_MSS)
#define KM_REPLY_MSS 64

/*
 * The answer's text, and room for one more part, so that no sum of two bounds leads
 * outside; apart from struct work, since per-CPU values are bounded.
 */
struct reply_text {
	__u8 bytes[KM_REPLY_BYTES + KM_MAX_HEAD];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2); /* as km_work */
	__type(key, __u32);
	__type(value, struct reply_text);
} km_texts SEC(".maps");

struct text_walk {
	const struct reply *reply;
	struct work *w;
	struct reply_text *text;
	__u32 len; /* of the text so far */
	__u8 is_head;
	__u8 pad[3];
};

static long add_part(__u32 i, struct text_walk *t)
{
	const struct machine *m = &t->w->machine;
	const struct part *part;
	const void *from;
	__u32 at = t->len, first, len, n;

	if (i >= t->reply->n_parts || i >= KM_REPLY_PARTS)
		return 1;
	part = &t->reply->parts[i];
	first = part->from;
	len = part->len;
	switch (part->kind) {
	case KM_PART_BODY:
		if (t->is_head)
			return 0;
		/* fall through */
	case KM_PART_TEXT:
		if (first > KM_REPLY_TEXT || len > KM_REPLY_TEXT || first + len > KM_REPLY_TEXT)
			return 1;
		from = t->reply->text + first;
		break;
	case KM_PART_HOST:
	case KM_PART_AUTHORITY:
	case KM_PART_NOT_80:
		first = m->spans[KM_SPAN_HOST][0];
		len = m->spans[KM_SPAN_HOST][1] - first;
		n = without_port(t->w->bytes, first, len);
		if (part->kind == KM_PART_HOST ||
		    (part->kind == KM_PART_NOT_80 && len - n == 3 &&
		     t->w->bytes[(first + n + 1) & (KM_MAX_HEAD - 1)] == '8' &&
		     t->w->bytes[(first + n + 2) & (KM_MAX_HEAD - 1)] == '0'))
			len = n;
		from = t->w->bytes + (first & (KM_MAX_HEAD - 1));
		break;
	case KM_PART_PATH:
		first = m->spans[KM_SPAN_PATH][0] + first;
		len = first < m->spans[KM_SPAN_PATH][1] ? m->spans[KM_SPAN_PATH][1] - first : 0;
		from = t->w->bytes + (first & (KM_MAX_HEAD - 1));
		break;
	default: /* KM_PART_QUERY: its "?" too */
		first = m->spans[KM_SPAN_QUERY][0];
		len = m->spans[KM_SPAN_QUERY][1] - first;
		if (!first)
			return 0;
		first--;
		len++;
		from = t->w->bytes + (first & (KM_MAX_HEAD - 1));
	}
	if (!is_between(&len, 1, KM_MAX_HEAD) || at + len > KM_REPLY_BYTES)
		return 0;
	bpf_probe_read_kernel(t->text->bytes + (at & (KM_REPLY_BYTES - 1)), len, from);
	t->len = at + len;
	return 0;
}

struct reply_walk {
	struct __sk_buff *skb;
	struct packet *p;
	struct flow *f;
	struct work *w;
	struct reply_text *text;
	__u32 at;
	__u32 len;
	__u32 segment;
	__u32 ack;
	__u8 fin;
	__u8 failed;
	__u8 pad[2];
};

static long reply_segment(__u32 i, struct reply_walk *r)
{
	__u32 at = r->at, len = r->len - at;
	struct craft *c = &r->w->craft;
	bool last = len <= r->segment;

	if (at > KM_REPLY_BYTES)
		return 1;
	if (!last)
		len = r->segment;
	craft_for_client(c, r->f, TCP_ACK | (last ? TCP_PSH : 0) | (last && r->fin ? TCP_FIN : 0),
			 r->f->server_end + at, r->ack);
	c->link = r->p->egress && !i ? LINK_SWAP : LINK_KEEP;
	craft_payload(c, r->text->bytes + (at & (KM_REPLY_BYTES - 1)), len);
	if (craft_packet(r->skb, r->p, c)) {
		r->failed = 1;
		return 1;
	}
	r->at = at + len;
	if (last)
		return 1;
	bpf_clone_redirect(r->skb, r->skb->ifindex, BPF_F_INGRESS);
	return 0;
}

/*
 * No endpoint takes the request for which a leg was to be opened: 503. What of it was
 * held is taken, and its body as it comes; else the connection ends behind end.
 */
static __always_inline void give_up(struct flow *f, struct answer *a, __u32 end)
{
	count_event(KM_EVENT_NO_ENDPOINT);
	f->next_leg = KM_LEGS;
	f->tries = 0;
	f->tried[0] = f->tried[1] = f->tried[2] = 0;
	f->flags &= ~KM_FLOW_CHOSEN;
	a->id = 503;
	a->route = f->route;
	a->is_head = f->opening_head;
	a->fin = f->opening_close;
	a->ack = end;
	if (f->hold) {
		a->ack = f->hold_base + f->hold_len;
	} else {
		a->fin = 1;
		f->request.kind = KM_FRAME_HEAD;
		f->request.pos = end;
	}
	free_hold(f);
}

/* Answers the client, as the work's answer says. The packet becomes its last segment. */
__noinline int send_reply(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct text_walk t = {.len = unknown(0)};
	struct reply_walk r = {.skb = skb, .p = p, .f = f, .at = unknown(0)};
	struct answer *a;
	struct reply *reply;
	struct work *w;
	__u32 id, which;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return TCX_DROP;
	a = &w->answer;
	which = p->egress & 1;
	t.text = r.text = bpf_map_lookup_elem(&km_texts, &which);
	id = a->id;
	reply = bpf_map_lookup_elem(&km_replies, &id);
	if (!reply) {
		id = 503;
		reply = bpf_map_lookup_elem(&km_replies, &id);
	}
	if (!t.text || !reply)
		return p->egress ? swallow() : TCX_DROP;
	t.reply = reply;
	t.w = w;
	t.is_head = a->is_head;
	bpf_loop(KM_REPLY_PARTS, add_part, &t, 0);
	r.w = w;
	r.len = t.len;
	r.segment = f->client_mss < KM_SEGMENT ? f->client_mss : KM_SEGMENT;
	r.ack = a->ack;
	r.fin = a->fin;
	if (r.segment < KM_REPLY_MSS)
		r.segment = KM_REPLY_MSS;
	bpf_loop(KM_REPLY_SEGMENTS, reply_segment, &r, 0);
	f->reply = a->id;
	f->reply_base = f->server_end;
	f->server_end += t.len;
	if (a->fin) {
		f->server_end++;
		f->flags |= KM_FLOW_SERVER_FIN;
	}
	f->response.kind = KM_FRAME_HEAD;
	f->response.pos = f->server_end;
	f->flags |= KM_FLOW_REPLY | KM_FLOW_IDLE;
	if (!a->repeated) {
		f->requests++;
		f->status = reply->status;
		count_request(f, a->route, 0, true);
	}
	if (r.failed)
		return p->egress ? swallow() : TCX_DROP;
	return p->egress ? bpf_redirect(skb->ifindex, BPF_F_INGRESS) : TCX_NEXT;
}

#endif
