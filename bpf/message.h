/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* message.h: what is known of a message when its head has been read. */
#ifndef KM_MESSAGE_H
#define KM_MESSAGE_H

#include "legs.h"
#include "table.h"

/* The bytes of a host without its port: what is behind the last colon outside brackets. */
static __always_inline __u32 without_port(const __u8 *bytes, __u32 from, __u32 n)
{
	for (__u32 i = 1; i <= 6; i++) {
		__u8 c;

		if (i > n)
			break;
		c = bytes[(from + n - i) & (KM_MAX_HEAD - 1)];
		if (c == ':')
			return n - i;
		if (c < '0' || c > '9')
			break;
	}
	return n;
}

static __always_inline struct slab *slab_of(const struct vhost *v)
{
	__u32 at = v->slab;

	return bpf_map_lookup_elem(&km_slabs, &at);
}

/* What a head says of its body and of the connection. */
static __always_inline void describe_head(struct machine *m, const struct slab *slab, __u32 program,
					  struct decision_of *d)
{
	struct run r = {.slab = slab->bytes, .base = program};
	const struct program *p = program_of(&r);

	d->has_length = head_seen(m, p->length);
	d->length = d->has_length ? m->length : 0;
	d->chunked = head_seen(m, p->coding);
	d->is_head = (m->flags & KM_FLAG_HEAD) != 0;
	d->close = m->flags & KM_FLAG_CLOSE || !(m->flags & (KM_FLAG_MINOR1 | KM_FLAG_KEEP_ALIVE));
	d->status = m->status;
}

/* Runs the program of the virtual host in scratch over the end bytes there. 0: there is none. */
__noinline int run_machine(const struct packet *p, __u32 end)
{
	struct slab *slab;
	struct work *w;

	if (!p)
		return 0;
	w = work_of(p);
	if (!w)
		return 0;
	slab = slab_of(&w->vhost);
	if (!slab)
		return 0;
	begin_head(&w->machine, slab->bytes, w->vhost.program);
	w->found.summary = 0;
	read_head(&w->machine, &w->found, slab->bytes, w->vhost.program, w->bytes, 0, end);
	describe_head(&w->machine, slab, w->vhost.program, &w->decision);
	return 1;
}

#endif
