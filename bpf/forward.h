/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* forward.h: a client's packet, or its beginning, on its way to the current leg. */
#ifndef KM_FORWARD_H
#define KM_FORWARD_H

#include "bind.h"

/* The last timestamp that went to a leg, for whoever uses its port next. */
static __always_inline void note_timestamp(struct __sk_buff *skb, const struct packet *p,
					   struct leg *leg)
{
	__u8 o[12];

	if (p->tcp_len < 32 || bpf_skb_load_bytes(skb, p->l4 + 20, o, 12))
		return;
	if (o[2] == OPTION_TIMESTAMPS)
		leg->tsval = (__u32)o[4] << 24 | o[5] << 16 | o[6] << 8 | o[7];
}

/* Cuts a packet down to len bytes of payload; the client repeats the others. 0: done. */
__noinline int shorten(struct __sk_buff *skb, struct packet *p, __u32 len)
{
	__be16 was, is, old, new;

	if (!p || len >= p->len)
		return -1;
	/* What is cut is one segment then: the kernel would not split it any more. */
	if (skb->gso_size && len > skb->gso_size)
		len = skb->gso_size;
	/* The length is in the pseudo header. */
	was = bpf_htons(p->tcp_len + p->len);
	is = bpf_htons(p->tcp_len + len);
	if (bpf_skb_change_tail(skb, p->l4 + p->tcp_len + len, 0))
		return -1;
	replace_checksum(skb, p, 0, (__u64)is + (__u16)~was);
	if (p->family == 4) {
		old = bpf_htons(20 + p->tcp_len + p->len);
		new = bpf_htons(20 + p->tcp_len + len);
		bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), old, new, 2);
		bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, tot_len), &new, 2, 0);
	} else {
		bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, payload_len), &is, 2,
				    0);
	}
	p->clear |= TCP_FIN;
	p->len = len;
	reread_checksums(skb, p);
	return 0;
}

/* Only the bytes before request.pos go on; the client repeats the others. */
__noinline int send_prefix(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	if (!p || !f)
		return TCX_DROP;
	if (!has_leg(f) || !before(p->seq, f->request.pos) ||
	    shorten(skb, p, f->request.pos - p->seq))
		return swallow();
	return GO_FORWARD;
}

/* Sends the packet to the current leg. */
__noinline int to_leg(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct translation t = {};
	struct leg *leg;
	void *data, *end;
	__u32 sent;

	if (!p || !f)
		return TCX_DROP;
	leg = leg_at(f, f->leg);
	/*
	 * The client was told the segment size of another endpoint. What is too large for
	 * this one is repeated by the client, in parts: slow, but it arrives.
	 */
	if (leg->mss < f->mss && p->len + p->tcp_len > leg->mss + 20U &&
	    shorten(skb, p, leg->mss + 20U - p->tcp_len))
		return swallow();
	t.p = p;
	t.sport = leg->leg_port;
	t.dport = leg->port;
	t.seq = leg->dc;
	t.ack = -leg->ds;
	t.window = window_for_leg(f, leg, p->window);
	t.flags = p->flags & ~p->clear;
	sent = p->seq + p->len + leg->dc + (p->flags & ~p->clear & TCP_FIN ? 1 : 0);
	__builtin_memcpy(t.addr, leg->addr, 16);
	__builtin_memcpy(t.other, p->src, 16);
	if (before(leg->sent, sent)) {
		/* An ACK counts bytes that were dropped, to be repeated: the endpoint has none. */
		if (p->len || p->flags & ~p->clear & TCP_FIN)
			leg->sent = sent;
		else
			t.seq -= sent - leg->sent;
	}
	if (f->flags & (KM_FLOW_CLIENT_FIN | KM_FLOW_SERVER_FIN) && leg->flags & KM_LEG_TIMESTAMPS)
		note_timestamp(skb, p, leg);
	if (leg->ds && p->tcp_len > 20 && p->flags & TCP_ACK)
		translate_sack(skb, p, -leg->ds);
	if (leg->flags & KM_LEG_SELF) {
		__builtin_memcpy(t.other, f->key.vip, 16);
		translate(skb, &t, true);
		swap_link(skb);
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	}
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	/* The next hop of a leg that is being opened is not known. */
	if (leg->state != KM_LEG_SYN && data + 6 <= end &&
	    (*(__u32 *)data != *(__u32 *)leg->mac ||
	     *(__u16 *)(data + 4) != *(__u16 *)(leg->mac + 4)))
		bpf_skb_store_bytes(skb, 0, leg->mac, 6, 0);
	translate(skb, &t, true);
	return TCX_NEXT;
}

#endif
