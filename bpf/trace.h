/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* trace.h: packets of a flow whose trace switch is on, to the ring buffer. */
#ifndef KM_TRACE_H
#define KM_TRACE_H

#include "legs.h"

__noinline int trace_packet(const struct flow *f, const struct packet *p, __u32 verdict)
{
	const struct trace_mark *m;
	struct trace *t;
	struct work *w;

	if (!f || !p)
		return 0;
	w = work_of(p);
	if (!w)
		return 0;
	m = &w->mark;
	t = bpf_ringbuf_reserve(&km_trace, sizeof(*t), 0);
	if (!t) {
		count_event(KM_EVENT_TRACE_FULL);
		return 0;
	}
	__builtin_memset(t, 0, sizeof(*t));
	t->at = bpf_ktime_get_ns();
	t->slot = f->slot;
	t->generation = f->generation;
	t->egress = p->egress;
	t->leg = m->leg;
	t->verdict = verdict;
	t->tcp_flags = m->flags;
	t->state = f->state;
	t->pin = f->pin;
	t->window = m->window;
	t->seq = m->seq;
	t->ack = m->ack;
	t->len = m->len;
	t->new_seq = p->seq;
	t->new_ack = p->ack;
	bpf_ringbuf_submit(t, 0);
	return 0;
}

static __always_inline void mark_packet(struct trace_mark *m, const struct packet *p, __u8 leg)
{
	m->seq = p->seq;
	m->ack = p->ack;
	m->len = p->len;
	m->flags = p->flags;
	m->leg = leg;
	m->window = p->window;
}

#endif
