/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* window.h: how much a client is told to send, whose connection has several legs. */
#ifndef KM_WINDOW_H
#define KM_WINDOW_H

#include "legs.h"

/* A client is told no less than this, however little a leg's endpoint takes: bytes. */
#define KM_LEAST_WINDOW 16384

/*
 * Of w, what the client may be told. Between requests it is the least of what the
 * endpoints of its legs take: the next request may be for any of them, and the client's
 * TCP would send as much of it at once as the last one took. What is too much is lost,
 * and repeated a timer later.
 */
static __noinline __u16 least_window(const struct flow *f, __u32 w)
{
	__u32 floor = f->scale == 255 ? KM_LEAST_WINDOW : KM_LEAST_WINDOW >> (f->scale & 15);
	__u32 least = w;

	for (__u32 i = 0; i < KM_LEGS; i++) {
		const struct leg *leg = &f->legs[i];

		if (leg->state == KM_LEG_OPEN && window_for_client(f, leg) < least)
			least = window_for_client(f, leg);
	}
	if (least < floor)
		least = floor;
	return least < w ? least : w;
}

static __always_inline bool is_between_requests(const struct flow *f, const struct leg *leg)
{
	return !f->pin && f->request.kind == KM_FRAME_HEAD && leg->una == leg->sent &&
	       f->used_legs & (f->used_legs - 1);
}

#endif
