/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * held.h: bytes that the program has and the client's TCP still owns, unless they are
 * those of a trickled head, which were acknowledged (KM_FLOW_HELD): then the hold
 * stays until the endpoint has acknowledged them.
 */
#ifndef KM_HELD_H
#define KM_HELD_H

#include "legs.h"

#define KM_HELD_SEGMENTS 64 /* KM_MAX_HEAD in the smallest segments */

/* Puts the first len bytes of scratch into the flow's hold. false: none is free. */
static __noinline bool keep_bytes(struct flow *f, const struct work *w, __u32 base, __u32 len)
{
	struct hold *h = take_hold(f);

	if (!h)
		return false;
	if (len > KM_MAX_HEAD)
		len = KM_MAX_HEAD;
	if (is_between(&len, 1, KM_MAX_HEAD))
		bpf_probe_read_kernel(h->bytes, len, w->bytes);
	f->hold_base = base;
	f->hold_len = len;
	return true;
}

/* Copies what is held into scratch; returns how much it is. */
static __noinline __u32 held_bytes(struct flow *f, struct work *w)
{
	struct hold *h = take_hold(f);
	__u32 len = f->hold_len;

	if (!h)
		return 0;
	if (is_between(&len, 1, KM_MAX_HEAD))
		bpf_probe_read_kernel(w->bytes, len, h->bytes);
	return len;
}

struct held_walk {
	struct __sk_buff *skb;
	struct packet *p;
	struct flow *f;
	struct leg *leg;
	struct hold *hold;
	struct work *w;
	__u32 at;
	__u32 failed;
};

static long send_segment(__u32 i, struct held_walk *h)
{
	__u32 at = h->at, len = h->f->hold_len - at;
	__u32 most = h->leg->mss < KM_SEGMENT ? h->leg->mss : KM_SEGMENT;
	bool last = len <= most;
	struct craft *c = &h->w->craft;

	if (at > KM_MAX_HEAD)
		return 1;
	craft_for_leg(c, h->f, h->leg, TCP_ACK | (last ? TCP_PSH : 0), h->f->hold_base + at,
		      h->f->server_end);
	link_leg(c, h->p, h->leg);
	if (i && c->link == LINK_SWAP)
		c->link = LINK_KEEP; /* only the first one is still addressed as it came */
	craft_payload(c, h->hold->bytes + (at & (2 * KM_MAX_HEAD - 1)), last ? len : most);
	if (craft_packet(h->skb, h->p, c)) {
		h->failed = 1;
		return 1;
	}
	h->at = at + most;
	if (last)
		return 1;
	bpf_clone_redirect(h->skb, h->skb->ifindex, leg_direction(h->leg));
	return 0;
}

/*
 * Sends what is held to the current leg, out of the packet at hand. The client's own
 * copy stays responsible for it, unless it was acknowledged.
 */
__noinline int send_held(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct held_walk h = {.skb = skb, .p = p, .f = f, .at = unknown(0)};
	struct leg *leg;

	if (!p || !f)
		return TCX_DROP;
	h.w = work_of(p);
	h.hold = take_hold(f);
	if (!h.w || !h.hold)
		return p->egress ? swallow() : TCX_DROP;
	leg = leg_at(f, f->leg);
	h.leg = leg;
	bpf_loop(KM_HELD_SEGMENTS, send_segment, &h, 0);
	if (before(leg->sent, f->hold_base + f->hold_len + leg->dc))
		leg->sent = f->hold_base + f->hold_len + leg->dc;
	if (f->flags & KM_FLOW_HELD)
		f->flags |= KM_FLOW_SENT;
	else
		free_hold(f);
	if (h.failed)
		return p->egress ? swallow() : TCX_DROP;
	return bpf_redirect(skb->ifindex, leg_direction(leg));
}

#endif
