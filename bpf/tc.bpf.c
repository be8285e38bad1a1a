//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * tc_ingress, tc_egress: the place of the L7 path on the pod's own interface.
 * Today no port has HTTP routes, so every packet is foreign and leaves by the
 * early exit, which calls no helper: at ingress, the destination port is outside
 * the (empty) leg range; at egress, no socket carries an L7 stamp.
 *
 * Both answer "next", never "ok": another program on the hook has its say.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define TCX_NEXT (-1) /* TC_ACT_UNSPEC on clsact: go on with the next filter */

SEC("tc")
int tc_ingress(struct __sk_buff *skb)
{
	return TCX_NEXT;
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	return TCX_NEXT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
