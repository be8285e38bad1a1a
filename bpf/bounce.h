/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* bounce.h: at egress, packets of our own to the client and to other legs. */
#ifndef KM_BOUNCE_H
#define KM_BOUNCE_H

#include "legs.h"

/* At egress: answers the client, with what is at hand, and frees nothing else. */
__noinline int bounce_packet(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 flags,
			     __u64 numbers)
{
	struct work *w;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return TCX_DROP;
	craft_for_client(&w->craft, f, flags, numbers >> 32, numbers);
	w->craft.link = LINK_SWAP;
	if (craft_packet(skb, p, &w->craft))
		return swallow();
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline int bounce(struct __sk_buff *skb, struct packet *p, struct flow *f,
				  __u32 flags, __u32 seq, __u32 ack)
{
	return bounce_packet(skb, p, f, flags, (__u64)seq << 32 | ack);
}

/*
 * At egress: resets a leg by a clone. The packet at hand is spent: whatever follows is
 * made anew.
 */
__noinline int reset_leg(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 i)
{
	struct work *w;
	struct leg *leg;

	if (!p || !f)
		return 0;
	w = work_of(p);
	leg = leg_at(f, i);
	if (!w)
		return 0;
	if (leg->state == KM_LEG_OPEN) {
		craft_for_leg(&w->craft, f, leg, TCP_RST | TCP_ACK, leg->sent - leg->dc,
			      leg->nxt + leg->ds);
		link_leg(&w->craft, p, leg);
		if (!craft_packet(skb, p, &w->craft))
			bpf_clone_redirect(skb, skb->ifindex, leg_direction(leg));
	}
	if (leg->state == KM_LEG_SYN)
		forget_leg(f, leg);
	else if (leg->state == KM_LEG_OPEN)
		end_leg(f, leg);
	return 0;
}

/* Resets all legs but the current one (all, if all is set). */
__noinline int reset_legs(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 all)
{
	if (!p || !f)
		return 0;
	for (__u32 i = 0; i < KM_LEGS; i++)
		if (all || f->flags & KM_FLOW_IDLE || i != f->leg)
			reset_leg(skb, p, f, i);
	return 0;
}

#endif
