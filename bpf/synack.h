/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* synack.h: the options of an endpoint's answer to a SYN. */
#ifndef KM_SYNACK_H
#define KM_SYNACK_H

#include "translate.h"

struct syn_options {
	struct __sk_buff *skb;
	__u32 at;
	__u32 end;
	__u16 mss;
	__u8 scale;
	__u8 sack;
	__u8 timestamps;
	__u8 pad[3];
};

static long synack_option(__u32 i, struct syn_options *o)
{
	__u8 b[4] = {};

	if (o->at >= o->end || bpf_skb_load_bytes(o->skb, o->at, b, 1) || b[0] == OPTION_END)
		return 1;
	if (b[0] == OPTION_NOP) {
		o->at++;
		return 0;
	}
	if (bpf_skb_load_bytes(o->skb, o->at, b, 2) || b[1] < 2)
		return 1;
	if (b[0] == OPTION_MSS && !bpf_skb_load_bytes(o->skb, o->at, b, 4))
		o->mss = b[2] << 8 | b[3];
	if (b[0] == OPTION_SCALE && !bpf_skb_load_bytes(o->skb, o->at, b, 3))
		o->scale = b[2] > 14 ? 14 : b[2];
	if (b[0] == OPTION_SACK_OK)
		o->sack = 1;
	if (b[0] == OPTION_TIMESTAMPS)
		o->timestamps = 1;
	o->at += b[1];
	return 0;
}

/*
 * Linux' own options in its answer to a SYN with timestamps, in their usual places,
 * without a loop. false: these are others.
 */
static __always_inline bool usual_synack(struct __sk_buff *skb, struct packet *p,
					 struct syn_options *o)
{
	__u8 b[20];

	if (p->tcp_len != 40 || bpf_skb_load_bytes(skb, p->l4 + 20, b, sizeof(b)) || !are_usual(b))
		return false;
	o->mss = b[2] << 8 | b[3];
	o->scale = b[19] > 14 ? 14 : b[19];
	o->sack = o->timestamps = 1;
	return true;
}

#endif
